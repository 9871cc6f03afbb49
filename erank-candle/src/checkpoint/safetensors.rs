//! Tensors of a checkpoint, found by name, checked, and packed for the kernels or copied to a device.

use std::collections::HashMap;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::shard::Shard;
use crate::error::LoadError;
use crate::kernels::stored::{StoredMatrix, StoredRow};
use crate::kernels::{InstructionSet, Projection, WeightFormat};

/// The name of the embedding, whose type decides the default format of all matrices.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

/// The tensors of all shards.
pub(crate) struct Weights<'a> {
    shards: &'a [Shard],
    tensors: HashMap<String, TensorView<'a>>,
}

impl<'a> Weights<'a> {
    /// Reads the headers of the shards.
    ///
    /// # Errors
    /// Returns an error if a shard is not a whole safetensors file, or a tensor is in more than one.
    pub(crate) fn new(shards: &'a [Shard]) -> Result<Self, LoadError> {
        let mut tensors = HashMap::new();
        for shard in shards {
            let file = SafeTensors::deserialize(shard.bytes()).map_err(|source| {
                LoadError::unparsable(&shard.file, "not a whole safetensors file", source)
            })?;
            for (name, view) in file.tensors() {
                if tensors.insert(name.clone(), view).is_some() {
                    return Err(LoadError::tensor(&name, "it is in more than one file"));
                }
            }
        }
        Ok(Self { shards, tensors })
    }

    /// Returns the format of the checkpoint's embedding: BF16 or else F32.
    pub(crate) fn own_format(&self) -> WeightFormat {
        match self.tensors.get(EMBEDDING).map(TensorView::dtype) {
            Some(Dtype::BF16) => WeightFormat::Bf16,
            _ => WeightFormat::F32,
        }
    }

    /// Packs matrices with the same inputs, one above the other: names and numbers of outputs. Runs on
    /// rayon's current threads.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing or has another shape or a type that is not read, or the system
    /// cannot provide the memory.
    pub(crate) fn packed(
        &self,
        parts: &[(&str, usize)],
        inputs: usize,
        format: WeightFormat,
        set: InstructionSet,
    ) -> Result<Projection, LoadError> {
        let views = self.matrices(parts, inputs)?;
        let rows = parts.iter().zip(&views).map(|((name, _), view)| stored(name, view));
        let matrix = StoredMatrix::new(rows.collect::<Result<Vec<_>, _>>()?, inputs);
        let packed = Projection::pack(&[(format, matrix)], set)
            .map_err(|error| LoadError::tensor(parts[0].0, format!("no memory for it: {error}")))?;
        self.release(&views);
        Ok(packed)
    }

    /// Copies matrices with the same inputs, one above the other, to a device as a tensor
    /// `[outputs, inputs]`.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing or has another shape or a type that is not read, or the device
    /// cannot take it.
    pub(crate) fn on_device(
        &self,
        parts: &[(&str, usize)],
        inputs: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, LoadError> {
        let views = self.matrices(parts, inputs)?;
        for ((name, _), view) in parts.iter().zip(&views) {
            stored(name, view)?;
        }
        let tensors = views.iter().map(|view| view.load(&Device::Cpu)?.to_dtype(dtype));
        let stacked = tensors
            .collect::<candle_core::Result<Vec<_>>>()
            .and_then(|tensors| Tensor::cat(&tensors, 0)?.to_device(device))
            .map_err(|error| {
                LoadError::tensor(parts[0].0, format!("not on the device: {error}"))
            })?;
        self.release(&views);
        Ok(stacked)
    }

    /// Returns the vector `name` in F32.
    ///
    /// # Errors
    /// Returns an error if the tensor is missing or has another shape or a type that is not read.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        let mut vector = vec![0.0; length];
        stored(name, self.tensor(name, &[length])?)?.to_f32(&mut vector);
        Ok(vector)
    }

    /// Returns the tensors of matrices with the same inputs.
    fn matrices(
        &self,
        parts: &[(&str, usize)],
        inputs: usize,
    ) -> Result<Vec<&TensorView<'a>>, LoadError> {
        parts.iter().map(|(name, outputs)| self.tensor(name, &[*outputs, inputs])).collect()
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<&TensorView<'a>, LoadError> {
        let view = self
            .tensors
            .get(name)
            .ok_or_else(|| LoadError::tensor(name, "it is missing from the checkpoint"))?;
        if view.shape() != shape {
            let reason =
                format!("its shape is {:?}, but config.json asks for {shape:?}", view.shape());
            return Err(LoadError::tensor(name, reason));
        }
        Ok(view)
    }

    /// Returns the mapped pages of tensors to the system, so that a model takes its own size while it is
    /// loaded, and not twice that.
    fn release(&self, views: &[&TensorView<'a>]) {
        for view in views {
            self.shards.iter().for_each(|shard| shard.release(view.data()));
        }
    }
}

/// Returns the numbers of a tensor as one row.
fn stored<'a>(name: &str, view: &TensorView<'a>) -> Result<StoredRow<'a>, LoadError> {
    match view.dtype() {
        Dtype::F32 => Ok(StoredRow::F32(view.data().as_chunks().0)),
        Dtype::F16 => Ok(StoredRow::F16(view.data().as_chunks().0)),
        Dtype::BF16 => Ok(StoredRow::Bf16(view.data().as_chunks().0)),
        other => {
            let reason = format!("its type is {other:?}; only F32, F16 and BF16 are read");
            Err(LoadError::tensor(name, reason))
        }
    }
}
