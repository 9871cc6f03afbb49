//! The steps of the forward pass as candle custom operations.
//!
//! Each holds its weights packed for the kernels and stands for one fusion: what happens inside is
//! [`kernels`](crate::kernels)' affair, what goes in and out are candle tensors. They run on the CPU;
//! kernels for a GPU would be their `cuda_fwd` or `metal_fwd`, which now are errors. Until there are some,
//! a GPU runs [`candle_ops`](crate::candle_ops).
//!
//! Activations are F32 tensors; a projection rounds its input to the type of its weights. Results are
//! written to tensors that the layers have in common: new memory for each would cost prefill a tenth of
//! its time.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, InplaceOp2, InplaceOp3, Layout, Result, Shape, bail};
use rayon::prelude::*;

use super::ordered_step::OrderedStep;
use crate::kernels::attention::{BlockLayout, attend};
use crate::kernels::linear::{multiply, multiply_both};
use crate::kernels::norm::{Norm, rotate, silu};
use crate::kernels::products::{Pairs, Products, Singles};
use crate::kernels::{InstructionSet, PackedWeights};
use half::bf16;

/// Token ids `[tokens]` → their embeddings `[tokens, hidden]`.
pub(crate) struct Embed<'a> {
    pub(crate) table: &'a PackedWeights,
}

impl CustomOp1 for Embed<'_> {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu_fwd(&self, ids: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ids: &[u32] = contiguous(ids, layout)?;
        let mut rows = Vec::with_capacity(ids.len() * self.table.inputs());
        for id in ids {
            if *id as usize >= self.table.outputs() {
                bail!("token id {id} is not below the vocabulary's {}", self.table.outputs());
            }
            self.table.extend_with_row(*id as usize, &mut rows);
        }
        Ok((CpuStorage::F32(rows), (ids.len(), self.table.inputs()).into()))
    }
}

/// RMSNorm, then a projection: `out = norm(x) · Wᵀ`, with `x` as `[tokens, hidden]` and `out` as
/// `[tokens, outputs]`.
pub(crate) struct NormLinear<'a> {
    pub(crate) norm: &'a Norm,
    pub(crate) weights: &'a PackedWeights,
    pub(crate) set: InstructionSet,
}

impl InplaceOp2 for NormLinear<'_> {
    fn name(&self) -> &'static str {
        "norm-linear"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let (out, x) = (contiguous_mut(out, out_layout)?, contiguous(x, layout)?);
        same_rows(x, self.weights.inputs(), out, self.weights.outputs())?;
        multiply(
            self.set,
            x,
            Some(self.norm),
            self.weights,
            out,
            #[inline(always)]
            |y, product| *y = product,
        );
        Ok(())
    }
}

/// RMSNorm, then the two halves of SwiGLU: `out = silu(gate(norm(x))) · up(norm(x))`, with `x` as
/// `[tokens, hidden]` and `out` as `[tokens, intermediate]`.
pub(crate) struct NormGateUp<'a> {
    pub(crate) norm: &'a Norm,
    pub(crate) gate: &'a PackedWeights,
    pub(crate) up: &'a PackedWeights,
    pub(crate) set: InstructionSet,
}

impl InplaceOp2 for NormGateUp<'_> {
    fn name(&self) -> &'static str {
        "norm-gate-up"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let (out, x) = (contiguous_mut(out, out_layout)?, contiguous(x, layout)?);
        same_rows(x, self.gate.inputs(), out, self.gate.outputs())?;
        let halves = [self.gate, self.up];
        multiply_both(
            self.set,
            x,
            Some(self.norm),
            halves,
            out,
            #[inline(always)]
            |y, [gate, up]| {
                *y = silu(gate) * up;
            },
        );
        Ok(())
    }
}

/// A projection added to the residual stream in place: `residual += x · Wᵀ`, with `x` as
/// `[tokens, inputs]` and the residual as `[tokens, hidden]`.
pub(crate) struct LinearAdd<'a> {
    pub(crate) weights: &'a PackedWeights,
    pub(crate) set: InstructionSet,
}

impl InplaceOp2 for LinearAdd<'_> {
    fn name(&self) -> &'static str {
        "linear-add"
    }

    fn cpu_fwd(
        &self,
        residual: &mut CpuStorage,
        residual_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let (residual, x) = (contiguous_mut(residual, residual_layout)?, contiguous(x, layout)?);
        same_rows(x, self.weights.inputs(), residual, self.weights.outputs())?;
        multiply(
            self.set,
            x,
            None,
            self.weights,
            residual,
            #[inline(always)]
            |residual, product| {
                *residual += product;
            },
        );
        Ok(())
    }
}

