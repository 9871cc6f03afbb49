//! A tree of the cache blocks that hold the beginnings of prompts, one block of tokens per node.
//!
//! ```text
//! root ─ 16 tokens ─ 16 tokens ┬ 16 tokens        one query, then one of its documents
//!                              └ 16 tokens ─ …    another document
//! ```
//!
//! A prompt uses the nodes along its path. Nodes without users stay cached until their blocks are needed.
//! Then the least recently used leaf is evicted. A node is inserted when its computation begins. A prompt
//! that finds a node that is still being computed waits for it instead of computing it again.

use std::collections::{BTreeSet, HashMap};

use crate::model::step::{BLOCK_TOKENS, BlockId};

/// A node of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(usize);

/// The tokens of one block.
type BlockTokens = [u32; BLOCK_TOKENS];

#[derive(Debug)]
struct Node {
    parent: Option<NodeId>,
    tokens: BlockTokens,
    block: BlockId,
    /// Number of prompts that use the node.
    users: usize,
    children: usize,
    /// Whether the block holds the tokens' keys and values.
    computed: bool,
    /// The clock's value when the last user left.
    last_used: u64,
}

/// The result of [`PrefixCache::find`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PrefixMatch {
    /// The nodes of the prompt's first blocks.
    pub(super) path: Vec<NodeId>,
    /// Whether another prompt is computing the next block.
    pub(super) next_is_computing: bool,
}

#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    nodes: HashMap<NodeId, Node>,
    children: HashMap<(Option<NodeId>, BlockTokens), NodeId>,
    /// Leaves without users, the least recently used first.
    evictable: BTreeSet<(u64, NodeId)>,
    /// Number of nodes without users.
    unused: usize,
    clock: u64,
    next_id: usize,
}

impl PrefixCache {
    /// Returns the longest cached prefix of `tokens`, in whole blocks.
    pub(super) fn find(&self, tokens: &[u32]) -> PrefixMatch {
        let mut path: Vec<NodeId> = Vec::new();
        for block in tokens.as_chunks().0 {
            match self.children.get(&(path.last().copied(), *block)) {
                Some(node) if self.nodes[node].computed => path.push(*node),
                Some(_) => return PrefixMatch { path, next_is_computing: true },
                None => break,
            }
        }
        PrefixMatch { path, next_is_computing: false }
    }

    /// Returns the node's block.
    pub(super) fn block(&self, node: NodeId) -> BlockId {
        self.nodes[&node].block
    }

    /// Returns the number of blocks that [`evict`](Self::evict) can free.
    pub(super) fn evictable_blocks(&self) -> usize {
        self.unused
    }

    /// Returns the number of nodes on a path that have no user.
    pub(super) fn unused_among(&self, path: &[NodeId]) -> usize {
        path.iter().filter(|node| self.nodes[node].users == 0).count()
    }

    /// Increments the user count of every node of a path.
    pub(super) fn acquire(&mut self, path: &[NodeId]) {
        for id in path {
            let Some(node) = self.nodes.get_mut(id) else { continue };
            if node.users == 0 {
                self.unused -= 1;
                self.evictable.remove(&(node.last_used, *id));
            }
            node.users += 1;
        }
    }

    /// Inserts a block that is about to be computed, with one user. Returns `None` if the tree has these tokens.
    pub(super) fn insert(
        &mut self,
        parent: Option<NodeId>,
        tokens: BlockTokens,
        block: BlockId,
    ) -> Option<NodeId> {
        if self.children.contains_key(&(parent, tokens)) {
            return None;
        }
        let id = NodeId(self.next_id);
        self.next_id += 1;
        self.children.insert((parent, tokens), id);
        if let Some(parent) = parent.and_then(|parent| self.nodes.get_mut(&parent)) {
            parent.children += 1;
        }
        let (users, children, computed, last_used) = (1, 0, false, self.clock);
        self.nodes.insert(id, Node { parent, tokens, block, users, children, computed, last_used });
        Some(id)
    }

