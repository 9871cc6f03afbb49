//! Grouped-query attention over the blocks of the KV cache, for tokens of any sequences at once.
//!
//! A block holds 16 tokens' keys and values of every KV head, in the panels that
//! [`tile`](super::InstructionSet::tile) reads: keys as `[head_dim][16 tokens]`, so that a product
//! with the queries gives 16 scores, and values as `[head_dim / 16][16 tokens][16]`, so that a
//! product with the weights gives 16 sums.
//!
//! ```text
//! attend(tokens, from):
//!     for each block that all of the tokens have at the same place, from there on:
//!         for each query of each token:
//!             scores  = q · keys / √head_dim,     keys behind the token's own position excluded
//!             largest' = max(largest, scores)
//!             weights = exp(scores − largest')
//!             total   = total · exp(largest − largest') + Σ weights
//!             sums    = sums  · exp(largest − largest') + weights · values
//!     for each run of tokens that go on with the same block: attend(run, there)
//! out = sums / total
//! ```
//!
//! So a block that several tokens see, of one prompt or of prompts with a common beginning, is one
//! matrix product for all of them. A query meets its blocks in the order of its sequence, and what
//! it adds up does not depend on who else does.

use super::exp::exp;
use super::{Element, InstructionSet, LANES};

/// Tokens in a block.
pub(crate) const BLOCK_TOKENS: usize = LANES;

