//! Grouped-query attention over the blocks of the KV cache, for tokens of any sequences at once.
//!
//! A block holds the keys and values of 16 tokens for every KV head, in the panels that an [`AttentionKernel`]
//! multiplies: keys as `[head_dim][16 tokens]`, so that a product with the queries gives 16 scores, and
//! values as `[head_dim / 16][16 tokens][16]`, so that a product with the attention weights gives 16 sums. In
//! BF16, pairs of dimensions of the keys and pairs of tokens of the values lie together; in 8 bits, fours do, and the
//! tokens' scales follow the keys, and the values.
//!
//! ```text
//! attend(tokens, start):
//!     for each block that all of the tokens have in common, from index start on:
//!         for each KV head, for each query of each token:
//!             scores  = q · keys / √head_dim,     keys after the token's own position excluded
//!             max'    = max(max, scores)
//!             weights = exp(scores − max'), rounded to the cache's type
//!             total   = total · exp(max − max') + weights
//!             sums    = sums  · exp(max − max') + weights · values
//!     for each run of tokens that continue with the same block: attend(run, its index)
//! out = sums / total
//! ```
//!
//! So a block that several tokens see, of one prompt or of prompts with a common prefix, is one matrix
//! product for all of them. Each query is multiplied with its blocks in the order of its sequence, and its
//! sums do not depend on other queries.
//!
//! With few queries, attention is limited by memory. A block is then read from its first byte to its last before the
//! next one, because processors prefetch by themselves only memory that is read in order. With many queries, arithmetic
//! is the limit. The scores of several blocks are then computed first, so that products do not wait for each other or
//! for the softmax. Each query's sums are the same in both orders.

use std::ops::Range;

use super::arch::{Isa, features};
use super::attention_kernel::{AttentionKernel, CacheElement};
use super::element::Element;
use super::exp::{exp, exp_of};
use super::tile::{MAX_ROWS, Mr, NR, TileRows};

/// Tokens in a block.
pub(crate) const BLOCK_TOKENS: usize = NR;

/// With up to this number of queries of a KV head, attention is limited by memory, and the cache is read strictly in
/// order.
const FEW_QUERIES: usize = 4;

/// The largest number of blocks whose scores are computed before their weights.
pub(super) const MAX_BLOCKS: usize = 4;

/// The layout of a layer's cache, `[blocks][KV heads]`. Each entry holds the keys and then the values of 16
/// tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockLayout {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl BlockLayout {
    /// Returns the length of 16 tokens' keys of one KV head.
    fn keys_size<E: CacheElement>(self) -> usize {
        self.head_dim.next_multiple_of(E::DEPTH) * BLOCK_TOKENS + E::SCALES
    }

    /// Returns the length of 16 tokens' values of one KV head.
    fn values_size<E: CacheElement>(self) -> usize {
        self.head_dim.next_multiple_of(NR) * BLOCK_TOKENS + E::SCALES
    }

    /// Returns how many numbers one block of one layer holds.
    pub(crate) fn block_size<E: CacheElement>(self) -> usize {
        self.kv_heads * (self.keys_size::<E>() + self.values_size::<E>())
    }

    /// Returns the keys and the values of one KV head in one block.
    pub(super) fn head<E: CacheElement>(
        self,
        cache: &[E],
        block: u32,
        kv_head: usize,
    ) -> (&[E], &[E]) {
        let size = self.keys_size::<E>() + self.values_size::<E>();
        let start = block as usize * self.block_size::<E>() + kv_head * size;
        cache[start..start + size].split_at(self.keys_size::<E>())
    }

    /// Prefetches the part of one KV head of a block, if there is such a head. [`write`](Self::write) touches a word of
    /// most of its lines, which processors do not foresee.
    #[inline(always)]
    pub(crate) fn prefetch<E: CacheElement>(self, block: &[E], kv_head: usize) {
        let size = self.keys_size::<E>() + self.values_size::<E>();
        for line in block[(kv_head * size).min(block.len())..]
            .chunks(64 / size_of::<E>())
            .take(size * size_of::<E>() / 64)
        {
            features::prefetch(line.as_ptr().cast());
        }
    }

    /// Writes one token's key and value of one KV head, `head_dim` numbers each, to `slot` of a `block`.
    /// Slots are written in order.
    #[inline(always)]
    pub(crate) fn write<E: CacheElement>(
        self,
        block: &mut [E],
        slot: usize,
        kv_head: usize,
        (key, value): (&[f32], &[f32]),
    ) {
        let size = self.keys_size::<E>() + self.values_size::<E>();
        let head = &mut block[kv_head * size..(kv_head + 1) * size];
        let (keys, values) = head.split_at_mut(self.keys_size::<E>());
        let (keys, key_scales) = keys.split_at_mut(keys.len() - E::SCALES);
        let (values, value_scales) = values.split_at_mut(values.len() - E::SCALES);
        let (key_scale, value_scale) = (E::scale(key), E::scale(value));
        E::write_scale(key_scales, slot, key_scale);
        E::write_scale(value_scales, slot, value_scale);
        let slots = (keys, values, slot);
        match E::DEPTH {
            1 => write_words::<E, 1>(slots, (key, key_scale), (value, value_scale)),
            2 => write_words::<E, 2>(slots, (key, key_scale), (value, value_scale)),
            _ => write_words::<E, 4>(slots, (key, key_scale), (value, value_scale)),
        }
    }
}

