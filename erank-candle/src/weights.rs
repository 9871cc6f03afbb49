//! Tensors of a checkpoint, found by name, checked, and packed for the kernels or put on a device.

use std::collections::HashMap;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::checkpoint::Shard;
use crate::error::LoadError;
use crate::kernels::{Element, InstructionSet, PackedMatrix, PackedWeights};
use crate::settings::WeightFormat;

/// The tensors of all shards.
pub(crate) struct Weights<'a> {
    shards: &'a [Shard],
    tensors: HashMap<String, TensorView<'a>>,
    /// The type that matrices are kept in.
    format: WeightFormat,
}

impl<'a> Weights<'a> {
    /// Reads the shards' headers. Without a `format`, matrices keep the type of the checkpoint's
    /// embedding, BF16 or else F32.
    pub(crate) fn new(
        shards: &'a [Shard],
        format: Option<WeightFormat>,
    ) -> Result<Self, LoadError> {
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
        let stored = tensors.get(EMBEDDING).map(TensorView::dtype);
        let own = if stored == Some(Dtype::BF16) { WeightFormat::Bf16 } else { WeightFormat::F32 };
        Ok(Self { shards, tensors, format: format.unwrap_or(own) })
    }

    pub(crate) fn format(&self) -> WeightFormat {
        self.format
    }

    /// Matrices with the same inputs, one above the other as a single one.
    pub(crate) fn stacked(
        &self,
        parts: &[(&str, usize)],
        inputs: usize,
        set: InstructionSet,
    ) -> Result<PackedWeights, LoadError> {
        let views = parts
            .iter()
            .map(|(name, outputs)| Numbers::of(name, self.tensor(name, &[*outputs, inputs])?))
            .collect::<Result<Vec<_>, _>>()?;
        // By output: which part it is in, and which row there.
        let rows: Vec<(usize, usize)> = parts
            .iter()
            .enumerate()
            .flat_map(|(part, (_, outputs))| (0..*outputs).map(move |row| (part, row)))
            .collect();
        let element = |output: usize, input: usize| {
            let (part, row) = rows[output];
            views[part].get(row * inputs + input)
        };
        let no_room = |error| LoadError::tensor(parts[0].0, format!("no memory for it: {error}"));
        let packed = match self.format {
            WeightFormat::Bf16 => PackedWeights::bf16(set, rows.len(), inputs, |output, input| {
                bf16::round(element(output, input))
            })
            .map_err(no_room)?,
            WeightFormat::F32 => PackedWeights::F32(
                PackedMatrix::pack(rows.len(), inputs, element).map_err(no_room)?,
            ),
        };
        self.release(parts, inputs)?;
        Ok(packed)
    }

    /// Matrices with the same inputs, one above the other, as a tensor `[outputs, inputs]`.
    pub(crate) fn on_device(
        &self,
        parts: &[(&str, usize)],
        inputs: usize,
        device: &Device,
    ) -> Result<Tensor, LoadError> {
        let dtype = match self.format {
            WeightFormat::F32 => DType::F32,
            WeightFormat::Bf16 => DType::BF16,
        };
        let mut tensors = Vec::with_capacity(parts.len());
        for (name, outputs) in parts {
            let view = self.tensor(name, &[*outputs, inputs])?;
            Numbers::of(name, view)?;
            tensors.push(view.load(&Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype)));
        }
        let stacked = tensors
            .into_iter()
            .collect::<candle_core::Result<Vec<_>>>()
            .and_then(|tensors| Tensor::cat(&tensors, 0)?.to_device(device))
            .map_err(|error| {
                LoadError::tensor(parts[0].0, format!("not on the device: {error}"))
            })?;
        self.release(parts, inputs)?;
        Ok(stacked)
    }

    /// Gives the mapped pages of matrices back, so that a model takes its own size while loading, not
    /// twice that.
    fn release(&self, parts: &[(&str, usize)], inputs: usize) -> Result<(), LoadError> {
        for (name, outputs) in parts {
            let data = self.tensor(name, &[*outputs, inputs])?.data();
            self.shards.iter().for_each(|shard| shard.release(data));
        }
        Ok(())
    }

    /// The vector `name`, in F32.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        let numbers = Numbers::of(name, self.tensor(name, &[length])?)?;
        Ok((0..length).map(|index| numbers.get(index)).collect())
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
}

/// The embedding's name, whose type stands for the checkpoint's.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

/// A tensor's numbers, little-endian and of any alignment, as they lie in the file.
enum Numbers<'a> {
    F32(&'a [[u8; 4]]),
    F16(&'a [[u8; 2]]),
    Bf16(&'a [[u8; 2]]),
}

impl<'a> Numbers<'a> {
    fn of(name: &str, view: &'a TensorView<'_>) -> Result<Self, LoadError> {
        match view.dtype() {
            Dtype::F32 => Ok(Self::F32(view.data().as_chunks().0)),
            Dtype::F16 => Ok(Self::F16(view.data().as_chunks().0)),
            Dtype::BF16 => Ok(Self::Bf16(view.data().as_chunks().0)),
            other => {
                let reason = format!("its type is {other:?}; only F32, F16 and BF16 are read");
                Err(LoadError::tensor(name, reason))
            }
        }
    }

    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(numbers) => f32::from_le_bytes(numbers[index]),
            Self::F16(numbers) => f16::from_le_bytes(numbers[index]).to_f32(),
            Self::Bf16(numbers) => bf16::from_le_bytes(numbers[index]).to_f32(),
        }
    }
}
