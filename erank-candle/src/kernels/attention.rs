//! Grouped-query attention over the blocks of the KV cache, for tokens of any sequences at once.
//!
//! A block holds 16 tokens' keys and values of every KV head, in the panels that
//! [`Products`] multiply: keys as `[head_dim][16 tokens]`, so that a product with the queries gives 16
//! scores, and values as `[head_dim / 16][16 tokens][16]`, so that a product with the weights gives 16
//! sums. Where numbers are multiplied in pairs, pairs of dimensions and pairs of tokens lie together.
//!
//! A sequence's blocks are taken in spans of four, counted from its beginning:
//!
//! ```text
//! attend(tokens, from):
//!     for each span that all of the tokens have in common, from there on:
//!         for each query of each token:
//!             scores  = q · keys / √head_dim,     keys behind the token's own position excluded
//!             largest' = max(largest, scores)
//!             weights = exp(scores − largest'), rounded to the cache's precision
//!             total   = total · exp(largest − largest') + Σ weights
//!             sums    = sums  · exp(largest − largest') + weights · values
//!     for each run of tokens that go on with the same span: attend(run, there)
//! out = sums / total
//! ```
//!
//! So a span that several tokens see, of one prompt or of prompts with a common beginning, is one
//! matrix product for all of them. A query meets its spans in the order of its sequence, and what
//! it adds up does not depend on who else does.

use std::ops::Range;

use super::exp::exp;
use super::products::{Products, place};
use super::{Ahead, Element, InstructionSet, LANES};

