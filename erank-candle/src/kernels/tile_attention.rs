//! Attention over a BF16 cache in AMX's tiles: up to 32 queries with several blocks at a time.
//!
//! ```text
//! for each group of KV heads, for each span of blocks:
//!     values = the span's values of two blocks side by side, 32 tokens of 16 dimensions
//!     for each tile of queries:
//!         scores  = queries · keys                              [blocks][queries][16 tokens]
//!         weights = softmax(scores)                             [pairs of blocks][queries][32 tokens]
//!         sums    = sums · shrink + weights · values            [panels of head_dim][queries][16]
//! ```
//!
//! A tile takes 32 inputs. These are 32 dimensions of the keys, which the cache holds together, or the values of 32
//! tokens, which lie in two blocks. So two blocks of a sequence, the first with an even number, are always multiplied
//! together ([`AttentionKernel::BLOCKS_TOGETHER`]), and their values are copied next to each other. The copy is used by
//! all tiles of queries.
//!
//! Few queries, as in decoding, are multiplied in vector registers, which gives the same bits
//! ([`amx_vectors`](super::arch::x86_64::amx_vectors)). Their values are read where they are.
//!
//! [`AttentionKernel::BLOCKS_TOGETHER`]: super::attention_kernel::AttentionKernel::BLOCKS_TOGETHER
//!
//! The length of a span changes no bit of a result, because spans consist of whole pairs, and the softmax scales by
//! powers of two.

use std::ops::Range;

use bytemuck::Zeroable;
use half::bf16;

use super::arch::Isa;
use super::arch::x86_64::amx::{Amx, AmxRows, Block, LhsRow, PAIRS, Product, Sums, TILE_INPUTS};
use super::arch::x86_64::amx_vectors::{self, Pair, WideRow};
use super::arch::x86_64::softmax::SoftmaxRow;
use super::attention::{BLOCK_TOKENS, Run, Softmax};
use super::element::Element;
use super::tile::{NR, Prefetch, SumRow, TileRows};

/// Queries of the highest tile.
const MAX_ROWS: usize = 32;
/// Blocks of a span, if there are several tiles of queries for each KV head.
const LONG_SPAN: usize = 4;
/// Panels of values that one call multiplies.
const PANELS_AT_ONCE: usize = 8;
/// Blocks that are multiplied together.
pub(super) const BLOCKS_TOGETHER: usize = 2;

/// Returns whether heads of this size divide into tiles.
pub(super) fn divides(head_dim: usize) -> bool {
    head_dim.is_multiple_of(TILE_INPUTS)
}

/// Adds the blocks of a run to the softmax of its queries. `divides(head_dim)` must be true.
pub(super) fn add_blocks(amx: Amx, run: &Run<'_, bf16>, state: &mut Softmax<'_>) {
    let rows = run.rows();
    // With one tile for each KV head, memory is the limit, and the cache is read nearly in order. With more, the tiles
    // of one KV head fill the second cache.
    let is_one_tile = rows <= MAX_ROWS;
    let heads_at_once = if is_one_tile { run.kv_heads.len().max(1) } else { 1 };
    let span = if is_one_tile { BLOCKS_TOGETHER } else { LONG_SPAN };
    let mut scratch = Scratch::new(run.layout.head_dim, span);
    for first_head in run.kv_heads.clone().step_by(heads_at_once) {
        let kv_heads = first_head..run.kv_heads.end.min(first_head + heads_at_once);
        let mut tiles: Vec<Tile> = kv_heads
            .clone()
            .flat_map(|kv_head| {
                let rows = (0..rows).step_by(MAX_ROWS).map(|row| row..rows.min(row + MAX_ROWS));
                let state = &*state;
                rows.map(move |rows| Tile::new(run, kv_head, rows, state))
            })
            .collect();
        for start in run.numbers.clone().step_by(span) {
            let numbers = start..run.numbers.end.min(start + span);
            for (kv_head, tiles) in kv_heads.clone().zip(tiles.chunks_mut(rows.div_ceil(MAX_ROWS)))
            {
                let next = match kv_head + 1 < kv_heads.end {
                    true => (start, kv_head + 1),
                    false => (start + span, kv_heads.start),
                };
                add_span(amx, run, kv_head, numbers.clone(), next, tiles, &mut scratch);
            }
        }
        for tile in tiles {
            tile.store(state, run.layout.head_dim);
        }
    }
    amx.release();
}

