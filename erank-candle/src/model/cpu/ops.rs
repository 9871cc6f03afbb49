//! The steps of the forward pass as candle custom operations, on the CPU.
//!
//! Each operation is one fusion and holds its weights packed for the [`kernels`](crate::kernels). Its inputs
//! and outputs are candle tensors. Other devices run [`candle`](crate::model::candle).
//!
//! Activations are F32 tensors. A projection rounds its input to the type of its weights. Results are written
//! to tensors that the layers share, because allocating each would cost prefill a tenth of its time.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, InplaceOp2, InplaceOp3, Layout, Result, Shape, bail};
use half::bf16;
use rayon::prelude::*;

use crate::kernels::arch::Isa;
use crate::kernels::attention::{BlockLayout, attend};
use crate::kernels::attention_kernel::{AttentionKernel, CacheElement, CacheVisitor};
use crate::kernels::norm::{Norm, rotate};
use crate::kernels::{InstructionSet, Projection};
use crate::model::cpu::ordered_step::OrderedStep;

/// Token ids `[tokens]` → their embeddings `[tokens, hidden]`.
pub(crate) struct Embed<'a> {
    pub(crate) table: &'a Projection,
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
    pub(crate) weights: &'a Projection,
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
        self.weights.project(x, Some(self.norm), out);
        Ok(())
    }
}

/// RMSNorm, then the two halves of SwiGLU: `out = silu(gate(norm(x))) · up(norm(x))`, with `x` as
/// `[tokens, hidden]` and `out` as `[tokens, intermediate]`.
pub(crate) struct NormGateUp<'a> {
    pub(crate) norm: &'a Norm,
    pub(crate) gate: &'a Projection,
    pub(crate) up: &'a Projection,
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
        self.gate.gate_up(self.up, x, self.norm, out);
        Ok(())
    }
}

/// A projection added to the residual stream in place: `residual += x · Wᵀ`, with `x` as
/// `[tokens, inputs]` and the residual as `[tokens, hidden]`.
pub(crate) struct LinearAdd<'a> {
    pub(crate) weights: &'a Projection,
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
        self.weights.project_add(x, residual);
        Ok(())
    }
}

/// The parameters that the attention operations of one layer share.
#[derive(Debug)]
pub(crate) struct Heads<'a> {
    pub(crate) query_heads: usize,
    pub(crate) layout: BlockLayout,
    pub(crate) query_norm: &'a Norm,
    pub(crate) key_norm: &'a Norm,
    /// The instruction set of the kernels for the cache.
    pub(crate) set: InstructionSet,
}

impl Heads<'_> {
    fn width(&self) -> usize {
        (self.query_heads + 2 * self.layout.kv_heads) * self.layout.head_dim
    }

    /// Splits the row of one token into its queries, keys and values.
    fn split<'a>(&self, qkv: &'a [f32]) -> (&'a [f32], &'a [f32], &'a [f32]) {
        let (queries, rest) = qkv.split_at(self.query_heads * self.layout.head_dim);
        let (keys, values) = rest.split_at(self.layout.kv_heads * self.layout.head_dim);
        (queries, keys, values)
    }

    /// Checks that `qkv` has a row for each of the step's tokens.
    fn check(&self, qkv: &[f32], step: &OrderedStep<'_>) -> Result<()> {
        if row_count(qkv, self.width())? != step.len() {
            bail!("the queries, keys and values are not those of {} tokens", step.len());
        }
        Ok(())
    }
}

/// Writes a step's keys (normalised and rotated) and values, from `[tokens, query, key and value
/// heads × head_dim]`, to a layer's cache.
pub(crate) struct WriteKv<'a> {
    pub(crate) heads: &'a Heads<'a>,
    pub(crate) step: &'a OrderedStep<'a>,
}

