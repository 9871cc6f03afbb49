//! Tensors of a checkpoint, found by name, checked, and packed for the kernels or copied to a device.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::shard::Shard;
use crate::error::LoadError;
use crate::kernels::stored::{StoredMatrix, StoredRow};
use crate::kernels::{InstructionSet, Projection, WeightFormat};

/// A tensor as a file stores it.
#[derive(Debug)]
pub(crate) struct StoredTensor<'a> {
    /// The fastest dimension comes last.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: &'a [u8],
    /// The numbers as one row, or the name of a type that is not read.
    pub(crate) numbers: Result<StoredRow<'a>, String>,
}

/// The tensors of all files of a checkpoint. The names in arguments are those of Hugging Face's folders.
pub(crate) struct Weights<'a> {
    shards: &'a [Shard],
    tensors: HashMap<String, StoredTensor<'a>>,
    /// Returns the name in the files.
    own_name: fn(&str) -> String,
}

impl<'a> Weights<'a> {
    /// Collects tensors, given by their names in the files.
    ///
    /// # Errors
    /// Returns an error if two tensors have the same name.
    pub(crate) fn new(
        shards: &'a [Shard],
        named: impl IntoIterator<Item = (String, StoredTensor<'a>)>,
        own_name: fn(&str) -> String,
    ) -> Result<Self, LoadError> {
        let mut tensors = HashMap::new();
        for (name, tensor) in named {
            if tensors.contains_key(&name) {
                return Err(LoadError::tensor(&name, "it is in more than one file"));
            }
            tensors.insert(name, tensor);
        }
        Ok(Self { shards, tensors, own_name })
    }

    /// Returns a format for all matrices together. It is that of most bytes, but F32 if the matrices differ and most
    /// are not quantised: neither BF16 nor F16 holds the numbers of another format.
    pub(crate) fn common_format(&self) -> WeightFormat {
        match self.formats()[..] {
            [WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16, _, ..] | [] => {
                WeightFormat::F32
            }
            [most, ..] => most,
        }
    }

    /// Returns the formats of the matrices, that of most bytes first.
    pub(crate) fn formats(&self) -> Vec<WeightFormat> {
        let mut bytes: HashMap<WeightFormat, usize> = HashMap::new();
        for tensor in self.tensors.values().filter(|tensor| tensor.shape.len() == 2) {
            if let Ok(numbers) = &tensor.numbers {
                *bytes.entry(format_of(numbers, None)).or_default() += tensor.bytes.len();
            }
        }
        let mut formats: Vec<WeightFormat> = WeightFormat::ALL.to_vec();
        formats.retain(|format| bytes.contains_key(format));
        formats.sort_by_key(|format| std::cmp::Reverse(bytes[format]));
        formats
    }

    /// Packs matrices with the same inputs, one above the other: names and numbers of outputs. Each gets the
    /// format of [`format_of`]. Runs on rayon's current threads.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing or has another shape or a type that is not read, if the setting
    /// is a format that is only read from files, or if the system cannot provide the memory.
    pub(crate) fn packed(
        &self,
        parts: &[(&str, usize)],
        inputs: usize,
        setting: Option<WeightFormat>,
        set: InstructionSet,
    ) -> Result<Projection, LoadError> {
        let tensors = self.matrices(parts, inputs)?;
        // Neighbours of the same format become one matrix.
        let mut runs: Vec<(WeightFormat, Vec<StoredRow<'_>>)> = Vec::new();
        for (_, numbers) in &tensors {
            let format = format_of(numbers, setting);
            match runs.last_mut() {
                Some((last, rows)) if *last == format => rows.push(*numbers),
                _ => runs.push((format, vec![*numbers])),
            }
        }
        let matrix = |(format, rows)| (format, StoredMatrix::new(rows, inputs));
        let matrices: Vec<_> = runs.into_iter().map(matrix).collect();
        let packed = Projection::pack(&matrices, set).map_err(|error| {
            LoadError::tensor(&(self.own_name)(parts[0].0), format!("it cannot be packed: {error}"))
        })?;
        self.release(&tensors);
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
        let tensors = self.matrices(parts, inputs)?;
        let copies =
            tensors.iter().map(|(tensor, numbers)| copy(tensor, *numbers)?.to_dtype(dtype));
        let stacked = copies
            .collect::<candle_core::Result<Vec<_>>>()
            .and_then(|tensors| Tensor::cat(&tensors, 0)?.to_device(device))
            .map_err(|error| {
                let name = (self.own_name)(parts[0].0);
                LoadError::tensor(&name, format!("not on the device: {error}"))
            })?;
        self.release(&tensors);
        Ok(stacked)
    }

    /// Returns whether there is a tensor of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the vector `name` in F32.
    ///
    /// # Errors
    /// Returns an error if the tensor is missing or has another shape or a type that is not read.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        let (_, numbers) = self.tensor(name, Some(&[length]))?;
        let mut vector = vec![0.0; length];
        numbers.to_f32(&mut vector);
        Ok(vector)
    }

    /// Returns a tensor of any shape in F32, on candle's CPU device.
    ///
    /// # Errors
    /// Returns an error if the tensor is missing or has a type that is not read.
    pub(crate) fn values(&self, name: &str) -> Result<Tensor, LoadError> {
        let (tensor, numbers) = self.tensor(name, None)?;
        copy(tensor, numbers)
            .and_then(|tensor| tensor.to_dtype(DType::F32))
            .map_err(|error| LoadError::tensor(&(self.own_name)(name), error.to_string()))
    }

    /// Returns the tensors of matrices with the same inputs.
    fn matrices(
        &self,
        parts: &[(&str, usize)],
        inputs: usize,
    ) -> Result<Vec<(&StoredTensor<'a>, StoredRow<'a>)>, LoadError> {
        parts.iter().map(|(name, outputs)| self.tensor(name, Some(&[*outputs, inputs]))).collect()
    }

    /// Returns a tensor and its numbers. Checks the shape, if one is given.
    ///
    /// # Errors
    /// Returns an error if the tensor is missing or has another shape or a type that is not read.
    pub(crate) fn tensor(
        &self,
        name: &str,
        shape: Option<&[usize]>,
    ) -> Result<(&StoredTensor<'a>, StoredRow<'a>), LoadError> {
        let name = (self.own_name)(name);
        let refuse = |reason: String| LoadError::tensor(&name, reason);
        let tensor = self.tensors.get(&name);
        let tensor = tensor.ok_or_else(|| {
            let reason = match &*name {
                "lm_head.weight" => {
                    "it is missing, so the model has no output projection, as embedding models have none; choose a \
                     language model or a reranker, or take all files from the same model"
                }
                "score.weight" => {
                    "it is missing, so the model has no classifier's head; if it is a language model, set \
                     architectures in config.json to [\"Qwen3ForCausalLM\"]"
                }
                _ => "it is missing from the checkpoint; take all files from the same model",
            };
            refuse(reason.into())
        })?;
        if let Some(shape) = shape.filter(|shape| tensor.shape != *shape) {
            return Err(refuse(format!(
                "its shape is {:?}, but the configuration asks for {shape:?}; take all files from the same model",
                tensor.shape
            )));
        }
        self.shards.iter().try_for_each(Shard::check_length)?;
        match &tensor.numbers {
            Ok(numbers) => Ok((tensor, *numbers)),
            Err(kind) => {
                Err(refuse(format!("its type is {kind}; only F32, F16 and BF16 are read")))
            }
        }
    }

    /// Returns the mapped pages of tensors to the system, so that a model takes its own size while it is
    /// loaded, and not twice that.
    fn release(&self, tensors: &[(&StoredTensor<'a>, StoredRow<'a>)]) {
        for (tensor, _) in tensors {
            self.shards.iter().for_each(|shard| shard.release(tensor.bytes));
        }
    }
}

/// Returns the format that a tensor is packed into: the setting, or else the tensor's own format.
pub(crate) fn format_of(numbers: &StoredRow<'_>, setting: Option<WeightFormat>) -> WeightFormat {
    setting.unwrap_or(match numbers {
        StoredRow::F32(_) => WeightFormat::F32,
        StoredRow::F16(_) => WeightFormat::F16,
        StoredRow::Bf16(_) => WeightFormat::Bf16,
        StoredRow::Blocks(block_type, _) => (*block_type).into(),
    })
}

/// Returns the name of a tensor's type, such as `"F16"` or `"Q8_0"`.
pub(crate) fn type_name(numbers: StoredRow<'_>) -> &'static str {
    match numbers {
        StoredRow::F32(_) => "F32",
        StoredRow::F16(_) => "F16",
        StoredRow::Bf16(_) => "BF16",
        StoredRow::Blocks(block_type, _) => WeightFormat::from(block_type).name(),
    }
}

/// Copies a tensor to candle's CPU device. Blocks become F32.
fn copy(tensor: &StoredTensor<'_>, numbers: StoredRow<'_>) -> candle_core::Result<Tensor> {
    let shape = &tensor.shape[..];
    let raw = |dtype| Tensor::from_raw_buffer(tensor.bytes, dtype, shape, &Device::Cpu);
    match numbers {
        StoredRow::F32(_) => raw(DType::F32),
        StoredRow::F16(_) => raw(DType::F16),
        StoredRow::Bf16(_) => raw(DType::BF16),
        StoredRow::Blocks(..) => {
            let mut values = vec![0.0_f32; numbers.len()];
            numbers.to_f32(&mut values);
            Tensor::from_vec(values, shape, &Device::Cpu)
        }
    }
}