/// Memory that is used for one span after another.
struct Scratch {
    /// `[panels of head_dim][pairs]` blocks of 16 rows. With a short span, only the beginning is used.
    values: Vec<LhsRow>,
    /// `[blocks][queries][16]`.
    scores: Vec<SumRow>,
    /// `[pairs][queries]`.
    weights: Vec<LhsRow>,
}

impl Scratch {
    fn new(head_dim: usize, span: usize) -> Self {
        let pairs = span / BLOCKS_TOGETHER;
        Self {
            values: vec![LhsRow::zeroed(); head_dim / NR * pairs * PAIRS],
            scores: vec![SumRow::zeroed(); span * MAX_ROWS],
            weights: vec![LhsRow::zeroed(); pairs * MAX_ROWS],
        }
    }
}

/// Adds the blocks of these numbers of one KV head to its tiles. `next` is a block's number and a KV head, which are
/// read after these blocks and may be prefetched.
fn add_span(
    amx: Amx,
    run: &Run<'_, bf16>,
    kv_head: usize,
    numbers: Range<usize>,
    next: (usize, usize),
    tiles: &mut [Tile],
    scratch: &mut Scratch,
) {
    let first = numbers.start * BLOCK_TOKENS;
    let visible = run.tokens.iter().map(|token| (token.position + 1).saturating_sub(first)).max();
    let visible = visible.unwrap_or(0).min(numbers.len() * BLOCK_TOKENS);
    let mut keys: [&[Block]; LONG_SPAN] = Default::default();
    let mut values: [&[bf16]; LONG_SPAN] = Default::default();
    let mut count = 0;
    for block in numbers.map_while(|number| run.tokens[0].block(number)) {
        if count * BLOCK_TOKENS >= visible {
            break;
        }
        let (block_keys, block_values) = run.layout.head(run.cache, block, kv_head);
        (keys[count], values[count]) = (bytemuck::cast_slice(block_keys), block_values);
        count += 1;
    }
    let (keys, values) = (&keys[..count], &values[..count]);
    if run.rows() <= amx_vectors::MAX_ROWS {
        let mut ahead = [0; BLOCKS_TOGETHER];
        for (index, (ahead, keys)) in ahead.iter_mut().zip(keys).enumerate() {
            if let Some(block) = run.tokens[0].block(next.0 + index) {
                let (next_keys, _) = run.layout.head(run.cache, block, next.1);
                *ahead = next_keys.as_ptr().addr().wrapping_sub(keys.as_ptr().addr());
            }
        }
        for tile in tiles {
            tile.add_span_in_vectors(amx, keys, values, first, ahead, scratch);
        }
        return;
    }
    let copied = run.layout.head_dim / NR * count.div_ceil(BLOCKS_TOGETHER) * PAIRS;
    copy_values(values, visible, &mut scratch.values[..copied]);
    for tile in tiles {
        tile.add_span(amx, keys, first, scratch);
    }
}

/// Copies the values of two blocks next to each other, `[panels of head_dim][pairs]` blocks of 16 rows. Values of
/// tokens that no query sees become 0, because they may be NaN.
fn copy_values(values: &[&[bf16]], visible: usize, copy: &mut [LhsRow]) {
    const HALF: usize = PAIRS / BLOCKS_TOGETHER;
    let pairs = values.len().div_ceil(BLOCKS_TOGETHER);
    // A sequence may end in the first block of a pair.
    for index in 0..pairs * BLOCKS_TOGETHER {
        let (pair, half) = (index / BLOCKS_TOGETHER, index % BLOCKS_TOGETHER);
        let seen = visible.saturating_sub(index * BLOCK_TOKENS).min(BLOCK_TOKENS).div_ceil(2);
        let values: &[[[bf16; 2]; NR]] =
            bytemuck::cast_slice(values.get(index).unwrap_or(&[].as_slice()));
        let panels = copy.chunks_exact_mut(pairs * PAIRS);
        for (panel, copy) in panels.enumerate() {
            let copy = &mut copy[pair * PAIRS + half * HALF..][..HALF];
            let seen = values.get(panel * HALF..panel * HALF + seen).unwrap_or_default();
            for (to, from) in copy.iter_mut().zip(seen) {
                to.0 = *from;
            }
            copy[seen.len()..].fill(LhsRow::zeroed());
        }
    }
}