impl WriteKv<'_> {
    fn write<K: AttentionKernel>(
        &self,
        kernel: K,
        cache: &mut [K::Element],
        qkv: &[f32],
    ) -> Result<()> {
        let Heads { layout, key_norm, .. } = self.heads;
        self.heads.check(qkv, self.step)?;
        let (width, head_dim) = (self.heads.width(), layout.head_dim);
        let block_size = layout.block_size::<K::Element>();
        let (mut rest, mut rest_start) = (cache, 0);
        let mut blocks: Vec<(&mut [K::Element], &[usize])> = Vec::new();
        for tokens in self.step.by_block() {
            let start = self.step.cache_slot(tokens[0]).0 * block_size;
            let (_, from_block) = rest.split_at_mut(start - rest_start);
            let (block, after) = from_block.split_at_mut(block_size);
            (rest, rest_start) = (after, start + block_size);
            blocks.push((block, tokens));
        }
        blocks.into_par_iter().for_each(|(block, tokens)| {
            let mut rotated = vec![0.0; head_dim];
            // The part of one KV head fits into the nearest cache, and every token writes to all of its lines.
            layout.prefetch(block, 0);
            for kv_head in 0..layout.kv_heads {
                layout.prefetch(block, kv_head + 1);
                for token in tokens {
                    let (_, keys, values) = self.heads.split(&qkv[token * width..][..width]);
                    let numbers = kv_head * head_dim..(kv_head + 1) * head_dim;
                    let (key, value) = (&keys[numbers.clone()], &values[numbers]);
                    let (cos, sin) = self.step.rotation(*token);
                    let (_, slot) = self.step.cache_slot(*token);
                    kernel.isa().run(
                        #[inline(always)]
                        || {
                            key_norm.apply(key, &mut rotated);
                            rotate(&mut rotated, cos, sin);
                            K::Element::spread(&mut rotated);
                            layout.write(block, slot, kv_head, (&rotated, value));
                        },
                    );
                }
            }
        });
        Ok(())
    }
}

/// The write to a cache of one type.
struct Write<'a, E> {
    op: &'a WriteKv<'a>,
    cache: &'a mut [E],
    qkv: &'a [f32],
}