/// Numbers of a key or a value that are rounded together, in one loop that the compiler vectorises.
const PART: usize = 64;

/// Writes a key and a value, with their scales, to a slot of a KV head's keys and values in words of `DEPTH` numbers.
#[inline(always)]
fn write_words<E: CacheElement, const DEPTH: usize>(
    (keys, values, slot): (&mut [E], &mut [E], usize),
    (key, key_scale): (&[f32], f32),
    (value, value_scale): (&[f32], f32),
) {
    let (keys, values) = (keys.as_chunks_mut::<DEPTH>().0, values.as_chunks_mut::<DEPTH>().0);
    for (keys, key) in keys.chunks_mut(PART / DEPTH * BLOCK_TOKENS).zip(key.chunks(PART)) {
        let rounded: [E; PART] = round_part(key, key_scale);
        let words = rounded.as_chunks::<DEPTH>().0;
        for (keys, word) in keys.as_chunks_mut::<BLOCK_TOKENS>().0.iter_mut().zip(words) {
            keys[slot] = *word;
        }
    }
    let (word, index) = (slot / DEPTH, slot % DEPTH);
    let words_of_panel = NR * BLOCK_TOKENS / DEPTH;
    for (values, value) in values.chunks_mut(PART / NR * words_of_panel).zip(value.chunks(PART)) {
        let rounded: [E; PART] = round_part(value, value_scale);
        let panels = values.chunks_exact_mut(words_of_panel);
        for (panel, value) in panels.zip(rounded.as_chunks::<NR>().0) {
            for (to, value) in panel.as_chunks_mut::<NR>().0[word].iter_mut().zip(value) {
                for (number, to) in to.iter_mut().enumerate() {
                    // The rest of the word is not written yet, and is multiplied by 0. A NaN that another
                    // sequence left there would spoil the sum.
                    if number >= index {
                        *to = if number == index { *value } else { E::round(0.0) };
                    }
                }
            }
        }
    }
}

/// Rounds up to [`PART`] numbers, divided by their scale. The others are 0.
#[inline(always)]
fn round_part<E: CacheElement>(numbers: &[f32], scale: f32) -> [E; PART] {
    let mut rounded = [E::round(0.0); PART];
    for (rounded, number) in rounded.iter_mut().zip(numbers) {
        *rounded = E::round(*number / scale);
    }
    rounded
}

/// The view of a token whose queries attend: the blocks of its sequence, and its own position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visible<'a> {
    pub(crate) blocks: &'a [u32],
    pub(crate) position: usize,
}

impl Visible<'_> {
    /// Returns block number `number` of the sequence.
    pub(super) fn block(&self, number: usize) -> Option<u32> {
        self.blocks.get(number).copied()
    }

    /// Returns whether the token sees a position of block number `number` of its sequence.
    fn sees(&self, number: usize) -> bool {
        self.position >= number * BLOCK_TOKENS
    }
}

