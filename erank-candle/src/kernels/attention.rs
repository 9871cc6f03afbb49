//! Grouped-query attention over the blocks of the KV cache, for tokens of any sequences at once.
//!
//! A block holds 16 tokens' keys and values of every KV head, in the panels that
//! [`Products`] multiply: keys as `[head_dim][16 tokens]`, so that a product with the queries gives 16
//! scores, and values as `[head_dim / 16][16 tokens][16]`, so that a product with the weights gives 16
//! sums. Where numbers are multiplied in pairs, pairs of dimensions and pairs of tokens lie together.
//!
//! ```text
//! attend(tokens, from):
//!     for each block that all of the tokens have in common, from there on:
//!         for each KV head, for each query of each token:
//!             scores  = q · keys / √head_dim,     keys behind the token's own position excluded
//!             largest' = max(largest, scores)
//!             weights = exp(scores − largest'), rounded to the cache's precision
//!             total   = total · exp(largest − largest') + weights
//!             sums    = sums  · exp(largest − largest') + weights · values
//!     for each run of tokens that go on with the same block: attend(run, there)
//! out = sums / total
//! ```
//!
//! So a block that several tokens see, of one prompt or of prompts with a common beginning, is one
//! matrix product for all of them. A query meets its blocks in the order of its sequence, and what
//! it adds up does not depend on who else does.
//!
//! A block is read from its first byte to its last, then the next one: with a few queries, attention
//! takes as long as its memory does, and processors fetch ahead only what is read in order.

use std::ops::Range;

use super::exp::exp;
use super::products::Products;
use super::{Element, InstructionSet, LANES};

/// Tokens in a block.
pub(crate) const BLOCK_TOKENS: usize = LANES;
/// Queries of the tallest tile of any set.
const TALLEST: usize = 8;

/// Where a KV head's numbers lie in a layer's cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockLayout {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl BlockLayout {
    fn keys_size(self) -> usize {
        // Room for pairs.
        self.head_dim.next_multiple_of(2) * BLOCK_TOKENS
    }

    fn values_size(self) -> usize {
        self.head_dim.next_multiple_of(LANES) * BLOCK_TOKENS
    }

    /// Numbers in one block of one layer.
    pub(crate) fn block_size(self) -> usize {
        self.kv_heads * (self.keys_size() + self.values_size())
    }

    /// The keys and the values of one KV head in one block.
    fn head<T>(self, cache: &[T], block: u32, kv_head: usize) -> (&[T], &[T]) {
        let size = self.keys_size() + self.values_size();
        let start = block as usize * self.block_size() + kv_head * size;
        cache[start..start + size].split_at(self.keys_size())
    }

    /// Writes one token's key and value of one KV head at `slot` of a `block`. Slots are written in
    /// order.
    #[inline(always)]
    pub(crate) fn write<P: Products>(
        self,
        block: &mut [P::Right],
        slot: usize,
        kv_head: usize,
        (key, value): (&[f32], &[f32]),
    ) {
        let size = self.keys_size() + self.values_size();
        let head = &mut block[kv_head * size..(kv_head + 1) * size];
        let (keys, values) = head.split_at_mut(self.keys_size());
        let (group, place) = (slot / P::DEPTH, slot % P::DEPTH);
        for (keys, key) in keys.chunks_exact_mut(BLOCK_TOKENS * P::DEPTH).zip(key.chunks(P::DEPTH))
        {
            for (to, key) in keys[slot * P::DEPTH..].iter_mut().zip(key) {
                *to = P::Right::round(*key);
            }
        }
        let panels = values.chunks_exact_mut(BLOCK_TOKENS * LANES);
        for (panel, value) in panels.zip(value.chunks(LANES)) {
            let panel = &mut panel[group * LANES * P::DEPTH..];
            for (to, value) in panel.chunks_exact_mut(P::DEPTH).zip(value) {
                to[place] = P::Right::round(*value);
                // The rest of a group, which is yet to be written, is multiplied by 0: whatever
                // another sequence left there must not be NaN.
                to[place + 1..].fill(P::Right::round(0.0));
            }
        }
    }
}