impl<E: CacheElement> CacheVisitor<E> for Write<'_, E> {
    type Output = Result<()>;

    fn visit<K: AttentionKernel<Element = E>>(self, kernel: K) -> Result<()> {
        self.op.write(kernel, self.cache, self.qkv)
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
        let (range, set) = (contiguous_range(cache_layout)?, self.heads.set);
        match cache {
            CpuStorage::F32(cache) => {
                f32::with_kernel(set, Write { op: self, cache: &mut cache[range], qkv })
            }
            CpuStorage::BF16(cache) => {
                bf16::with_kernel(set, Write { op: self, cache: &mut cache[range], qkv })
            }
            CpuStorage::U8(cache) => {
                let cache = bytemuck::cast_slice_mut(&mut cache[range]);
                i8::with_kernel(set, Write { op: self, cache, qkv })
            }
            _ => bail!("write-kv: the cache is neither F32, BF16 nor 8 bits"),
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
    /// Tokens of a row, up to this number, stay in one chunk.
    const MAX_ROW_TOKENS: usize = 16;

    fn attend<K: AttentionKernel>(
        &self,
        kernel: K,
        qkv: &[f32],
        cache: &[K::Element],
        out: &mut [f32],
    ) -> Result<()> {
        let Heads { layout, query_heads, query_norm, .. } = self.heads;
        self.heads.check(qkv, self.step)?;
        let (head_dim, width) = (layout.head_dim, query_heads * layout.head_dim);
        let group_width = width / layout.kv_heads;
        if row_count(out, width)? != self.step.len() {
            bail!("attention: the output is not of {} tokens", self.step.len());
        }
        // There are several pieces of work for each thread. They are chunks of tokens and, if those are few,
        // of KV heads. The tokens of a row read the same blocks, and the KV heads of a token lie next to each
        // other. Results do not depend on the division.
        let threads = rayon::current_num_threads();
        let together = self.step.longest_row().min(Self::MAX_ROW_TOKENS);
        // The larger a kernel's chunks are, the fewer are made of a prompt of 512 tokens.
        let chunks_of_thread = 512 / K::TOKENS_OF_A_THREAD;
        let tokens = self.step.len() / (chunks_of_thread * threads);
        let tokens = tokens.clamp(together, K::TOKENS_OF_A_THREAD);
        let chunks: Vec<&[usize]> = self.step.attention_order().chunks(tokens).collect();
        // The sums of many tokens would leave the nearest cache between two blocks, so each KV head is a piece.
        let heads = match together {
            0..Self::MAX_ROW_TOKENS => layout.kv_heads * chunks.len() / (2 * threads),
            _ => 1,
        };
        let heads = heads.clamp(1, layout.kv_heads);
        let pieces: Vec<(&[usize], Range<usize>)> = chunks
            .into_iter()
            .flat_map(|chunk| {
                let starts = (0..layout.kv_heads).step_by(heads);
                starts.map(move |start| (chunk, start..layout.kv_heads.min(start + heads)))
            })
            .collect();
        let attended: Vec<Vec<f32>> = pieces
            .par_iter()
            .with_max_len(1)
            .map(|(chunk, kv_heads)| {
                let mut queries = vec![0.0; kv_heads.len() * chunk.len() * group_width];
                for (index, rotated) in queries.chunks_exact_mut(group_width).enumerate() {
                    let kv_head = kv_heads.start + index / chunk.len();
                    let token = chunk[index % chunk.len()];
                    let (own, _, _) = self.heads.split(&qkv[token * self.heads.width()..]);
                    let own = own[kv_head * group_width..].chunks_exact(head_dim);
                    let (cos, sin) = self.step.rotation(token);
                    kernel.isa().run(
                        #[inline(always)]
                        || {
                            for (rotated, query) in rotated.chunks_exact_mut(head_dim).zip(own) {
                                query_norm.apply(query, rotated);
                                rotate(rotated, cos, sin);
                                K::Element::spread(rotated);
                            }
                        },
                    );
                }
                let tokens: Vec<_> = chunk.iter().map(|token| self.step.visible(*token)).collect();
                let mut out = vec![0.0; queries.len()];
                attend(kernel, *layout, cache, &tokens, kv_heads.clone(), &queries, &mut out);
                out
            })
            .collect();

        // `attended` is by piece, KV head and token of the chunk; the output is by token.
        let pieces_of_chunk = layout.kv_heads.div_ceil(heads);
        out.par_chunks_exact_mut(width).with_min_len(8).enumerate().for_each(|(token, out)| {
            let place = self.step.attention_index(token);
            let (chunk, index) = (place / tokens, place % tokens);
            let pieces = &attended[chunk * pieces_of_chunk..][..pieces_of_chunk];
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

/// Attention over a cache of one type.
struct Attend<'a, E> {
    op: &'a Attention<'a>,
    qkv: &'a [f32],
    cache: &'a [E],
    out: &'a mut [f32],
}

impl<E: CacheElement> CacheVisitor<E> for Attend<'_, E> {
    type Output = Result<()>;

    fn visit<K: AttentionKernel<Element = E>>(self, kernel: K) -> Result<()> {
        self.op.attend(kernel, self.qkv, self.cache, self.out)
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
        let (range, set) = (contiguous_range(cache_layout)?, self.heads.set);
        match cache {
            CpuStorage::F32(cache) => {
                f32::with_kernel(set, Attend { op: self, qkv, cache: &cache[range], out })
            }
            CpuStorage::BF16(cache) => {
                bf16::with_kernel(set, Attend { op: self, qkv, cache: &cache[range], out })
            }
            CpuStorage::U8(cache) => {
                let cache = bytemuck::cast_slice(&cache[range]);
                i8::with_kernel(set, Attend { op: self, qkv, cache, out })
            }
            _ => bail!("attention: the cache is neither F32, BF16 nor 8 bits"),
        }
    }
}

/// Returns the numbers of a contiguous tensor.
fn contiguous<'a, T: candle_core::WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    Ok(&storage.as_slice()?[contiguous_range(layout)?])
}

fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(numbers) = storage else { bail!("the output of an operation is F32") };
    Ok(&mut numbers[contiguous_range(layout)?])
}

pub(crate) fn contiguous_range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("a tensor is not contiguous"),
    }
}

/// Fails unless the input and the output have the same number of rows.
fn same_rows(x: &[f32], inputs: usize, out: &[f32], outputs: usize) -> Result<()> {
    let (rows, out_rows) = (row_count(x, inputs)?, row_count(out, outputs)?);
    if rows != out_rows {
        bail!("the input has {rows} rows, the output {out_rows}");
    }
    Ok(())
}

/// Returns the number of rows of this width. Fails unless all rows are whole.
fn row_count(x: &[f32], width: usize) -> Result<usize> {
    if !x.len().is_multiple_of(width) {
        bail!("{} numbers do not divide into rows of {width}", x.len());
    }
    Ok(x.len() / width)
}