/// What the attention operations of one layer share.
#[derive(Debug)]
pub(crate) struct Heads<'a> {
    pub(crate) query_heads: usize,
    pub(crate) layout: BlockLayout,
    pub(crate) query_norm: &'a Norm,
    pub(crate) key_norm: &'a Norm,
    pub(crate) set: InstructionSet,
}

impl Heads<'_> {
    fn width(&self) -> usize {
        (self.query_heads + 2 * self.layout.kv_heads) * self.layout.head_dim
    }

    /// The queries, keys and values of one token.
    fn split<'a>(&self, qkv: &'a [f32]) -> (&'a [f32], &'a [f32], &'a [f32]) {
        let (queries, rest) = qkv.split_at(self.query_heads * self.layout.head_dim);
        let (keys, values) = rest.split_at(self.layout.kv_heads * self.layout.head_dim);
        (queries, keys, values)
    }

    /// Checks `[tokens, heads]` against the step, so that the operations below need not.
    fn check(&self, qkv: &[f32], step: &OrderedStep<'_>) -> Result<()> {
        if row_count(qkv, self.width())? != step.len() {
            bail!("queries, keys and values of another number of tokens than the step's");
        }
        Ok(())
    }
}

/// Writes a step's keys (normalised and rotated) and values, from `[tokens, query, key and value
/// heads × head_dim]`, to their places in a layer's cache.
pub(crate) struct WriteKv<'a> {
    pub(crate) heads: &'a Heads<'a>,
    pub(crate) step: &'a OrderedStep<'a>,
}

impl WriteKv<'_> {
    fn write<P: Products>(&self, cache: &mut [P::Right], qkv: &[f32]) -> Result<()> {
        let Heads { layout, key_norm, set, .. } = self.heads;
        self.heads.check(qkv, self.step)?;
        let (width, head_dim) = (self.heads.width(), layout.head_dim);
        let (mut rest, mut passed) = (cache, 0);
        let mut blocks: Vec<(&mut [P::Right], &[usize])> = Vec::new();
        for tokens in self.step.by_block() {
            let start = self.step.cache_slot(tokens[0]).0 * layout.block_size();
            let (_, behind) = rest.split_at_mut(start - passed);
            let (block, behind) = behind.split_at_mut(layout.block_size());
            (rest, passed) = (behind, start + layout.block_size());
            blocks.push((block, tokens));
        }
        blocks.into_par_iter().for_each(|(block, tokens)| {
            let mut rotated = vec![0.0; head_dim];
            for token in tokens {
                let (_, keys, values) = self.heads.split(&qkv[token * width..][..width]);
                let (cos, sin) = self.step.rotation(*token);
                let (_, slot) = self.step.cache_slot(*token);
                let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
                for (kv_head, (key, value)) in heads.enumerate() {
                    set.run(
                        #[inline(always)]
                        || {
                            key_norm.apply(key, &mut rotated);
                            rotate(&mut rotated, cos, sin);
                            layout.write::<P>(block, slot, kv_head, (&rotated, value));
                        },
                    );
                }
            }
        });
        Ok(())
    }
}

impl InplaceOp2 for WriteKv<'_> {
    fn name(&self) -> &'static str {
        "write-kv"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        qkv: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let qkv = contiguous(qkv, layout)?;
        let range = contiguous_range(cache_layout)?;
        match cache {
            CpuStorage::F32(cache) => self.write::<Singles<f32>>(&mut cache[range], qkv),
            CpuStorage::BF16(cache) if self.heads.set.multiplies_pairs() => {
                self.write::<Pairs>(&mut cache[range], qkv)
            }
            CpuStorage::BF16(cache) => self.write::<Singles<bf16>>(&mut cache[range], qkv),
            _ => bail!("write-kv: a cache in F32 or BF16"),
        }
    }
}

/// Attention of a step's queries (normalised and rotated here) over a layer's cache:
/// `[tokens, query, key and value heads × head_dim]` → `[tokens, query heads × head_dim]`.
pub(crate) struct Attention<'a> {
    pub(crate) heads: &'a Heads<'a>,
    pub(crate) step: &'a OrderedStep<'a>,
}

