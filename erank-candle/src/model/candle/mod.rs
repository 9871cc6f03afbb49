//! The fused operations, computed by candle's own tensor operations, for any device.
//!
//! The CPU has [kernels](super::cpu), which are faster. They give a row the same bits, no matter which other
//! rows are in the step. candle's matrix products choose their order of summation by the shapes, so a row's
//! last bits depend on the other rows.

mod attention;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::rope_thd;

use super::operations::{ActivationShape, AttentionShape, HeadNorms, Operations};
use super::step::{BLOCK_TOKENS, Step};
use crate::checkpoint::weights::Weights;
use crate::error::LoadError;
use crate::kernels::WeightFormat;
use crate::kernels::stored::StoredRow;
use crate::settings::KvCacheFormat;
use attention::RowGroup;

/// The name of these operations in logs and reports, where kernels have the name of their instruction set.
const NAME: &str = "candle";

/// candle's operations on one device.
pub(crate) struct CandleOperations {
    device: Device,
    /// The type that matrices are kept in.
    weight_type: DType,
}

/// The weight of an RMSNorm, `[width]`.
pub(crate) struct CandleNorm {
    weight: Tensor,
    epsilon: f32,
}

/// The state of a forward pass.
pub(crate) struct CandlePass<'a> {
    step: &'a Step,
    attention: AttentionShape,
    /// The rotary embedding's cosines and sines, `[tokens, head_dim / 2]` each.
    cos: Tensor,
    sin: Tensor,
    /// The slots that the tokens' keys, then their values, are written to in a layer's cache:
    /// `[2 × tokens, kv heads × head_dim]`, each index repeated along the second dimension.
    slots: Tensor,
    groups: Vec<RowGroup>,
}

impl CandleOperations {
    pub(crate) fn new(device: Device, weight_type: DType) -> Self {
        Self { device, weight_type }
    }
}

impl CandleNorm {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.epsilon)
    }
}

impl Operations for CandleOperations {
    type Norm = CandleNorm;
    type Matrix = Tensor;
    /// Both matrices, stacked with the gate first.
    type GateUp = Tensor;
    type Pass<'a> = CandlePass<'a>;

    fn device(&self) -> &Device {
        &self.device
    }