/// Computes attention of the queries of some KV heads over the positions that their tokens see.
///
/// `queries` and `out` are `[KV heads][tokens][query heads of a KV head][head_dim]`.
pub(crate) fn attend<K: AttentionKernel>(
    kernel: K,
    layout: BlockLayout,
    cache: &[K::Element],
    tokens: &[Visible<'_>],
    kv_heads: Range<usize>,
    queries: &[f32],
    out: &mut [f32],
) {
    let count = queries.len() / layout.head_dim;
    let of_kv_head = count / kv_heads.len().max(1);
    let heads = of_kv_head / tokens.len().max(1);
    let group = Group { kernel, layout, cache, kv_heads, queries, of_kv_head, heads };
    out.fill(0.0);
    let mut state = Softmax {
        max: &mut vec![f32::NEG_INFINITY; count],
        total: &mut vec![[0.0; NR]; count],
        sums: out,
    };
    group.descend(tokens, 0, 0, &mut state);
    let Softmax { total, sums, .. } = state;
    for (sums, total) in sums.chunks_exact_mut(layout.head_dim).zip(total) {
        let total: f32 = total.iter().sum();
        sums.iter_mut().for_each(|sum| *sum /= total);
    }
}

/// KV heads with the queries that attend to them.
struct Group<'a, K: AttentionKernel> {
    kernel: K,
    layout: BlockLayout,
    cache: &'a [K::Element],
    kv_heads: Range<usize>,
    /// `[KV heads][tokens][heads][head_dim]`.
    queries: &'a [f32],
    /// Queries per KV head.
    of_kv_head: usize,
    /// Query heads per token and KV head.
    heads: usize,
}

/// The running state of the online softmax, by query.
pub(crate) struct Softmax<'a> {
    /// The largest score so far, or the kernel's own measure of it.
    pub(super) max: &'a mut [f32],
    /// Sums of weights, by slot of a block.
    pub(super) total: &'a mut [[f32; NR]],
    /// `[queries][head_dim]`.
    pub(super) sums: &'a mut [f32],
}

/// Neighbouring tokens with blocks that they have in common, and the queries of some KV heads.
pub(crate) struct Run<'a, E> {
    pub(super) layout: BlockLayout,
    pub(super) cache: &'a [E],
    pub(super) tokens: &'a [Visible<'a>],
    /// The number of the first of these tokens among all tokens.
    first: usize,
    /// The numbers of the blocks.
    pub(super) numbers: Range<usize>,
    pub(super) kv_heads: Range<usize>,
    /// `[KV heads][all tokens][heads][head_dim]`.
    pub(super) queries: &'a [f32],
    /// Queries per KV head.
    of_kv_head: usize,
    /// Query heads per token and KV head.
    heads: usize,
}

impl<E> Run<'_, E> {
    /// Returns the number of queries of a KV head.
    pub(super) fn rows(&self) -> usize {
        self.tokens.len() * self.heads
    }

    /// Returns the keys and the values of a KV head in up to [`MAX_BLOCKS`] blocks of the sequence. Missing ones are
    /// empty.
    fn heads_of_blocks(
        &self,
        numbers: &[usize],
        kv_head: usize,
    ) -> ([&[E]; MAX_BLOCKS], [&[E]; MAX_BLOCKS])
    where
        E: CacheElement,
    {
        let (mut keys, mut values): ([&[E]; MAX_BLOCKS], [&[E]; MAX_BLOCKS]) = Default::default();
        for (number, (keys, values)) in numbers.iter().zip(keys.iter_mut().zip(&mut values)) {
            if let Some(block) = self.tokens[0].block(*number) {
                (*keys, *values) = self.layout.head(self.cache, block, kv_head);
            }
        }
        (keys, values)
    }

    /// Returns the number of a KV head's first query among all queries.
    pub(super) fn first_query(&self, kv_head: usize) -> usize {
        (kv_head - self.kv_heads.start) * self.of_kv_head + self.first * self.heads
    }

    /// Returns the token of a KV head's query `row`.
    pub(super) fn token(&self, row: usize) -> Visible<'_> {
        self.tokens[row / self.heads]
    }
}

