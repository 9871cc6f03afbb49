//! The operations on this crate's CPU kernels.

pub(crate) mod ops;
pub(crate) mod ordered_step;

use candle_core::{CpuStorage, Device, Result, Storage, Tensor, bail};
use half::bf16;

use super::aligned::aligned_zeros;
use super::operations::{ActivationShape, AttentionShape, HeadNorms, Operations};
use super::step::Step;
use crate::checkpoint::weights::{Weights, format_of};
use crate::error::LoadError;
use crate::kernels::attention::BlockLayout;
use crate::kernels::formats::packed_bytes;
use crate::kernels::norm::Norm;
use crate::kernels::stored::{StoredMatrix, StoredRow};
use crate::kernels::{InstructionSet, Projection, WeightFormat};
use crate::settings::KvCacheFormat;
use ops::{Attention, Embed, Heads, LinearAdd, NormGateUp, NormLinear, WriteKv};
use ordered_step::OrderedStep;

/// The CPU kernels of one instruction set.
pub(crate) struct CpuOperations {
    set: InstructionSet,
    /// The format that matrices are packed into; `None` keeps each tensor's own.
    format: Option<WeightFormat>,
}

/// The state of a forward pass on the CPU.
pub(crate) struct CpuPass<'a> {
    step: OrderedStep<'a>,
    attention: AttentionShape,
    /// Results that every layer overwrites. Allocating them anew in each layer costs a tenth of the time of a
    /// prompt.
    qkv: Tensor,
    attended: Tensor,
    gated: Tensor,
}

impl CpuOperations {
    pub(crate) fn new(set: InstructionSet, format: Option<WeightFormat>) -> Self {
        Self { set, format }
    }
}

impl Operations for CpuOperations {
    type Norm = Norm;
    type Matrix = Projection;
    type GateUp = [Projection; 2];
    type Pass<'a> = CpuPass<'a>;

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn name(&self) -> &'static str {
        self.set.name()
    }

    fn block_size(&self, shape: AttentionShape, format: KvCacheFormat) -> usize {
        let layout = block_layout(shape);
        match format {
            KvCacheFormat::F32 => layout.block_size::<f32>(),
            KvCacheFormat::Bf16 => layout.block_size::<bf16>(),
            KvCacheFormat::Int8 => layout.block_size::<i8>(),
        }
    }

    fn matrix_size(
        &self,
        numbers: StoredRow<'_>,
        inputs: usize,
    ) -> std::io::Result<(WeightFormat, usize)> {
        let format = format_of(&numbers, self.format);
        let bytes = packed_bytes(format, self.set, &StoredMatrix::new([numbers], inputs))?;
        Ok((format, bytes))
    }

    fn load_norm(
        &self,
        weights: &Weights<'_>,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> std::result::Result<Norm, LoadError> {
        Ok(Norm { weight: weights.vector(name, width)?, epsilon })
    }

    fn load_matrix(
        &self,
        weights: &Weights<'_>,
        parts: &[(&str, usize)],
        inputs: usize,
    ) -> std::result::Result<Projection, LoadError> {
        weights.packed(parts, inputs, self.format, self.set)
    }

    fn load_gate_up(
        &self,
        weights: &Weights<'_>,
        [gate, up]: [&str; 2],
        outputs: usize,
        inputs: usize,
    ) -> std::result::Result<[Projection; 2], LoadError> {
        let matrix = |name| self.load_matrix(weights, &[(name, outputs)], inputs);
        Ok([matrix(gate)?, matrix(up)?])
    }

    fn begin<'a>(&self, step: &'a Step, shape: ActivationShape) -> Result<CpuPass<'a>> {
        let ActivationShape { attention, intermediate } = shape;
        let zeros = |width| aligned_zeros((step.len(), width));
        Ok(CpuPass {
            step: OrderedStep::new(step),
            attention,
            qkv: zeros(attention.qkv_width())?,
            attended: zeros(attention.query_width())?,
            gated: zeros(intermediate)?,
        })
    }

    fn embed(&self, table: &Projection, pass: &CpuPass<'_>) -> Result<Tensor> {
        Tensor::new(pass.step.tokens(), &Device::Cpu)?.apply_op1_no_bwd(&Embed { table })
    }

    fn project_qkv(
        &self,
        norm: &Norm,
        weights: &Projection,
        x: &Tensor,
        pass: &CpuPass<'_>,
    ) -> Result<Tensor> {
        pass.qkv.inplace_op2(x, &NormLinear { norm, weights })?;
        Ok(pass.qkv.clone())
    }

    fn attend(
        &self,
        norms: &HeadNorms<Norm>,
        qkv: &Tensor,
        cache: &Tensor,
        pass: &CpuPass<'_>,
    ) -> Result<Tensor> {
        let heads = &Heads {
            query_heads: pass.attention.query_heads,
            layout: block_layout(pass.attention),
            query_norm: &norms.query,
            key_norm: &norms.key,
            set: self.set,
        };
        cache.inplace_op2(qkv, &WriteKv { heads, step: &pass.step })?;
        pass.attended.inplace_op3(qkv, cache, &Attention { heads, step: &pass.step })?;
        Ok(pass.attended.clone())
    }

    fn project_add(&self, weights: &Projection, x: &Tensor, residual: Tensor) -> Result<Tensor> {
        residual.inplace_op2(x, &LinearAdd { weights })?;
        Ok(residual)
    }

    fn gate_up(
        &self,
        norm: &Norm,
        [gate, up]: &[Projection; 2],
        x: &Tensor,
        pass: &CpuPass<'_>,
    ) -> Result<Tensor> {
        pass.gated.inplace_op2(x, &NormGateUp { norm, gate, up })?;
        Ok(pass.gated.clone())
    }

    fn project_logits(&self, norm: &Norm, weights: &Projection, x: &Tensor) -> Result<Vec<f32>> {
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(numbers)) = &*storage else {
            bail!("the activations are not F32 on the CPU")
        };
        let x = &numbers[ops::contiguous_range(layout)?];
        // This is the only result that is returned as plain numbers. It is written once, not copied out of a
        // tensor.
        let mut logits = vec![0.0; x.len() / weights.inputs() * weights.outputs()];
        weights.project(x, Some(norm), &mut logits);
        Ok(logits)
    }
}

fn block_layout(shape: AttentionShape) -> BlockLayout {
    BlockLayout { kv_heads: shape.kv_heads, head_dim: shape.head_dim }
}