    fn name(&self) -> &'static str {
        NAME
    }

    /// Returns the size of a block, `[2][16 tokens][kv heads][head_dim]`, with the keys first.
    fn block_size(&self, shape: AttentionShape, _: KvCacheFormat) -> usize {
        2 * BLOCK_TOKENS * shape.kv_width()
    }

    fn matrix_size(
        &self,
        numbers: StoredRow<'_>,
        _: usize,
    ) -> std::io::Result<(WeightFormat, usize)> {
        let format = match self.weight_type {
            DType::BF16 => WeightFormat::Bf16,
            _ => WeightFormat::F32,
        };
        Ok((format, numbers.len() * self.weight_type.size_in_bytes()))
    }

    fn load_norm(
        &self,
        weights: &Weights<'_>,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> std::result::Result<CandleNorm, LoadError> {
        let weight = Tensor::new(weights.vector(name, width)?, &self.device).map_err(|error| {
            LoadError::tensor(name, format!("cannot copy it to the device: {error}"))
        })?;
        Ok(CandleNorm { weight, epsilon })
    }

    fn load_matrix(
        &self,
        weights: &Weights<'_>,
        parts: &[(&str, usize)],
        inputs: usize,
    ) -> std::result::Result<Tensor, LoadError> {
        weights.on_device(parts, inputs, self.weight_type, &self.device)
    }

    fn load_gate_up(
        &self,
        weights: &Weights<'_>,
        [gate, up]: [&str; 2],
        outputs: usize,
        inputs: usize,
    ) -> std::result::Result<Tensor, LoadError> {
        self.load_matrix(weights, &[(gate, outputs), (up, outputs)], inputs)
    }

    fn begin<'a>(&self, step: &'a Step, shape: ActivationShape) -> Result<CandlePass<'a>> {
        let attention = shape.attention;
        let slots = |part| {
            (0..step.len()).map(move |token| {
                let (block, slot) = step.cache_slot(token);
                ((2 * block + part) * BLOCK_TOKENS + slot) as u32
            })
        };
        let slots: Vec<u32> = slots(0).chain(slots(1)).collect();
        let angles =
            |numbers| Tensor::from_slice(numbers, ((), attention.head_dim / 2), &self.device);
        let (cos, sin) = step.rotations();
        Ok(CandlePass {
            step,
            attention,
            cos: angles(cos)?,
            sin: angles(sin)?,
            slots: Tensor::from_slice(&slots, (slots.len(), 1), &self.device)?
                .broadcast_as((slots.len(), attention.kv_width()))?
                .contiguous()?,
            groups: RowGroup::all(step, &self.device)?,
        })
    }

    fn embed(&self, table: &Tensor, pass: &CandlePass<'_>) -> Result<Tensor> {
        let ids = Tensor::new(pass.step.tokens(), &self.device)?;
        table.index_select(&ids, 0)?.to_dtype(DType::F32)
    }

    fn project_qkv(
        &self,
        norm: &CandleNorm,
        weights: &Tensor,
        x: &Tensor,
        _: &CandlePass<'_>,
    ) -> Result<Tensor> {
        project(&norm.apply(x)?, weights)
    }

    fn attend(
        &self,
        norms: &HeadNorms<CandleNorm>,
        qkv: &Tensor,
        cache: &Tensor,
        pass: &CandlePass<'_>,
    ) -> Result<Tensor> {
        let AttentionShape { query_heads, kv_heads, head_dim } = pass.attention;
        // [tokens, heads, head_dim]
        let qkv = qkv.reshape(((), query_heads + 2 * kv_heads, head_dim))?;
        let heads = |start, count| qkv.narrow(1, start, count)?.contiguous();
        let norm_and_rotate = |heads: Tensor, norm: &CandleNorm| {
            rope_thd(&norm.apply(&heads)?.unsqueeze(0)?, &pass.cos, &pass.sin)?.squeeze(0)
        };
        let queries = norm_and_rotate(heads(0, query_heads)?, &norms.query)?;
        let queries = (queries / (head_dim as f64).sqrt())?;
        let keys = norm_and_rotate(heads(query_heads, kv_heads)?, &norms.key)?;
        let values = heads(query_heads + kv_heads, kv_heads)?;

        let keys_and_values = Tensor::cat(&[keys, values], 0)?.flatten_from(1)?;
        let slots = cache.reshape(((), pass.attention.kv_width()))?;
        slots.scatter_set(&pass.slots, &keys_and_values.to_dtype(cache.dtype())?, 0)?;

        let attended: Vec<Tensor> = pass
            .groups
            .iter()
            .map(|group| group.attend(pass.attention, &queries, cache))
            .collect::<Result<_>>()?;
        Tensor::cat(&attended, 0)
    }

    fn project_add(&self, weights: &Tensor, x: &Tensor, residual: Tensor) -> Result<Tensor> {
        residual + project(x, weights)?
    }

    fn gate_up(
        &self,
        norm: &CandleNorm,
        weights: &Tensor,
        x: &Tensor,
        _: &CandlePass<'_>,
    ) -> Result<Tensor> {
        let gate_up = project(&norm.apply(x)?, weights)?;
        let width = weights.dim(0)? / 2;
        gate_up.narrow(1, 0, width)?.silu()? * gate_up.narrow(1, width, width)?
    }

    fn project_logits(&self, norm: &CandleNorm, weights: &Tensor, x: &Tensor) -> Result<Vec<f32>> {
        project(&norm.apply(x)?, weights)?.flatten_all()?.to_vec1()
    }
}

/// Computes `x · Wᵀ` in the type of the weights, with `x` and the result in F32.
fn project(x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    x.to_dtype(weights.dtype())?.matmul(&weights.t()?)?.to_dtype(DType::F32)
}