impl<K: AttentionKernel> Group<'_, K> {
    /// Adds the blocks that `tokens` see from block number `number` on. `first` is the number of the first of
    /// these tokens among all tokens.
    fn descend(
        &self,
        tokens: &[Visible<'_>],
        first: usize,
        number: usize,
        state: &mut Softmax<'_>,
    ) {
        const { assert!(K::BLOCKS_TOGETHER > 0) }
        let is_common = |tokens: &[Visible<'_>], number: usize| {
            (number..number + K::BLOCKS_TOGETHER)
                .all(|number| tokens.iter().all(|t| t.block(number) == tokens[0].block(number)))
        };
        let mut end = number;
        while tokens.iter().any(|token| token.sees(end)) && is_common(tokens, end) {
            end += K::BLOCKS_TOGETHER;
        }
        if end > number {
            let Self { layout, cache, queries, of_kv_head, heads, .. } = *self;
            let (kv_heads, numbers) = (self.kv_heads.clone(), number..end);
            let run =
                Run { layout, cache, tokens, first, numbers, kv_heads, queries, of_kv_head, heads };
            self.kernel.add_blocks(&run, state);
        }
        let mut first = first;
        for run in tokens.chunk_by(|a, b| is_common(&[*a, *b], end)) {
            if run.iter().any(|token| token.sees(end)) {
                self.descend(run, first, end, state);
            }
            first += run.len();
        }
    }
}

/// Adds the blocks of a run, one after another.
pub(super) fn add_blocks<K: AttentionKernel>(
    kernel: K,
    run: &Run<'_, K::Element>,
    state: &mut Softmax<'_>,
) {
    let max_mr = K::Isa::MAX_MR.rows();
    let rows = run.rows();
    // The tiles are in the order of KV heads, then of queries.
    let mut tiles = Vec::with_capacity(run.kv_heads.len() * rows.div_ceil(max_mr));
    for kv_head in run.kv_heads.clone() {
        for row in (0..rows).step_by(max_mr) {
            tiles.push(Tile::new(kernel, run, kv_head, row..rows.min(row + max_mr), state));
        }
    }
    let has_block = |number: &usize| run.tokens[0].block(*number).is_some();
    let numbers: Vec<usize> = run.numbers.clone().take_while(has_block).collect();
    const { assert!(K::BLOCKS_AT_ONCE > 0 && K::BLOCKS_AT_ONCE <= MAX_BLOCKS) }
    let at_once = if rows <= FEW_QUERIES { 1 } else { K::BLOCKS_AT_ONCE };
    let groups: Vec<&[usize]> = numbers.chunks(at_once).collect();
    for (index, numbers) in groups.iter().enumerate() {
        let of_kv_heads = tiles.chunks_exact_mut(rows.div_ceil(max_mr));
        for (kv_head, tiles) in run.kv_heads.clone().zip(of_kv_heads) {
            let (keys, values) = run.heads_of_blocks(numbers, kv_head);
            let (next_keys, _) = match kv_head + 1 < run.kv_heads.end {
                true => run.heads_of_blocks(numbers, kv_head + 1),
                false => {
                    let next = groups.get(index + 1).copied().unwrap_or_default();
                    run.heads_of_blocks(next, run.kv_heads.start)
                }
            };
            let (keys, values) = (&keys[..numbers.len()], &values[..numbers.len()]);
            for tile in tiles {
                kernel.isa().run(
                    #[inline(always)]
                    || {
                        let first = numbers[0] * BLOCK_TOKENS;
                        tile.add_blocks(kernel, keys, values, &next_keys, first);
                    },
                );
            }
        }
    }
    for tile in tiles {
        tile.store(state, run.layout.head_dim);
    }
}

/// Queries that are multiplied together, with their running sums.
struct Tile<K: AttentionKernel> {
    /// The number of its first query among all queries.
    query: usize,
    scale: f32,
    rows: usize,
    mr: Mr,
    /// Tokens of its sequence that each query sees.
    visible: [usize; MAX_ROWS],
    /// `[head_dim / DEPTH][mr]`.
    queries: Vec<K::Query>,
    max: [f32; MAX_ROWS],
    total: [[f32; NR]; MAX_ROWS],
    /// `[panels of head_dim][mr][16]`.
    sums: Vec<[f32; NR]>,
}