    /// Marks the node's block as computed.
    pub(super) fn set_computed(&mut self, node: NodeId) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.computed = true;
        }
    }

    /// Decrements the user count of every node of a path. Returns the blocks that this frees because they
    /// were never fully computed.
    pub(super) fn release(&mut self, path: &[NodeId]) -> Vec<BlockId> {
        self.clock += 1;
        let mut blocks = Vec::new();
        // From the end, so that each node is a leaf when it is removed.
        for id in path.iter().rev() {
            let Some(node) = self.nodes.get_mut(id) else { continue };
            node.users -= 1;
            if node.users > 0 {
                continue;
            }
            self.unused += 1;
            node.last_used = self.clock;
            if node.children == 0 {
                self.evictable.insert((node.last_used, *id));
            }
            if !node.computed {
                blocks.extend(self.remove(*id));
            }
        }
        blocks
    }

    /// Removes the least recently used leaf and returns its block.
    pub(super) fn evict(&mut self) -> Option<BlockId> {
        let (_, id) = *self.evictable.first()?;
        self.remove(id)
    }

    /// Removes a leaf without users.
    fn remove(&mut self, id: NodeId) -> Option<BlockId> {
        let node = self.nodes.remove(&id)?;
        self.children.remove(&(node.parent, node.tokens));
        self.evictable.remove(&(node.last_used, id));
        self.unused -= 1;
        if let Some(parent_id) = node.parent
            && let Some(parent) = self.nodes.get_mut(&parent_id)
        {
            parent.children -= 1;
            if parent.children == 0 && parent.users == 0 {
                self.evictable.insert((parent.last_used, parent_id));
            }
        }
        Some(node.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns a block of equal tokens for each number.
    fn tokens(blocks: &[u32]) -> Vec<u32> {
        blocks.iter().flat_map(|token| [*token; BLOCK_TOKENS]).collect()
    }

    /// Acquires a prompt's nodes and inserts the missing ones, as the engine does. Returns the path.
    fn insert_prompt(cache: &mut PrefixCache, prompt: &[u32], next_block: &mut u32) -> Vec<NodeId> {
        let PrefixMatch { mut path, .. } = cache.find(prompt);
        cache.acquire(&path);
        for block in &prompt.as_chunks().0[path.len()..] {
            let parent = path.last().copied();
            let Some(node) = cache.insert(parent, *block, BlockId(*next_block)) else { break };
            *next_block += 1;
            path.push(node);
        }
        path
    }

    #[test]
    fn find_reports_blocks_that_are_being_computed() {
        let (mut cache, mut next_block) = (PrefixCache::default(), 0);
        let prompt = tokens(&[1, 2, 3]);
        assert_eq!(cache.find(&prompt), PrefixMatch { path: vec![], next_is_computing: false });
        let path = insert_prompt(&mut cache, &prompt, &mut next_block);
        assert_eq!(cache.find(&prompt), PrefixMatch { path: vec![], next_is_computing: true });
        cache.set_computed(path[0]);
        let found = cache.find(&tokens(&[1, 9]));
        assert_eq!(found, PrefixMatch { path: path[..1].to_vec(), next_is_computing: false });
        assert!(cache.find(&prompt).next_is_computing);
        // A prompt that leaves early frees the blocks that it did not compute.
        assert_eq!(cache.release(&path), [BlockId(2), BlockId(1)]);
        assert_eq!(
            cache.find(&prompt),
            PrefixMatch { path: path[..1].to_vec(), next_is_computing: false }
        );
        // A partial block is not cached.
        assert!(cache.find(&prompt[..BLOCK_TOKENS - 1]).path.is_empty());
    }

    #[test]
    fn evict_removes_the_least_recently_used_leaf() {
        let (mut cache, mut next_block) = (PrefixCache::default(), 0);
        let mut run = |cache: &mut PrefixCache, blocks: &[u32]| {
            let path = insert_prompt(cache, &tokens(blocks), &mut next_block);
            path.iter().for_each(|node| cache.set_computed(*node));
            assert!(cache.release(&path).is_empty());
        };
        run(&mut cache, &[1, 2]); // blocks 0, 1
        run(&mut cache, &[1, 3]); // block 2
        run(&mut cache, &[4]); // block 3
        run(&mut cache, &[1, 2]);
        assert_eq!(cache.evictable_blocks(), 4);
        let order: Vec<u32> = std::iter::from_fn(|| cache.evict()).map(|block| block.0).collect();
        assert_eq!(order, [2, 3, 1, 0]);
        assert!(cache.nodes.is_empty() && cache.children.is_empty());
    }

    proptest! {
        /// Random insertions, completions and releases lose no block and return none twice.
        #[test]
        fn release_and_evict_return_every_block_once(
            steps in proptest::collection::vec((0..4u8, proptest::collection::vec(0..3u32, 0..4)), 0..60)
        ) {
            let (mut cache, mut next_block) = (PrefixCache::default(), 0);
            let mut running: Vec<Vec<NodeId>> = Vec::new();
            let mut returned = Vec::new();
            for (action, blocks) in steps {
                match action {
                    0 | 1 => running.push(insert_prompt(&mut cache, &tokens(&blocks), &mut next_block)),
                    2 => if let Some(path) = running.first() {
                        path.iter().for_each(|node| cache.set_computed(*node));
                    },
                    _ => if !running.is_empty() {
                        let path = running.remove(blocks.len() % running.len());
                        returned.extend(cache.release(&path));
                    },
                }
                let unused = cache.nodes.values().filter(|node| node.users == 0).count();
                prop_assert_eq!(cache.evictable_blocks(), unused);
                prop_assert!(cache.nodes.values().all(|node| node.computed || node.users > 0));
            }
            for path in running {
                returned.extend(cache.release(&path));
            }
            returned.extend(std::iter::from_fn(|| cache.evict()));
            returned.sort_unstable_by_key(|block| block.0);
            prop_assert_eq!(returned, (0..next_block).map(BlockId).collect::<Vec<_>>());
        }
    }
}
