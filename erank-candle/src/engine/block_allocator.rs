//! The ownership of the KV cache's blocks.

use crate::model::step::BlockId;

/// A fixed number of blocks, allocated and freed one at a time.
#[derive(Debug)]
pub struct BlockAllocator {
    /// Whether each block is allocated.
    allocated: Vec<bool>,
    free: Vec<BlockId>,
}

impl BlockAllocator {
    /// Creates an allocator of `blocks` free blocks. Blocks whose ids exceed 32 bits are left out.
    pub fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).unwrap_or(u32::MAX);
        // Blocks are taken from the end, so the lowest id comes first.
        let free = (0..count).rev().map(BlockId).collect();
        Self { allocated: vec![false; count as usize], free }
    }

    /// Allocates a block. Returns `None` if all are allocated.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.allocated[block.0 as usize] = true;
        Some(block)
    }

    /// Frees a block. Ignores a block that is already free, and a block id outside this allocator.
    pub fn free(&mut self, block: BlockId) {
        if self.allocated.get_mut(block.0 as usize).is_some_and(std::mem::take) {
            self.free.push(block);
        }
    }

    /// Returns the number of free blocks.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Returns the number of all blocks.
    pub fn blocks(&self) -> usize {
        self.allocated.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocate_returns_each_block_once_until_it_is_freed() {
        let mut allocator = BlockAllocator::new(2);
        let first = allocator.allocate().expect("a free block");
        let second = allocator.allocate().expect("a free block");
        assert!(first != second && allocator.allocate().is_none());
        allocator.free(first);
        assert_eq!(allocator.free_blocks(), 1);
        assert_eq!(allocator.allocate(), Some(first));
    }

    #[test]
    fn free_ignores_free_and_foreign_blocks() {
        let mut allocator = BlockAllocator::new(1);
        let block = allocator.allocate().expect("a free block");
        allocator.free(block);
        allocator.free(block);
        allocator.free(BlockId(1));
        assert_eq!((allocator.free_blocks(), allocator.blocks()), (1, 1));
    }
}