/// Tokens in a block.
pub(crate) const BLOCK_TOKENS: usize = LANES;
/// Blocks in a span: enough products at once to keep the multipliers busy with few queries.
const SPAN_BLOCKS: usize = 4;
const SPAN_TOKENS: usize = SPAN_BLOCKS * BLOCK_TOKENS;
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

    /// Writes one token's key and value of one KV head at `slot` of a block. Slots are written in
    /// order.
    pub(crate) fn write<P: Products>(
        self,
        cache: &mut [P::Right],
        (block, slot): (usize, usize),
        kv_head: usize,
        (key, value): (&[f32], &[f32]),
    ) {
        let size = self.keys_size() + self.values_size();
        let start = block * self.block_size() + kv_head * size;
        let (keys, values) = cache[start..start + size].split_at_mut(self.keys_size());
        for (dim, key) in key.iter().enumerate() {
            keys[place(P::DEPTH, dim, slot)] = P::Right::round(*key);
        }
        let panels = values.chunks_exact_mut(BLOCK_TOKENS * LANES);
        for (panel, value) in panels.zip(value.chunks(LANES)) {
            for (lane, value) in value.iter().enumerate() {
                let first = place(P::DEPTH, slot, lane);
                panel[first] = P::Right::round(*value);
                // The rest of a group, which is yet to be written, is multiplied by 0: whatever
                // another sequence left there must not be NaN.
                let behind = P::DEPTH - slot % P::DEPTH;
                panel[first + 1..first + behind].fill(P::Right::round(0.0));
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

impl<'a> Visible<'a> {
    /// The sequence's blocks in a span.
    fn span(&self, span: usize) -> &'a [u32] {
        let end = self.blocks.len().min((span + 1) * SPAN_BLOCKS);
        &self.blocks[end.min(span * SPAN_BLOCKS)..end]
    }

    /// How many tokens of a span are not behind this one.
    fn count(&self, span: usize) -> usize {
        (self.position + 1).saturating_sub(span * SPAN_TOKENS).min(SPAN_TOKENS)
    }
}

/// The queries of one KV head attend over what their tokens see.
///
/// `queries` and `out` are `[tokens][query heads of the group][head_dim]`.
pub(crate) fn attend<P: Products>(
    set: InstructionSet,
    layout: BlockLayout,
    cache: &[P::Right],
    tokens: &[Visible<'_>],
    kv_head: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let count = queries.len() / layout.head_dim;
    let group =
        Group::<P> { set, layout, cache, kv_head, queries, heads: count / tokens.len().max(1) };
    out.fill(0.0);
    let mut state = Softmax {
        largest: &mut vec![f32::NEG_INFINITY; count],
        total: &mut vec![0.0; count],
        sums: out,
    };
    group.descend(tokens, 0, 0, &mut state);
    let Softmax { total, sums, .. } = state;
    for (sums, total) in sums.chunks_exact_mut(layout.head_dim).zip(total) {
        sums.iter_mut().for_each(|sum| *sum /= *total);
    }
}

/// One KV head with the queries that attend to it.
struct Group<'a, P: Products> {
    set: InstructionSet,
    layout: BlockLayout,
    cache: &'a [P::Right],
    kv_head: usize,
    /// `[tokens][heads][head_dim]`.
    queries: &'a [f32],
    /// Query heads of a token.
    heads: usize,
}

/// Running softmax-weighted sums, by query.
struct Softmax<'a> {
    largest: &'a mut [f32],
    total: &'a mut [f32],
    /// `[queries][head_dim]`.
    sums: &'a mut [f32],
}

impl<P: Products> Group<'_, P> {
    /// Adds what `tokens`, which begin at `first` of all, see from `span` on.
    fn descend(&self, tokens: &[Visible<'_>], first: usize, span: usize, state: &mut Softmax<'_>) {
        let mut end = span;
        while tokens.iter().any(|token| token.count(end) > 0)
            && tokens.iter().all(|token| token.span(end) == tokens[0].span(end))
        {
            end += 1;
        }
        if end > span {
            self.add_spans(tokens, first, span..end, state);
        }
        let mut first = first;
        for run in tokens.chunk_by(|a, b| a.span(end) == b.span(end)) {
            if run.iter().any(|token| token.count(end) > 0) {
                self.descend(run, first, end, state);
            }
            first += run.len();
        }
    }

    /// Adds `spans`, which all of `tokens` have in common, tile by tile of queries.
    fn add_spans(
        &self,
        tokens: &[Visible<'_>],
        first: usize,
        spans: Range<usize>,
        state: &mut Softmax<'_>,
    ) {
        let head_dim = self.layout.head_dim;
        let queries = first * self.heads..(first + tokens.len()) * self.heads;
        for start in queries.clone().step_by(self.set.tallest_tile()) {
            let rows = (queries.end - start).min(self.set.tallest_tile());
            let height = rows.next_power_of_two();
            let mut left = vec![P::Left::default(); head_dim.div_ceil(P::DEPTH) * height];
            let numbers = &self.queries[start * head_dim..][..rows * head_dim];
            P::interleave(numbers, head_dim, height, &mut left);
            let mut tile = Tile::load(state, start, rows, height, head_dim);
            for span in spans.clone() {
                let mut visible = [0; TALLEST];
                for (row, visible) in visible[..rows].iter_mut().enumerate() {
                    *visible = tokens[(start + row) / self.heads - first].count(span);
                }
                let seen = visible.iter().copied().max().unwrap_or(0);
                if seen == 0 {
                    break;
                }
                let blocks = tokens[0].span(span).iter().take(seen.div_ceil(BLOCK_TOKENS));
                let mut keys: [&[P::Right]; SPAN_BLOCKS] = Default::default();
                let mut values = keys;
                let count = blocks.len();
                for ((keys, values), block) in keys.iter_mut().zip(&mut values).zip(blocks) {
                    (*keys, *values) = self.layout.head(self.cache, *block, self.kv_head);
                }
                let (keys, values) = (&keys[..count], &values[..count]);
                let ahead = self.ahead(tokens[0].span(span + 1), keys);
                self.set.run(
                    #[inline(always)]
                    || tile.add_span::<P>(self.set, &left, keys, values, visible, ahead),
                );
            }
            tile.store(state, start, head_dim);
        }
    }

    /// Has the next span read from memory meanwhile, as if its blocks lay to each other as those of the
    /// span at hand.
    fn ahead(&self, next: &[u32], keys: &[&[P::Right]]) -> Ahead {
        match (next.first(), keys.first()) {
            (Some(block), Some(keys)) => {
                let (next, _) = self.layout.head(self.cache, *block, self.kv_head);
                let bytes = next.as_ptr().addr().wrapping_sub(keys.as_ptr().addr());
                Ahead { bytes, step: 64 }
            }
            _ => Ahead::default(),
        }
    }
}

/// The running sums of a tile of queries.
struct Tile {
    scale: f32,
    rows: usize,
    height: usize,
    largest: [f32; TALLEST],
    total: [f32; TALLEST],
    /// `[panels of head_dim][height][16]`.
    sums: Vec<[f32; LANES]>,
}

impl Tile {
    fn load(
        state: &Softmax<'_>,
        start: usize,
        rows: usize,
        height: usize,
        head_dim: usize,
    ) -> Self {
        let mut sums = vec![[0.0; LANES]; head_dim.div_ceil(LANES) * height];
        for (row, from) in state.sums[start * head_dim..].chunks(head_dim).take(rows).enumerate() {
            for (to, from) in sums[row..].iter_mut().step_by(height).zip(from.chunks(LANES)) {
                to[..from.len()].copy_from_slice(from);
            }
        }
        let mut tile = Self {
            scale: 1.0 / (head_dim as f32).sqrt(),
            rows,
            height,
            largest: [f32::NEG_INFINITY; TALLEST],
            total: [0.0; TALLEST],
            sums,
        };
        tile.largest[..rows].copy_from_slice(&state.largest[start..start + rows]);
        tile.total[..rows].copy_from_slice(&state.total[start..start + rows]);
        tile
    }

    fn store(&self, state: &mut Softmax<'_>, start: usize, head_dim: usize) {
        state.largest[start..start + self.rows].copy_from_slice(&self.largest[..self.rows]);
        state.total[start..start + self.rows].copy_from_slice(&self.total[..self.rows]);
        let to = state.sums[start * head_dim..].chunks_mut(head_dim).take(self.rows);
        for (row, to) in to.enumerate() {
            let from = self.sums[row..].iter().step_by(self.height);
            for (to, from) in to.chunks_mut(LANES).zip(from) {
                to.copy_from_slice(&from[..to.len()]);
            }
        }
    }

    /// Adds a span of up to four blocks, of which the query in each row sees the first
    /// `visible[row]` tokens.
    #[inline(always)]
    fn add_span<P: Products>(
        &mut self,
        set: InstructionSet,
        queries: &[P::Left],
        keys: &[&[P::Right]],
        values: &[&[P::Right]],
        visible: [usize; TALLEST],
        ahead: Ahead,
    ) {
        let height = self.height;
        // `[blocks][height]`.
        let mut scores = [[0.0; LANES]; SPAN_BLOCKS * TALLEST];
        let scores = &mut scores[..keys.len() * height];
        P::multiply(set, queries, keys, height, scores, ahead);

        // `[height][blocks]`.
        let mut weights = [[0.0; LANES]; TALLEST * SPAN_BLOCKS];
        let weights = &mut weights[..height * keys.len()];
        for (row, weights) in weights.chunks_exact_mut(keys.len()).take(self.rows).enumerate() {
            if visible[row] == 0 {
                continue;
            }
            let mut largest = [self.largest[row]; LANES];
            for (block, weights) in weights.iter_mut().enumerate() {
                let scores = &scores[block * height + row];
                let seen = visible[row].saturating_sub(block * BLOCK_TOKENS);
                for (lane, weight) in weights.iter_mut().enumerate() {
                    let score = scores[lane] * self.scale;
                    *weight = if lane < seen { score } else { f32::NEG_INFINITY };
                    largest[lane] = if *weight > largest[lane] { *weight } else { largest[lane] };
                }
            }
            let before = self.largest[row];
            let largest = largest.into_iter().fold(before, f32::max);
            let mut total = [0.0; LANES];
            for (block, weights) in weights.iter_mut().enumerate() {
                let seen = visible[row].saturating_sub(block * BLOCK_TOKENS);
                for (lane, weight) in weights.iter_mut().enumerate() {
                    let seen_weight = P::Right::round(exp(*weight - largest)).widen();
                    *weight = if lane < seen { seen_weight } else { 0.0 };
                    total[lane] += *weight;
                }
            }
            let shrink = exp(before - largest);
            self.largest[row] = largest;
            self.total[row] = self.total[row] * shrink + total.into_iter().sum::<f32>();
            if shrink != 1.0 {
                for sums in self.sums[row..].iter_mut().step_by(height) {
                    sums.iter_mut().for_each(|sum| *sum *= shrink);
                }
            }
        }

        let mut left = [P::Left::default(); TALLEST * SPAN_TOKENS];
        let tokens = keys.len() * BLOCK_TOKENS;
        let left = &mut left[..tokens / P::DEPTH * height];
        P::interleave(weights.as_flattened(), tokens, height, left);
        let seen = visible.into_iter().max().unwrap_or(0);
        for (block, values) in values.iter().enumerate() {
            // Only what a query sees: what lies behind it is another sequence's, or nothing.
            let tokens = (seen - block * BLOCK_TOKENS).min(BLOCK_TOKENS).div_ceil(P::DEPTH);
            let left = &left[block * BLOCK_TOKENS / P::DEPTH * height..][..tokens * height];
            for (panels, sums) in values
                .chunks(PANELS * BLOCK_TOKENS * LANES)
                .zip(self.sums.chunks_mut(PANELS * height))
            {
                let mut seen: [&[P::Right]; PANELS] = Default::default();
                let whole = panels.chunks_exact(BLOCK_TOKENS * LANES);
                let count = whole.len();
                for (seen, panel) in seen.iter_mut().zip(whole) {
                    *seen = &panel[..tokens * P::DEPTH * LANES];
                }
                P::multiply(set, left, &seen[..count], height, sums, ahead);
            }
        }
    }
}

/// Panels of values that are multiplied in one call.
const PANELS: usize = 8;

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
            let place = (blocks[token / BLOCK_TOKENS] as usize, token % BLOCK_TOKENS);
            layout.write::<P>(&mut cache, place, kv_head, (&keys[token], &values[token]));
        }
        let queries: Vec<f32> = reference::numbers(group * head_dim, 9).map(|q| q * 4.0).collect();
        let mut out = vec![0.0; group * head_dim];
        let visible = Visible { blocks: &blocks, position: tokens - 1 };
        attend::<P>(set, layout, &cache, &[visible], kv_head, &queries, &mut out);

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
            attend::<P>(set, layout, &cache, tokens, 1, queries, &mut out);
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