/// Queries that are multiplied together, with their running sums.
struct Tile {
    /// The number of its first query among all queries.
    query: usize,
    height: AmxRows,
    /// Number of tokens of its sequence that each query sees.
    visible: Vec<usize>,
    /// `[head_dim / 32][height]`.
    queries: Vec<LhsRow>,
    /// The queries in F32 if they are multiplied in vector registers, and otherwise nothing.
    wide_queries: Vec<WideRow>,
    /// The factor of a score, so that its attention weight is a power of two.
    scale: f32,
    softmax: Vec<SoftmaxRow>,
    /// `[panels of head_dim][height]`.
    sums: Vec<SumRow>,
}

impl Tile {
    /// Makes the tile of some `rows` of the queries of a KV head.
    fn new(run: &Run<'_, bf16>, kv_head: usize, rows: Range<usize>, state: &Softmax<'_>) -> Self {
        let head_dim = run.layout.head_dim;
        let query = run.first_query(kv_head) + rows.start;
        let height = AmxRows::holding(rows.len());
        let mut tile = Self {
            query,
            height,
            visible: rows.clone().map(|row| run.token(row).position + 1).collect(),
            queries: vec![LhsRow::zeroed(); head_dim / TILE_INPUTS * height.rows()],
            wide_queries: Vec::new(),
            scale: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
            softmax: Vec::with_capacity(height.rows()),
            sums: vec![SumRow::zeroed(); head_dim / NR * height.rows()],
        };
        for row in 0..height.rows() {
            // The rows after the last query see nothing.
            let (power, total) = match rows.contains(&(rows.start + row)) {
                true => (state.max[query + row], state.total[query + row]),
                false => (f32::NEG_INFINITY, [0.0; NR]),
            };
            let total = SumRow(total);
            tile.softmax.push(SoftmaxRow { visible: 0, power, total, shrink: 1.0 });
        }
        let numbers = run.queries[query * head_dim..].chunks_exact(head_dim).take(rows.len());
        let from = state.sums[query * head_dim..].chunks_exact(head_dim);
        for (row, (numbers, from)) in numbers.zip(from).enumerate() {
            let parts = tile.queries[row..].iter_mut().step_by(height.rows());
            for (to, numbers) in parts.zip(numbers.chunks_exact(TILE_INPUTS)) {
                let to = to.0.as_flattened_mut();
                to.iter_mut().zip(numbers).for_each(|(to, number)| *to = Element::round(*number));
            }
            let panels = tile.sums[row..].iter_mut().step_by(height.rows());
            for (to, from) in panels.zip(from.as_chunks().0) {
                to.0 = *from;
            }
        }
        if run.rows() <= amx_vectors::MAX_ROWS {
            tile.wide_queries = tile.queries.iter().map(WideRow::of).collect();
        }
        tile
    }

    /// Sets the number of tokens that each query sees of a span of blocks, whose first token is number `first` of the
    /// sequence. Returns the largest one.
    fn set_visible(&mut self, blocks: usize, first: usize) -> usize {
        let mut most_visible = 0;
        for (row, visible) in self.softmax.iter_mut().zip(&self.visible) {
            row.visible = visible.saturating_sub(first).min(blocks * BLOCK_TOKENS);
            most_visible = most_visible.max(row.visible);
        }
        most_visible
    }

