//! The steps of the forward pass as candle custom operations.
//!
//! Each holds its weights packed for the kernels and stands for one fusion: what happens inside is
//! [`kernels`](crate::kernels)' affair, what goes in and out are candle tensors. A device without
//! these kernels can run the same steps through candle's own operations; none does yet.
//!
//! Activations are F32 tensors; a projection rounds its input to the type of its weights.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, InplaceOp2, Layout, Result, Shape, bail};
use rayon::prelude::*;

use crate::kernels::attention::{BlockLayout, attend};
use crate::kernels::linear::{multiply, multiply_both};
use crate::kernels::norm::{rms_norm, rotate, silu};
use crate::kernels::{Element, InstructionSet, PackedWeights};
use crate::model::Step;

/// RMSNorm with its weights.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    pub(crate) epsilon: f32,
}

impl Norm {
    fn apply(&self, x: &[f32], out: &mut [f32]) {
        rms_norm(x, &self.weight, self.epsilon, out);
    }

    /// Every row of `x`, normalised.
    fn rows(&self, x: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.0; x.len()];
        let width = self.weight.len();
        normed
            .par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .for_each(|(out, row)| self.apply(row, out));
        normed
    }
}

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

/// RMSNorm, then a projection: `[tokens, hidden]` → `[tokens, outputs]`.
pub(crate) struct NormLinear {
    pub(crate) norm: Norm,
    pub(crate) weights: Arc<PackedWeights>,
    pub(crate) set: InstructionSet,
}

impl CustomOp1 for NormLinear {
    fn name(&self) -> &'static str {
        "norm-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x: &[f32] = contiguous(x, layout)?;
        let rows = row_count(x, self.weights.inputs())?;
        let mut y = vec![0.0; rows * self.weights.outputs()];
        multiply(self.set, &self.norm.rows(x), &self.weights, &mut y, |y, product| *y = product);
        Ok((CpuStorage::F32(y), (rows, self.weights.outputs()).into()))
    }
}

/// RMSNorm, then the two halves of SwiGLU: `silu(gate(x)) · up(x)`, `[tokens, hidden]` →
/// `[tokens, intermediate]`.
pub(crate) struct NormGateUp {
    pub(crate) norm: Norm,
    pub(crate) gate: PackedWeights,
    pub(crate) up: PackedWeights,
    pub(crate) set: InstructionSet,
}

impl CustomOp1 for NormGateUp {
    fn name(&self) -> &'static str {
        "norm-gate-up"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x: &[f32] = contiguous(x, layout)?;
        let rows = row_count(x, self.gate.inputs())?;
        let mut y = vec![0.0; rows * self.gate.outputs()];
        let halves = [&self.gate, &self.up];
        multiply_both(self.set, &self.norm.rows(x), halves, &mut y, |y, [gate, up]| {
            *y = silu(gate) * up;
        });
        Ok((CpuStorage::F32(y), (rows, self.gate.outputs()).into()))
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
        let CpuStorage::F32(residual) = residual else { bail!("linear-add: a residual in F32") };
        let residual = &mut residual[contiguous_range(residual_layout)?];
        let x: &[f32] = contiguous(x, layout)?;
        let rows = row_count(x, self.weights.inputs())?;
        if row_count(residual, self.weights.outputs())? != rows {
            bail!("linear-add: {rows} rows added to another number of rows");
        }
        multiply(self.set, x, &self.weights, residual, |residual, product| *residual += product);
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
    fn write<E: Element>(&self, cache: &mut [E], qkv: &[f32]) -> Result<()> {
        let Heads { layout, key_norm, .. } = self.heads;
        self.heads.check(qkv, cache.len(), self.step)?;
        let mut rotated = vec![0.0; layout.head_dim];
        for (token, qkv) in qkv.chunks_exact(self.heads.width()).enumerate() {
            let (_, keys, values) = self.heads.split(qkv);
            let place = self.step.cache_place(token);
            let (cos, sin) = self.step.rotation(token);
            let heads =
                keys.chunks_exact(layout.head_dim).zip(values.chunks_exact(layout.head_dim));
            for (kv_head, (key, value)) in heads.enumerate() {
                key_norm.apply(key, &mut rotated);
                rotate(&mut rotated, cos, sin);
                layout.write(cache, place, kv_head, (&rotated, value));
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
            CpuStorage::F32(cache) => self.write(&mut cache[range], qkv),
            CpuStorage::BF16(cache) => self.write(&mut cache[range], qkv),
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

    fn attend<E: Element>(&self, qkv: &[f32], cache: &[E]) -> Result<Vec<f32>> {
        let Heads { layout, query_heads, query_norm, set, .. } = self.heads;
        self.heads.check(qkv, cache.len(), self.step)?;
        let (head_dim, width) = (layout.head_dim, query_heads * layout.head_dim);
        let group_width = width / layout.kv_heads;
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
                    for (rotated, query) in rotated.chunks_exact_mut(head_dim).zip(own) {
                        query_norm.apply(query, rotated);
                        rotate(rotated, cos, sin);
                    }
                }
                let tokens: Vec<_> = bunch.iter().map(|token| self.step.visible(*token)).collect();
                let mut out = vec![0.0; queries.len()];
                attend(*set, *layout, cache, &tokens, kv_head, &queries, &mut out);
                out
            })
            .collect();

        let mut out = vec![0.0; self.step.len() * width];
        for (index, attended) in attended.iter().enumerate() {
            let (bunch, kv_head) = (bunches[index / layout.kv_heads], index % layout.kv_heads);
            for (token, attended) in bunch.iter().zip(attended.chunks_exact(group_width)) {
                let start = token * width + kv_head * group_width;
                out[start..start + group_width].copy_from_slice(attended);
            }
        }
        Ok(out)
    }
}

impl CustomOp2 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        cache: &CpuStorage,
        cache_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let qkv = contiguous(qkv, layout)?;
        let range = contiguous_range(cache_layout)?;
        let out = match cache {
            CpuStorage::F32(cache) => self.attend(qkv, &cache[range])?,
            CpuStorage::BF16(cache) => self.attend(qkv, &cache[range])?,
            _ => bail!("attention: a cache in F32 or BF16"),
        };
        let width = self.heads.query_heads * self.heads.layout.head_dim;
        Ok((CpuStorage::F32(out), (self.step.len(), width).into()))
    }
}

/// The numbers of a tensor that lie in one piece.
fn contiguous<'a, T: candle_core::WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    Ok(&storage.as_slice()?[contiguous_range(layout)?])
}

fn contiguous_range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("a tensor that does not lie in one piece"),
    }
}

/// Rows of this width; an error if the numbers do not make whole rows.
fn row_count(x: &[f32], width: usize) -> Result<usize> {
    if !x.len().is_multiple_of(width) {
        bail!("{} numbers are no rows of {width}", x.len());
    }
    Ok(x.len() / width)
}
