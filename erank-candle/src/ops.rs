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

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, InplaceOp2, InplaceOp3, Layout, Result, Shape, bail};
use rayon::prelude::*;

use crate::kernels::attention::{BlockLayout, attend};
use crate::kernels::linear::{multiply, multiply_both};
use crate::kernels::norm::{Norm, rotate, silu};
use crate::kernels::products::{Pairs, Products, Singles};
use crate::kernels::{InstructionSet, PackedWeights};
use crate::model::Step;
use half::bf16;

/// Token ids `[tokens]` → their embeddings `[tokens, hidden]`.
pub(crate) struct Embed {
    pub(crate) table: Arc<PackedWeights>,
}

impl CustomOp1 for Embed {
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
pub(crate) struct NormLinear {
    pub(crate) norm: Norm,
    pub(crate) weights: Arc<PackedWeights>,
    pub(crate) set: InstructionSet,
}

impl InplaceOp2 for NormLinear {
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
            Some(&self.norm),
            &self.weights,
            out,
            #[inline(always)]
            |y, product| *y = product,
        );
        Ok(())
    }
}

/// RMSNorm, then the two halves of SwiGLU: `out = silu(gate(norm(x))) · up(norm(x))`, with `x` as
/// `[tokens, hidden]` and `out` as `[tokens, intermediate]`.
pub(crate) struct NormGateUp {
    pub(crate) norm: Norm,
    pub(crate) gate: PackedWeights,
    pub(crate) up: PackedWeights,
    pub(crate) set: InstructionSet,
}

impl InplaceOp2 for NormGateUp {
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
        let halves = [&self.gate, &self.up];
        multiply_both(
            self.set,
            x,
            Some(&self.norm),
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
pub(crate) struct LinearAdd {
    pub(crate) weights: PackedWeights,
    pub(crate) set: InstructionSet,
}

impl InplaceOp2 for LinearAdd {
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
            &self.weights,
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
pub(crate) struct Heads {
    pub(crate) query_heads: usize,
    pub(crate) layout: BlockLayout,
    pub(crate) query_norm: Norm,
    pub(crate) key_norm: Norm,
    pub(crate) set: InstructionSet,
}

impl Heads {
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
    fn check(&self, qkv: &[f32], cache_length: usize, step: &Step) -> Result<()> {
        if row_count(qkv, self.width())? != step.len() {
            bail!("queries, keys and values of another number of tokens than the step's");
        }
        step.check_blocks(cache_length / self.layout.block_size())
    }
}

/// Writes a step's keys (normalised and rotated) and values, from `[tokens, query, key and value
/// heads × head_dim]`, to their places in a layer's cache.
pub(crate) struct WriteKv<'a> {
    pub(crate) heads: &'a Heads,
    pub(crate) step: &'a Step,
}

impl WriteKv<'_> {
    fn write<P: Products>(&self, cache: &mut [P::Right], qkv: &[f32]) -> Result<()> {
        let Heads { layout, key_norm, set, .. } = self.heads;
        self.heads.check(qkv, cache.len(), self.step)?;
        let (width, head_dim) = (self.heads.width(), layout.head_dim);
        let mut rotated = vec![0.0; self.step.len() * layout.kv_heads * head_dim];
        rotated.par_chunks_mut(layout.kv_heads * head_dim).enumerate().for_each(
            |(token, rotated)| {
                let (_, keys, _) = self.heads.split(&qkv[token * width..]);
                let (cos, sin) = self.step.rotation(token);
                set.run(
                    #[inline(always)]
                    || {
                        let heads =
                            rotated.chunks_exact_mut(head_dim).zip(keys.chunks_exact(head_dim));
                        for (rotated, key) in heads {
                            key_norm.apply(key, rotated);
                            rotate(rotated, cos, sin);
                        }
                    },
                );
            },
        );
        let mut keys = rotated.chunks_exact(head_dim);
        for (token, qkv) in qkv.chunks_exact(width).enumerate() {
            let (_, _, values) = self.heads.split(qkv);
            let place = self.step.cache_place(token);
            for (kv_head, (value, key)) in values.chunks_exact(head_dim).zip(&mut keys).enumerate()
            {
                layout.write::<P>(cache, place, kv_head, (key, value));
            }
        }
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
    pub(crate) heads: &'a Heads,
    pub(crate) step: &'a Step,
}

impl Attention<'_> {
    /// Tokens that attend together: enough to share what they have in common, few enough to keep
    /// all threads busy. Results do not depend on it.
    const BUNCH: usize = 64;

    fn attend<P: Products>(&self, qkv: &[f32], cache: &[P::Right], out: &mut [f32]) -> Result<()> {
        let Heads { layout, query_heads, query_norm, set, .. } = self.heads;
        self.heads.check(qkv, cache.len(), self.step)?;
        let (head_dim, width) = (layout.head_dim, query_heads * layout.head_dim);
        let group_width = width / layout.kv_heads;
        if row_count(out, width)? != self.step.len() {
            bail!("attention: room for another number of tokens than the step's");
        }
        let bunches: Vec<&[usize]> = self.step.attention_order().chunks(Self::BUNCH).collect();
        let attended: Vec<Vec<f32>> = (0..bunches.len() * layout.kv_heads)
            .into_par_iter()
            .map(|index| {
                let (bunch, kv_head) = (bunches[index / layout.kv_heads], index % layout.kv_heads);
                let mut queries = vec![0.0; bunch.len() * group_width];
                for (token, rotated) in bunch.iter().zip(queries.chunks_exact_mut(group_width)) {
                    let (own, _, _) = self.heads.split(&qkv[token * self.heads.width()..]);
                    let own = own[kv_head * group_width..].chunks_exact(head_dim);
                    let (cos, sin) = self.step.rotation(*token);
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
                attend::<P>(*set, *layout, cache, &tokens, kv_head, &queries, &mut out);
                out
            })
            .collect();

        for (index, attended) in attended.iter().enumerate() {
            let (bunch, kv_head) = (bunches[index / layout.kv_heads], index % layout.kv_heads);
            for (token, attended) in bunch.iter().zip(attended.chunks_exact(group_width)) {
                let start = token * width + kv_head * group_width;
                out[start..start + group_width].copy_from_slice(attended);
            }
        }
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

fn contiguous_range(layout: &Layout) -> Result<std::ops::Range<usize>> {
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