/// A token whose queries attend: its sequence's blocks, and its position there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visible<'a> {
    pub(crate) blocks: &'a [u32],
    pub(crate) position: usize,
}

impl Visible<'_> {
    /// The sequence's block of this number.
    fn block(&self, number: usize) -> Option<u32> {
        self.blocks.get(number).copied()
    }

    /// Whether it sees something of its sequence's block of this number.
    fn sees(&self, number: usize) -> bool {
        self.position >= number * BLOCK_TOKENS
    }
}

/// The queries of some KV heads attend over what their tokens see.
///
/// `queries` and `out` are `[KV heads][tokens][query heads of a KV head][head_dim]`.
pub(crate) fn attend<P: Products>(
    set: InstructionSet,
    layout: BlockLayout,
    cache: &[P::Right],
    tokens: &[Visible<'_>],
    kv_heads: Range<usize>,
    queries: &[f32],
    out: &mut [f32],
) {
    let count = queries.len() / layout.head_dim;
    let of_kv_head = count / kv_heads.len().max(1);
    let heads = of_kv_head / tokens.len().max(1);
    let group = Group::<P> { set, layout, cache, kv_heads, queries, of_kv_head, heads };
    out.fill(0.0);
    let mut state = Softmax {
        largest: &mut vec![f32::NEG_INFINITY; count],
        total: &mut vec![[0.0; LANES]; count],
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
struct Group<'a, P: Products> {
    set: InstructionSet,
    layout: BlockLayout,
    cache: &'a [P::Right],
    kv_heads: Range<usize>,
    /// `[KV heads][tokens][heads][head_dim]`.
    queries: &'a [f32],
    /// Queries of a KV head.
    of_kv_head: usize,
    /// Query heads of a token and a KV head.
    heads: usize,
}

/// Running softmax-weighted sums, by query.
struct Softmax<'a> {
    largest: &'a mut [f32],
    /// Added up lane by lane.
    total: &'a mut [[f32; LANES]],
    /// `[queries][head_dim]`.
    sums: &'a mut [f32],
}

impl<P: Products> Group<'_, P> {
    /// Adds what `tokens`, which begin at `first` of all, see from their block `number` on.
    fn descend(
        &self,
        tokens: &[Visible<'_>],
        first: usize,
        number: usize,
        state: &mut Softmax<'_>,
    ) {
        let mut end = number;
        while tokens.iter().any(|token| token.sees(end))
            && tokens.iter().all(|token| token.block(end) == tokens[0].block(end))
        {
            end += 1;
        }
        if end > number {
            self.add_blocks(tokens, first, number..end, state);
        }
        let mut first = first;
        for run in tokens.chunk_by(|a, b| a.block(end) == b.block(end)) {
            if run.iter().any(|token| token.sees(end)) {
                self.descend(run, first, end, state);
            }
            first += run.len();
        }
    }

    /// Adds the blocks of these numbers, which all of `tokens` have in common.
    fn add_blocks(
        &self,
        tokens: &[Visible<'_>],
        first: usize,
        numbers: Range<usize>,
        state: &mut Softmax<'_>,
    ) {
        let tallest = self.set.tallest_tile();
        let rows = tokens.len() * self.heads;
        // By KV head, then by query.
        let mut tiles = Vec::with_capacity(self.kv_heads.len() * rows.div_ceil(tallest));
        for kv_head in 0..self.kv_heads.len() {
            for row in (0..rows).step_by(tallest) {
                let query = kv_head * self.of_kv_head + first * self.heads + row;
                let rows = row..rows.min(row + tallest);
                tiles.push(self.tile(tokens, query, rows, state));
            }
        }
        for number in numbers {
            let Some(block) = tokens[0].block(number) else { break };
            let of_kv_heads = tiles.chunks_exact_mut(rows.div_ceil(tallest));
            for (kv_head, tiles) in self.kv_heads.clone().zip(of_kv_heads) {
                let (keys, values) = self.layout.head(self.cache, block, kv_head);
                for tile in tiles {
                    self.set.run(
                        #[inline(always)]
                        || tile.add_block(self.set, keys, values, number * BLOCK_TOKENS),
                    );
                }
            }
        }
        for tile in tiles {
            tile.store(state, self.layout.head_dim);
        }
    }

    /// The tile of some `rows` of the queries of `tokens`, of which the first is `query` of all.
    fn tile(
        &self,
        tokens: &[Visible<'_>],
        query: usize,
        rows: Range<usize>,
        state: &Softmax<'_>,
    ) -> Tile<P> {
        let head_dim = self.layout.head_dim;
        let height = rows.len().next_power_of_two();
        let mut tile = Tile {
            query,
            scale: 1.0 / (head_dim as f32).sqrt(),
            rows: rows.len(),
            height,
            visible: [0; TALLEST],
            queries: vec![P::Left::default(); head_dim.div_ceil(P::DEPTH) * height],
            largest: [f32::NEG_INFINITY; TALLEST],
            total: [[0.0; LANES]; TALLEST],
            sums: vec![[0.0; LANES]; head_dim.div_ceil(LANES) * height],
        };
        let numbers = &self.queries[query * head_dim..][..rows.len() * head_dim];
        self.set.run(
            #[inline(always)]
            || P::interleave(numbers, head_dim, height, &mut tile.queries),
        );
        for (visible, row) in tile.visible.iter_mut().zip(rows.clone()) {
            *visible = tokens[row / self.heads].position + 1;
        }
        let all = query..query + rows.len();
        tile.largest[..rows.len()].copy_from_slice(&state.largest[all.clone()]);
        tile.total[..rows.len()].copy_from_slice(&state.total[all]);
        let from = state.sums[query * head_dim..].chunks(head_dim).take(rows.len());
        for (row, from) in from.enumerate() {
            for (to, from) in tile.sums[row..].iter_mut().step_by(height).zip(from.chunks(LANES)) {
                to[..from.len()].copy_from_slice(from);
            }
        }
        tile
    }
}

/// A tile of queries, with their running sums.
struct Tile<P: Products> {
    /// The first of its queries among all.
    query: usize,
    scale: f32,
    rows: usize,
    height: usize,
    /// How many tokens of its sequence each query sees.
    visible: [usize; TALLEST],
    /// `[head_dim / DEPTH][height]`.
    queries: Vec<P::Left>,
    largest: [f32; TALLEST],
    total: [[f32; LANES]; TALLEST],
    /// `[panels of head_dim][height][16]`.
    sums: Vec<[f32; LANES]>,
}

impl<P: Products> Tile<P> {
    fn store(&self, state: &mut Softmax<'_>, head_dim: usize) {
        let all = self.query..self.query + self.rows;
        state.largest[all.clone()].copy_from_slice(&self.largest[..self.rows]);
        state.total[all].copy_from_slice(&self.total[..self.rows]);
        let to = state.sums[self.query * head_dim..].chunks_mut(head_dim).take(self.rows);
        for (row, to) in to.enumerate() {
            let from = self.sums[row..].iter().step_by(self.height);
            for (to, from) in to.chunks_mut(LANES).zip(from) {
                to.copy_from_slice(&from[..to.len()]);
            }
        }
    }

    /// Adds a block whose first token is number `first` of the sequence.
    #[inline(always)]
    fn add_block(
        &mut self,
        set: InstructionSet,
        keys: &[P::Right],
        values: &[P::Right],
        first: usize,
    ) {
        let height = self.height;
        let mut scores = [[0.0; LANES]; TALLEST];
        let scores = &mut scores[..height];
        P::multiply(set, &self.queries, &[keys], height, scores, P::AHEAD_OF_CACHE);

        let scale = self.scale;
        let mut most = 0;
        for (row, scores) in scores.iter_mut().enumerate() {
            // What lies behind a query's own position is another sequence's, or nothing.
            let seen = self.visible[row].saturating_sub(first).min(BLOCK_TOKENS) as u32;
            most = most.max(seen);
            let before = self.largest[row];
            let mut largest = order(before.to_bits().cast_signed());
            for (lane, score) in scores.iter_mut().enumerate() {
                let scaled = *score * scale;
                *score = if lane as u32 >= seen { f32::NEG_INFINITY } else { scaled };
            }
            for score in scores.iter() {
                largest = largest.max(order(score.to_bits().cast_signed()));
            }
            let largest = f32::from_bits(order(largest).cast_unsigned());
            if largest != before {
                let shrink = exp(before - largest);
                self.largest[row] = largest;
                self.total[row].iter_mut().for_each(|total| *total *= shrink);
                for sums in self.sums[row..].iter_mut().step_by(height) {
                    sums.iter_mut().for_each(|sum| *sum *= shrink);
                }
            }
            let total = &mut self.total[row];
            for (lane, score) in scores.iter_mut().enumerate() {
                let weight = P::Right::round(exp(*score - largest)).widen();
                *score = if lane as u32 >= seen { 0.0 } else { weight };
                total[lane] += *score;
            }
        }
        P::weigh(set, scores, values, most as usize, &mut self.sums);
    }
}

/// A number with the order of `x` among others. It is its own inverse, on the same bits.
///
/// The largest of integers is found by the same few instructions in any order, that of floats is not.
#[inline(always)]
fn order(bits: i32) -> i32 {
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::super::products::{Pairs, Singles};
    use super::super::reference;
    use super::*;
    use half::bf16;

    #[test]
    fn odd_shapes_agree_with_the_oracle_on_every_set() {
        for set in InstructionSet::available() {
            for (head_dim, group) in [(2, 1), (16, 3), (30, 2), (64, 4), (80, 5), (128, 9)] {
                for tokens in [1, 2, 15, 16, 17, 40, 64, 65, 95] {
                    check::<Singles<f32>>(set, head_dim, group, tokens);
                    check::<Singles<bf16>>(set, head_dim, group, tokens);
                    if set.multiplies_pairs() {
                        check::<Pairs>(set, head_dim, group, tokens);
                    }
                }
            }
        }
    }

    fn check<P: Products>(set: InstructionSet, head_dim: usize, group: usize, tokens: usize) {
        let layout = BlockLayout { kv_heads: 2, head_dim };
        let kv_head = 1;
        // Blocks in no order, with numbers of others around.
        let blocks: Vec<u32> = (0..tokens.div_ceil(BLOCK_TOKENS) as u32).map(|b| 5 - b).collect();
        let mut cache = vec![P::Right::round(f32::NAN); 6 * layout.block_size()];
        let rows = |seed| -> Vec<Vec<f32>> {
            let numbers: Vec<f32> = reference::numbers(tokens * head_dim, seed).collect();
            numbers.chunks(head_dim).map(<[f32]>::to_vec).collect()
        };
        let (keys, values) = (rows(7), rows(8));
        for token in 0..tokens {
            let size = layout.block_size();
            let block = &mut cache[blocks[token / BLOCK_TOKENS] as usize * size..][..size];
            let pair: (&[f32], &[f32]) = (&keys[token], &values[token]);
            layout.write::<P>(block, token % BLOCK_TOKENS, kv_head, pair);
        }
        let queries: Vec<f32> = reference::numbers(group * head_dim, 9).map(|q| q * 4.0).collect();
        let mut out = vec![0.0; group * head_dim];
        let visible = Visible { blocks: &blocks, position: tokens - 1 };
        attend::<P>(set, layout, &cache, &[visible], kv_head..kv_head + 1, &queries, &mut out);

        let widen = |x: &f32| f64::from(P::Right::round(*x).widen());
        for (query, out) in queries.chunks(head_dim).zip(out.chunks(head_dim)) {
            let score = |key: &Vec<f32>| {
                let dot: f64 = query.iter().zip(key).map(|(q, k)| widen(q) * widen(k)).sum();
                dot / (head_dim as f64).sqrt()
            };
            let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (i, out) in out.iter().enumerate() {
                let sum = |f: &dyn Fn(f64) -> f64| -> f64 {
                    weights.iter().zip(&values).map(|(w, v)| w * f(widen(&v[i]))).sum()
                };
                let exact = sum(&|v| v) / total;
                // A score's error shifts its weight by as much, relative: head_dim roundings of
                // terms up to 4, and the sums' own. Blocks rescale, one rounding each.
                let u = f64::from(f32::EPSILON) / 2.0;
                let score_error = 4.0 * head_dim as f64 * (head_dim as f64).sqrt() * u;
                // A weight is rounded to the cache's precision, above the line and below.
                let rounding = if size_of::<P::Right>() == 2 { 1.01 / 512.0 } else { 0.0 };
                let bound = (2.0 * (score_error + rounding) + (tokens + 16) as f64 * u)
                    * sum(&f64::abs)
                    / total;
                let error = (f64::from(*out) - exact).abs();
                assert!(
                    error <= bound,
                    "{} {head_dim}×{tokens}: {error:e} > {bound:e}",
                    set.name()
                );
            }
        }
    }

    /// Tokens of several sequences, some with common blocks, some in the same block or span.
    #[test]
    fn a_token_has_the_same_bits_in_any_company() {
        let sequences: [&[u32]; 6] = [
            &[4, 2, 0, 9, 11, 12],
            &[4, 2, 1, 3, 10],
            &[4, 2, 1, 3, 10, 6],
            &[4, 2, 1, 3, 10, 5],
            &[4],
            &[7, 8],
        ];
        let tokens: Vec<Visible<'_>> = [
            (0, 0..32),
            (0, 40..96),
            (1, 33..34),
            (1, 60..80),
            (2, 47..50),
            (2, 63..96),
            (3, 79..80),
            (3, 95..96),
            (4, 0..4),
            (4, 15..16),
            (5, 30..31),
        ]
        .into_iter()
        .flat_map(|(sequence, positions)| {
            positions.map(move |position| Visible { blocks: sequences[sequence], position })
        })
        .collect();
        for set in InstructionSet::available() {
            check_company::<Singles<f32>>(set, &tokens);
            check_company::<Singles<bf16>>(set, &tokens);
            if set.multiplies_pairs() {
                check_company::<Pairs>(set, &tokens);
            }
        }
    }

    fn check_company<P: Products>(set: InstructionSet, tokens: &[Visible<'_>]) {
        let (head_dim, heads) = (20, 3);
        let layout = BlockLayout { kv_heads: 2, head_dim };
        let numbers = reference::numbers(13 * layout.block_size(), 3);
        let cache: Vec<P::Right> = numbers.map(P::Right::round).collect();
        let width = heads * head_dim;
        let queries: Vec<f32> = reference::numbers(tokens.len() * width, 4).collect();
        let run = |tokens: &[Visible<'_>], queries: &[f32]| {
            let mut out = vec![7.0; queries.len()];
            attend::<P>(set, layout, &cache, tokens, 1..2, queries, &mut out);
            out
        };
        let together = run(tokens, &queries);
        for (index, token) in tokens.iter().enumerate() {
            let place = index * width..(index + 1) * width;
            let alone = run(&[*token], &queries[place.clone()]);
            assert_eq!(alone, together[place], "{} token {index}", set.name());
        }
    }
}