impl<K: AttentionKernel> Tile<K> {
    /// Makes the tile of some `rows` of the queries of a KV head.
    fn new(
        kernel: K,
        run: &Run<'_, K::Element>,
        kv_head: usize,
        rows: Range<usize>,
        state: &Softmax<'_>,
    ) -> Self {
        let head_dim = run.layout.head_dim;
        let query = run.first_query(kv_head) + rows.start;
        let mr = Mr::holding(rows.len());
        let height = mr.rows();
        let mut tile = Self {
            query,
            scale: 1.0 / (head_dim as f32).sqrt(),
            rows: rows.len(),
            mr,
            visible: [0; MAX_ROWS],
            queries: vec![K::Query::default(); head_dim.div_ceil(K::Element::DEPTH) * height],
            max: [f32::NEG_INFINITY; MAX_ROWS],
            total: [[0.0; NR]; MAX_ROWS],
            sums: vec![[0.0; NR]; head_dim.div_ceil(NR) * height],
        };
        let numbers = &run.queries[query * head_dim..][..rows.len() * head_dim];
        kernel.isa().run(
            #[inline(always)]
            || K::pack_queries(numbers, head_dim, height, &mut tile.queries),
        );
        for (visible, row) in tile.visible.iter_mut().zip(rows.clone()) {
            *visible = run.token(row).position + 1;
        }
        let all = query..query + rows.len();
        tile.max[..rows.len()].copy_from_slice(&state.max[all.clone()]);
        tile.total[..rows.len()].copy_from_slice(&state.total[all]);
        let from = state.sums[query * head_dim..].chunks(head_dim).take(rows.len());
        for (row, from) in from.enumerate() {
            for (to, from) in tile.sums[row..].iter_mut().step_by(height).zip(from.chunks(NR)) {
                to[..from.len()].copy_from_slice(from);
            }
        }
        tile
    }

    /// Writes the running sums back.
    fn store(&self, state: &mut Softmax<'_>, head_dim: usize) {
        let all = self.query..self.query + self.rows;
        state.max[all.clone()].copy_from_slice(&self.max[..self.rows]);
        state.total[all].copy_from_slice(&self.total[..self.rows]);
        let to = state.sums[self.query * head_dim..].chunks_mut(head_dim).take(self.rows);
        for (row, to) in to.enumerate() {
            let from = self.sums[row..].iter().step_by(self.mr.rows());
            for (to, from) in to.chunks_mut(NR).zip(from) {
                to.copy_from_slice(&from[..to.len()]);
            }
        }
    }

    /// Adds up to [`MAX_BLOCKS`] neighbouring blocks, of which the first token is number `first` of the sequence.
    /// `next_keys` are read next.
    #[inline(always)]
    fn add_blocks(
        &mut self,
        kernel: K,
        keys: &[&[K::Element]],
        values: &[&[K::Element]],
        next_keys: &[&[K::Element]],
        first: usize,
    ) {
        let height = self.mr.rows();
        // The number of tokens of each block that a query of the tile sees.
        let last = self.visible.into_iter().max().unwrap_or(0);
        let seen = |block: usize| last.saturating_sub(first + block * BLOCK_TOKENS);
        let visible: [usize; MAX_BLOCKS] =
            std::array::from_fn(|block| seen(block).min(BLOCK_TOKENS));
        let count = keys.len().min(last.saturating_sub(first).div_ceil(BLOCK_TOKENS));
        let (keys, values, visible) = (&keys[..count], &values[..count], &visible[..count]);

        let mut scores = [[0.0; NR]; MAX_BLOCKS * MAX_ROWS];
        let scores = &mut scores[..count * height];
        kernel.scores(&self.queries, keys, self.mr, scores);

        // The values of the blocks before this number are weighed.
        let mut weighed = 0;
        for block in 0..count {
            let first = first + block * BLOCK_TOKENS;
            let (before, scores) = scores.split_at_mut(block * height);
            let scores = &mut scores[..height];
            // Only the last blocks of a sequence need a mask.
            let is_whole = self.visible[..self.rows].iter().all(|end| *end >= first + BLOCK_TOKENS);
            let raises = match is_whole {
                true => self.scale_and_mask::<false>(scores, first),
                false => self.scale_and_mask::<true>(scores, first),
            };
            if raises {
                // The sums shrink after the values of earlier blocks are added.
                let weights = &before[weighed * height..];
                let range = weighed..block;
                let (values, visible) = (&values[range.clone()], &visible[range]);
                kernel.weigh_values(weights, values, self.mr, visible, &[], &mut self.sums);
                weighed = block;
                self.raise_max(scores);
            }
            match is_whole {
                true => self.weigh::<false>(scores, first),
                false => self.weigh::<true>(scores, first),
            }
        }
        let weights = &scores[weighed * height..];
        let (values, visible) = (&values[weighed..], &visible[weighed..]);
        kernel.weigh_values(weights, values, self.mr, visible, next_keys, &mut self.sums);
    }