    /// Adds a span of up to [`BLOCKS_TOGETHER`] blocks to few queries. `ahead` has a distance in bytes for each block:
    /// when a line of the block is read, the line at this distance after it is prefetched.
    fn add_span_in_vectors(
        &mut self,
        amx: Amx,
        keys: &[&[Block]],
        values: &[&[bf16]],
        first: usize,
        ahead: [usize; BLOCKS_TOGETHER],
        scratch: &mut Scratch,
    ) {
        let height = self.height.rows();
        let visible = self.set_visible(keys.len(), first);
        if visible == 0 {
            return;
        }
        let count = visible.div_ceil(BLOCK_TOKENS);
        let scores: &mut [[f32; NR]] =
            bytemuck::cast_slice_mut(&mut scratch.scores[..count * height]);
        scores.fill([0.0; NR]);
        amx.multiply_few_rows(&self.wide_queries, &keys[..count], self.height, &ahead, scores);
        let weights = &mut scratch.weights[..height];
        self.weigh(amx, scores, weights);
        let mut wide = [WideRow::ZERO; amx_vectors::MAX_ROWS];
        amx.run(
            #[inline(always)]
            || wide.iter_mut().zip(weights).for_each(|(wide, row)| *wide = WideRow::of(row)),
        );
        // A sequence may end in the first block of a pair.
        let mut pairs: [&[Pair]; BLOCKS_TOGETHER] = Default::default();
        for (pairs, values) in pairs.iter_mut().zip(values) {
            *pairs = bytemuck::cast_slice(values);
        }
        let sums: &mut [[f32; NR]] = bytemuck::cast_slice_mut(&mut self.sums);
        amx.weigh_values_of_few_rows(&wide[..height], pairs, visible, self.height, ahead, sums);
    }

    /// Computes the attention weights of scores, and shrinks the sums if a score raises the power.
    fn weigh(&mut self, amx: Amx, scores: &[[f32; NR]], weights: &mut [LhsRow]) {
        let height = self.height.rows();
        let vectors = amx.vectors();
        vectors.softmax(scores, self.scale, &mut self.softmax, weights);
        vectors.run(
            #[inline(always)]
            || {
                for (row, softmax) in self.softmax.iter().enumerate() {
                    if softmax.shrink != 1.0 {
                        for sums in self.sums[row..].iter_mut().step_by(height) {
                            sums.0.iter_mut().for_each(|sum| *sum *= softmax.shrink);
                        }
                    }
                }
            },
        );
    }

    /// Adds a span of blocks whose first token is number `first` of the sequence.
    fn add_span(&mut self, amx: Amx, keys: &[&[Block]], first: usize, scratch: &mut Scratch) {
        let height = self.height.rows();
        let most_visible = self.set_visible(keys.len(), first);
        if most_visible == 0 {
            return;
        }
        let count = most_visible.div_ceil(BLOCK_TOKENS);
        let all_pairs = keys.len().div_ceil(BLOCKS_TOGETHER);
        let pairs = count.div_ceil(BLOCKS_TOGETHER);
        let scores = &mut scratch.scores[..count * height];
        let scores: &mut [[f32; NR]] = bytemuck::cast_slice_mut(scores);
        let (mr, prefetch) = (self.height, Prefetch::NONE);
        let (lhs, then) = (self.queries.as_slice(), Sums::Replace);
        let is_streamed = true;
        let product = Product { lhs, mr, sums: scores, then, is_streamed, prefetch };
        amx.multiply_tiles([product].into_iter(), &keys[..count]);

        let weights = &mut scratch.weights[..pairs * height];
        self.weigh(amx, scores, weights);

        let values: &[Block] = bytemuck::cast_slice(&scratch.values);
        let mut panels: [&[Block]; PANELS_AT_ONCE] = Default::default();
        let sums: &mut [[f32; NR]] = bytemuck::cast_slice_mut(&mut self.sums);
        let groups = values[..sums.len() / height * all_pairs].chunks(PANELS_AT_ONCE * all_pairs);
        for (values, sums) in groups.zip(sums.chunks_mut(PANELS_AT_ONCE * height)) {
            let count = sums.len() / height;
            for (panel, values) in panels.iter_mut().zip(values.chunks(all_pairs)) {
                *panel = &values[..pairs];
            }
            let then = Sums::Add;
            let product = Product { lhs: weights, mr, sums, then, is_streamed, prefetch };
            amx.multiply_tiles([product].into_iter(), &panels[..count]);
        }
    }

    /// Writes the running state back.
    fn store(&self, state: &mut Softmax<'_>, head_dim: usize) {
        let height = self.height.rows();
        let to = state.sums[self.query * head_dim..].chunks_exact_mut(head_dim);
        for (row, (to, softmax)) in to.zip(&self.softmax).take(self.visible.len()).enumerate() {
            state.max[self.query + row] = softmax.power;
            state.total[self.query + row] = softmax.total.0;
            let from = self.sums[row..].iter().step_by(height);
            for (to, from) in to.as_chunks_mut().0.iter_mut().zip(from) {
                *to = from.0;
            }
        }
    }
}