impl Attention<'_> {
    /// The most tokens in a bunch.
    const MOST_TOKENS: usize = 64;
    /// So many tokens of a row stay in one bunch.
    const MOST_TOGETHER: usize = 16;

    fn attend<P: Products>(&self, qkv: &[f32], cache: &[P::Right], out: &mut [f32]) -> Result<()> {
        let Heads { layout, query_heads, query_norm, set, .. } = self.heads;
        self.heads.check(qkv, self.step)?;
        let (head_dim, width) = (layout.head_dim, query_heads * layout.head_dim);
        let group_width = width / layout.kv_heads;
        if row_count(out, width)? != self.step.len() {
            bail!("attention: room for another number of tokens than the step's");
        }
        // Several pieces of work for each thread: bunches of tokens, and if those are few, of KV heads.
        // A row's tokens share what they read, and so do a token's KV heads, whose blocks lie next to
        // each other. Results do not depend on it.
        let threads = rayon::current_num_threads();
        let together = self.step.longest_row().min(Self::MOST_TOGETHER);
        let tokens = (self.step.len() / (8 * threads)).clamp(together, Self::MOST_TOKENS);
        let bunches: Vec<&[usize]> = self.step.attention_order().chunks(tokens).collect();
        let heads = (layout.kv_heads * bunches.len() / (2 * threads)).clamp(1, layout.kv_heads);
        let pieces: Vec<(&[usize], Range<usize>)> = bunches
            .into_iter()
            .flat_map(|bunch| {
                let starts = (0..layout.kv_heads).step_by(heads);
                starts.map(move |start| (bunch, start..layout.kv_heads.min(start + heads)))
            })
            .collect();
        let attended: Vec<Vec<f32>> = pieces
            .par_iter()
            .with_max_len(1)
            .map(|(bunch, kv_heads)| {
                let mut queries = vec![0.0; kv_heads.len() * bunch.len() * group_width];
                for (index, rotated) in queries.chunks_exact_mut(group_width).enumerate() {
                    let kv_head = kv_heads.start + index / bunch.len();
                    let token = bunch[index % bunch.len()];
                    let (own, _, _) = self.heads.split(&qkv[token * self.heads.width()..]);
                    let own = own[kv_head * group_width..].chunks_exact(head_dim);
                    let (cos, sin) = self.step.rotation(token);
                    set.run(
                        #[inline(always)]
                        || {
                            for (rotated, query) in rotated.chunks_exact_mut(head_dim).zip(own) {
                                query_norm.apply(query, rotated);
                                rotate(rotated, cos, sin);
                            }
                        },
                    );
                }
                let tokens: Vec<_> = bunch.iter().map(|token| self.step.visible(*token)).collect();
                let mut out = vec![0.0; queries.len()];
                attend::<P>(*set, *layout, cache, &tokens, kv_heads.clone(), &queries, &mut out);
                out
            })
            .collect();

        // By piece, KV head and token of the bunch; put together again by token.
        let pieces_of_bunch = layout.kv_heads.div_ceil(heads);
        out.par_chunks_exact_mut(width).with_min_len(8).enumerate().for_each(|(token, out)| {
            let place = self.step.attention_index(token);
            let (bunch, index) = (place / tokens, place % tokens);
            let pieces = &attended[bunch * pieces_of_bunch..][..pieces_of_bunch];
            for (piece, out) in pieces.iter().zip(out.chunks_mut(heads * group_width)) {
                let rows = piece.len() / out.len();
                let rows = piece.chunks_exact(group_width).skip(index).step_by(rows);
                for (row, out) in rows.zip(out.chunks_exact_mut(group_width)) {
                    out.copy_from_slice(row);
                }
            }
        });
        Ok(())
    }
}

impl InplaceOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        qkv: &CpuStorage,
        layout: &Layout,
        cache: &CpuStorage,
        cache_layout: &Layout,
    ) -> Result<()> {
        let (out, qkv) = (contiguous_mut(out, out_layout)?, contiguous(qkv, layout)?);
        let range = contiguous_range(cache_layout)?;
        match cache {
            CpuStorage::F32(cache) => self.attend::<Singles<f32>>(qkv, &cache[range], out),
            CpuStorage::BF16(cache) if self.heads.set.multiplies_pairs() => {
                self.attend::<Pairs>(qkv, &cache[range], out)
            }
            CpuStorage::BF16(cache) => self.attend::<Singles<bf16>>(qkv, &cache[range], out),
            _ => bail!("attention: a cache in F32 or BF16"),
        }
    }
}

/// The numbers of a tensor that lie in one piece.
fn contiguous<'a, T: candle_core::WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    Ok(&storage.as_slice()?[contiguous_range(layout)?])
}

fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(numbers) = storage else { bail!("the numbers of a step are F32") };
    Ok(&mut numbers[contiguous_range(layout)?])
}

pub(crate) fn contiguous_range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("a tensor that does not lie in one piece"),
    }
}

/// Fails unless there are as many rows on both sides.
fn same_rows(x: &[f32], inputs: usize, out: &[f32], outputs: usize) -> Result<()> {
    let (rows, out_rows) = (row_count(x, inputs)?, row_count(out, outputs)?);
    if rows != out_rows {
        bail!("{rows} rows in, {out_rows} out");
    }
    Ok(())
}

/// Rows of this width; an error if the numbers do not make whole rows.
fn row_count(x: &[f32], width: usize) -> Result<usize> {
    if !x.len().is_multiple_of(width) {
        bail!("{} numbers are no rows of {width}", x.len());
    }
    Ok(x.len() / width)
}