/// Where a KV head's numbers lie in a layer's cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockLayout {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl BlockLayout {
    fn keys_size(self) -> usize {
        self.head_dim * BLOCK_TOKENS
    }

    fn values_size(self) -> usize {
        self.head_dim.next_multiple_of(LANES) * BLOCK_TOKENS
    }

    /// Numbers in one block of one layer.
    pub(crate) fn block_size(self) -> usize {
        self.kv_heads * (self.keys_size() + self.values_size())
    }

    /// The keys and the values of one KV head in one block.
    fn head<T>(self, cache: &[T], block: usize, kv_head: usize) -> (&[T], &[T]) {
        let size = self.keys_size() + self.values_size();
        let start = block * self.block_size() + kv_head * size;
        cache[start..start + size].split_at(self.keys_size())
    }

    /// Writes one token's key and value of one KV head at `slot` of a block.
    pub(crate) fn write<E: Element>(
        self,
        cache: &mut [E],
        (block, slot): (usize, usize),
        kv_head: usize,
        (key, value): (&[f32], &[f32]),
    ) {
        let size = self.keys_size() + self.values_size();
        let start = block * self.block_size() + kv_head * size;
        let (keys, values) = cache[start..start + size].split_at_mut(self.keys_size());
        for (cell, key) in keys.iter_mut().skip(slot).step_by(BLOCK_TOKENS).zip(key) {
            *cell = E::round(*key);
        }
        let panels = values.chunks_exact_mut(BLOCK_TOKENS * LANES);
        for (panel, value) in panels.zip(value.chunks(LANES)) {
            for (cell, value) in panel[slot * LANES..].iter_mut().zip(value) {
                *cell = E::round(*value);
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
    /// The block at `place` in the sequence, if the token sees any of it.
    fn block(&self, place: usize) -> Option<u32> {
        if place > self.position / BLOCK_TOKENS { None } else { self.blocks.get(place).copied() }
    }

    /// How many tokens of the block at `place` are not behind this one.
    fn count(&self, place: usize) -> usize {
        (self.position + 1).saturating_sub(place * BLOCK_TOKENS).min(BLOCK_TOKENS)
    }
}

/// The queries of one KV head attend over what their tokens see.
///
/// `queries` and `out` are `[tokens][query heads of the group][head_dim]`.
pub(crate) fn attend<E: Element>(
    set: InstructionSet,
    layout: BlockLayout,
    cache: &[E],
    tokens: &[Visible<'_>],
    kv_head: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let queries: Vec<f32> = queries.iter().map(|query| E::round(*query).widen()).collect();
    let count = queries.len() / layout.head_dim;
    let group =
        Group { set, layout, cache, kv_head, queries: &queries, heads: count / tokens.len() };
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
struct Group<'a, E> {
    set: InstructionSet,
    layout: BlockLayout,
    cache: &'a [E],
    kv_head: usize,
    /// `[tokens][heads][head_dim]`, in the cache's precision.
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

impl<E: Element> Group<'_, E> {
    /// Adds what `tokens`, which begin at `first` of all, see from the block at `place` on.
    fn descend(&self, tokens: &[Visible<'_>], first: usize, place: usize, state: &mut Softmax<'_>) {
        let mut end = place;
        while let Some(block) = tokens[0].block(end)
            && tokens.iter().all(|token| token.block(end) == Some(block))
        {
            end += 1;
        }
        if end > place {
            self.add_blocks(tokens, first, place..end, state);
        }
        let mut first = first;
        for run in tokens.chunk_by(|a, b| a.block(end) == b.block(end)) {
            if run[0].block(end).is_some() {
                self.descend(run, first, end, state);
            }
            first += run.len();
        }
    }

    /// Adds the blocks at `places`, which all of `tokens` have there, tile by tile of queries.
    fn add_blocks(
        &self,
        tokens: &[Visible<'_>],
        first: usize,
        places: std::ops::Range<usize>,
        state: &mut Softmax<'_>,
    ) {
        let head_dim = self.layout.head_dim;
        let tallest = self.set.tallest_tile();
        let mut left = vec![0.0; tallest * head_dim];
        let queries = first * self.heads..(first + tokens.len()) * self.heads;
        for start in queries.clone().step_by(tallest) {
            let rows = (queries.end - start).min(tallest);
            let height = self.set.tile_height(rows);
            // The queries as the left side of a product, `[head_dim][height]`.
            let left = &mut left[..height * head_dim];
            left.fill(0.0);
            let numbers = self.queries[start * head_dim..].chunks_exact(head_dim);
            for (row, query) in numbers.take(rows).enumerate() {
                for (slot, number) in left.iter_mut().skip(row).step_by(height).zip(query) {
                    *slot = *number;
                }
            }
            let mut tile = TileSums::load(state, start, rows, height, head_dim);
            for place in places.clone() {
                let Some(block) = tokens[0].block(place) else { break };
                let (keys, values) = self.layout.head(self.cache, block as usize, self.kv_head);
                let token = |row: usize| (start + row) / self.heads - first;
                let visible = |row| tokens[token(row)].count(place);
                tile.add_block(self.set, left, keys, values, visible);
            }
            tile.store(state, start, head_dim);
        }
    }
}

/// The running sums of a tile of queries.
struct TileSums {
    scale: f32,
    largest: Vec<f32>,
    total: Vec<f32>,
    /// `[panels of head_dim][height][16]`.
    sums: Vec<[f32; LANES]>,
    height: usize,
}

impl TileSums {
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
        Self {
            scale: 1.0 / (head_dim as f32).sqrt(),
            largest: state.largest[start..start + rows].to_vec(),
            total: state.total[start..start + rows].to_vec(),
            sums,
            height,
        }
    }

    fn store(&self, state: &mut Softmax<'_>, start: usize, head_dim: usize) {
        let rows = self.total.len();
        state.largest[start..start + rows].copy_from_slice(&self.largest);
        state.total[start..start + rows].copy_from_slice(&self.total);
        let to = state.sums[start * head_dim..].chunks_mut(head_dim).take(rows);
        for (row, to) in to.enumerate() {
            let from = self.sums[row..].iter().step_by(self.height);
            for (to, from) in to.chunks_mut(LANES).zip(from) {
                to.copy_from_slice(&from[..to.len()]);
            }
        }
    }

    /// Adds one block, of which the query in each row sees the first `visible(row)` tokens.
    fn add_block<E: Element>(
        &mut self,
        set: InstructionSet,
        queries: &[f32],
        keys: &[E],
        values: &[E],
        visible: impl Fn(usize) -> usize,
    ) {
        let height = self.height;
        let mut scores = [[0.0; LANES]; 8];
        set.tile(queries, keys, &mut scores[..height]);

        // As `[16 tokens][height]`, the layout of the next product's left side.
        let mut weights = [0.0; LANES * 8];
        let mut most_visible = 0;
        for (row, scores) in scores[..self.total.len()].iter_mut().enumerate() {
            let visible = visible(row);
            most_visible = most_visible.max(visible);
            let before = self.largest[row];
            scores.iter_mut().for_each(|score| *score *= self.scale);
            let largest = scores[..visible].iter().fold(before, |max, score| max.max(*score));
            let shrink = exp(before - largest);
            // All 16, so that it is vectorised; then those that the query sees.
            scores.iter_mut().for_each(|score| *score = exp(*score - largest));
            let mut sum = 0.0;
            for (token, weight) in scores[..visible].iter().enumerate() {
                weights[token * height + row] = *weight;
                sum += weight;
            }
            self.largest[row] = largest;
            self.total[row] = self.total[row] * shrink + sum;
            if shrink != 1.0 {
                for sums in self.sums[row..].iter_mut().step_by(height) {
                    sums.iter_mut().for_each(|sum| *sum *= shrink);
                }
            }
        }
        let panels = values.chunks_exact(BLOCK_TOKENS * LANES);
        for (panel, sums) in panels.zip(self.sums.chunks_exact_mut(height)) {
            // Only what a query sees: what lies behind it is another sequence's, or nothing.
            set.tile(&weights[..most_visible * height], &panel[..most_visible * LANES], sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use half::bf16;

    #[test]
    fn odd_shapes_agree_with_the_oracle_on_every_set() {
        for set in InstructionSet::available() {
            for (head_dim, group) in [(2, 1), (16, 3), (30, 2), (64, 4), (128, 9)] {
                for tokens in [1, 2, 15, 16, 17, 40] {
                    check::<f32>(set, head_dim, group, tokens);
                    check::<bf16>(set, head_dim, group, tokens);
                }
            }
        }
    }

    fn check<E: Element>(set: InstructionSet, head_dim: usize, group: usize, tokens: usize) {
        let layout = BlockLayout { kv_heads: 2, head_dim };
        let kv_head = 1;
        // Blocks in no order, with numbers of others around.
        let blocks: Vec<u32> = (0..tokens.div_ceil(BLOCK_TOKENS) as u32).map(|b| 5 - b).collect();
        let mut cache = vec![E::round(1e30); 6 * layout.block_size()];
        let rows = |seed| -> Vec<Vec<f32>> {
            let numbers: Vec<f32> = reference::numbers(tokens * head_dim, seed).collect();
            numbers.chunks(head_dim).map(<[f32]>::to_vec).collect()
        };
        let (keys, values) = (rows(7), rows(8));
        for token in 0..tokens {
            let place = (blocks[token / BLOCK_TOKENS] as usize, token % BLOCK_TOKENS);
            layout.write(&mut cache, place, kv_head, (&keys[token], &values[token]));
        }
        let queries: Vec<f32> = reference::numbers(group * head_dim, 9).map(|q| q * 4.0).collect();
        let mut out = vec![0.0; group * head_dim];
        let visible = Visible { blocks: &blocks, position: tokens - 1 };
        attend(set, layout, &cache, &[visible], kv_head, &queries, &mut out);

        let widen = |x: &f32| f64::from(E::round(*x).widen());
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
                let bound = (2.0 * score_error + (tokens + 16) as f64 * u) * sum(&f64::abs) / total;
                let error = (f64::from(*out) - exact).abs();
                assert!(
                    error <= bound,
                    "{} {head_dim}×{tokens}: {error:e} > {bound:e}",
                    set.name()
                );
            }
        }
    }

    /// Tokens of several sequences, some with common blocks, some in the same block.
    #[test]
    fn a_token_has_the_same_bits_in_any_company() {
        let (head_dim, heads) = (20, 3);
        let layout = BlockLayout { kv_heads: 2, head_dim };
        let numbers = reference::numbers(9 * layout.block_size(), 3);
        let cache: Vec<bf16> = numbers.map(bf16::from_f32).collect();
        let sequences: [&[u32]; 5] = [&[4, 2, 0], &[4, 2, 1, 3], &[4, 2, 1, 5], &[4], &[7, 8]];
        let tokens: Vec<Visible<'_>> = [
            (0, 31),
            (0, 32),
            (0, 40),
            (1, 33),
            (1, 60),
            (2, 47),
            (2, 48),
            (2, 49),
            (2, 63),
            (3, 0),
            (3, 3),
            (3, 15),
            (4, 30),
        ]
        .into_iter()
        .map(|(sequence, position)| Visible { blocks: sequences[sequence], position })
        .collect();
        let width = heads * head_dim;
        let queries: Vec<f32> = reference::numbers(tokens.len() * width, 4).collect();
        for set in InstructionSet::available() {
            let run = |tokens: &[Visible<'_>], queries: &[f32]| {
                let mut out = vec![7.0; queries.len()];
                attend(set, layout, &cache, tokens, 1, queries, &mut out);
                out
            };
            let together = run(&tokens, &queries);
            for (index, token) in tokens.iter().enumerate() {
                let place = index * width..(index + 1) * width;
                let alone = run(&[*token], &queries[place.clone()]);
                assert_eq!(alone, together[place], "{} token {index}", set.name());
            }
        }
    }
}
