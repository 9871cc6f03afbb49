//! Grouped-query attention of one token over the blocks of its sequence's KV cache.
//!
//! A block holds 16 tokens' keys and values of every KV head, in the panels that
//! [`tile`](super::InstructionSet::tile) reads: keys as `[head_dim][16 tokens]`, so that a product
//! with the queries gives 16 scores, and values as `[head_dim / 16][16 tokens][16]`, so that a
//! product with the weights gives 16 sums.
//!
//! ```text
//! for each block of 16 tokens, in order:
//!     scores  = q · keys / √head_dim,          tokens after this one excluded
//!     largest' = max(largest, scores)
//!     weights = exp(scores − largest')
//!     total   = total · exp(largest − largest') + Σ weights
//!     sums    = sums  · exp(largest − largest') + weights · values
//! out = sums / total
//! ```

use super::{Element, InstructionSet, LANES, interleave};

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

/// The queries of one group attend over the tokens up to and with `position`.
///
/// `queries` and `out` are `[query heads of the group][head_dim]`; `blocks` are the sequence's.
pub(crate) fn attend<E: Element>(
    set: InstructionSet,
    layout: BlockLayout,
    cache: &[E],
    (blocks, position): (&[u32], usize),
    kv_head: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let head_dim = layout.head_dim;
    let rows = set.tallest_tile() * head_dim;
    for (queries, out) in queries.chunks(rows).zip(out.chunks_mut(rows)) {
        let height = set.tile_height(queries.len() / head_dim);
        let queries = interleave::<E>(queries, head_dim, height);
        let mut softmax = OnlineSoftmax::new(height, head_dim);
        for (index, block) in blocks.iter().enumerate().take(position / BLOCK_TOKENS + 1) {
            let (keys, values) = layout.head(cache, *block as usize, kv_head);
            let visible = (position + 1 - index * BLOCK_TOKENS).min(BLOCK_TOKENS);
            softmax.add_block(set, &queries, keys, values, visible);
        }
        softmax.finish(head_dim, out);
    }
}

/// Running softmax-weighted sums of a few query heads.
struct OnlineSoftmax {
    scale: f32,
    largest: Vec<f32>,
    total: Vec<f32>,
    /// `[panels of head_dim][query heads][16]`.
    sums: Vec<[f32; LANES]>,
}

impl OnlineSoftmax {
    fn new(heads: usize, head_dim: usize) -> Self {
        Self {
            scale: 1.0 / (head_dim as f32).sqrt(),
            largest: vec![f32::NEG_INFINITY; heads],
            total: vec![0.0; heads],
            sums: vec![[0.0; LANES]; head_dim.div_ceil(LANES) * heads],
        }
    }

    fn add_block<E: Element>(
        &mut self,
        set: InstructionSet,
        queries: &[f32],
        keys: &[E],
        values: &[E],
        visible: usize,
    ) {
        let heads = self.total.len();
        let mut scores = [[0.0; LANES]; 8];
        set.tile(queries, keys, &mut scores[..heads]);

        // As `[16 tokens][heads]`, the layout of the next product's left side.
        let mut weights = [0.0; LANES * 8];
        for (head, scores) in scores[..heads].iter().enumerate() {
            let scores = &scores[..visible];
            let before = self.largest[head];
            let largest = scores.iter().fold(before, |max, score| max.max(score * self.scale));
            let shrink = (before - largest).exp();
            let mut sum = 0.0;
            for (token, score) in scores.iter().enumerate() {
                let weight = (score * self.scale - largest).exp();
                weights[token * heads + head] = weight;
                sum += weight;
            }
            self.largest[head] = largest;
            self.total[head] = self.total[head] * shrink + sum;
            for cell in self.sums.iter_mut().skip(head).step_by(heads).flatten() {
                *cell *= shrink;
            }
        }
        let panels = values.chunks_exact(BLOCK_TOKENS * LANES);
        for (panel, sums) in panels.zip(self.sums.chunks_exact_mut(heads)) {
            // Only the visible tokens: what lies behind them is another sequence's, or nothing.
            set.tile(&weights[..visible * heads], &panel[..visible * LANES], sums);
        }
    }

    fn finish(&self, head_dim: usize, out: &mut [f32]) {
        let heads = self.total.len();
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            for (panel, out) in out.chunks_mut(LANES).enumerate() {
                for (out, sum) in out.iter_mut().zip(&self.sums[panel * heads + head]) {
                    *out = sum / self.total[head];
                }
            }
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
        attend(set, layout, &cache, (&blocks, tokens - 1), kv_head, &queries, &mut out);

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
}