    /// Returns how many tokens each query sees of the block that begins with token `first`.
    #[inline(always)]
    fn visible_of_block(&self, row: usize, first: usize) -> u32 {
        self.visible[row].saturating_sub(first).min(BLOCK_TOKENS) as u32
    }

    /// Scales the scores of a block, and sets those that a query does not see to −∞. Returns whether a score exceeds
    /// the largest one of its query, or is NaN.
    #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "the comparison is true for NaN, too")]
    #[inline(always)]
    fn scale_and_mask<const MASK: bool>(&self, scores: &mut [[f32; NR]], first: usize) -> bool {
        let mut raises = false;
        for (row, scores) in scores.iter_mut().enumerate() {
            // Slots after a query's own position belong to other tokens or are unused.
            let visible = self.visible_of_block(row, first);
            let max = self.max[row];
            for (slot, score) in scores.iter_mut().enumerate() {
                let scaled = *score * self.scale;
                let is_hidden = MASK && slot as u32 >= visible;
                *score = if is_hidden { f32::NEG_INFINITY } else { scaled };
            }
            raises |= scores.iter().fold(false, |raises, score| raises | !(*score <= max));
        }
        raises
    }

    /// Raises the largest scores to those of a block, and shrinks the sums accordingly.
    #[inline(always)]
    fn raise_max(&mut self, scores: &[[f32; NR]]) {
        for (row, scores) in scores.iter().enumerate() {
            let before = self.max[row];
            let mut max = order(before.to_bits().cast_signed());
            for score in scores {
                max = max.max(order(score.to_bits().cast_signed()));
            }
            let max = f32::from_bits(order(max).cast_unsigned());
            if max != before {
                let shrink = exp(before - max);
                self.max[row] = max;
                self.total[row].iter_mut().for_each(|total| *total *= shrink);
                for sums in self.sums[row..].iter_mut().step_by(self.mr.rows()) {
                    sums.iter_mut().for_each(|sum| *sum *= shrink);
                }
            }
        }
    }

    /// Replaces the scores of a block by their weights, and adds these to the totals.
    #[inline(always)]
    fn weigh<const MASK: bool>(&mut self, scores: &mut [[f32; NR]], first: usize) {
        for (row, scores) in scores.iter_mut().enumerate() {
            let visible = self.visible_of_block(row, first);
            let (max, total) = (self.max[row], &mut self.total[row]);
            for (slot, score) in scores.iter_mut().enumerate() {
                let weight = K::Element::round_activation(exp_of::<K::Isa>(*score - max));
                *score = if MASK && slot as u32 >= visible { 0.0 } else { weight };
                total[slot] += *score;
            }
        }
    }
}

/// Maps the bits of a float to an integer with the same order. The function is its own inverse.
///
/// A maximum of integers is one instruction in any order; a maximum of floats is not.
#[inline(always)]
fn order(bits: i32) -> i32 {
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

#[cfg(test)]
#[path = "tests/attention.rs"]
mod tests;
