//! Reading of safetensors files.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::shard::Shard;
use super::weights::{StoredTensor, Weights};
use crate::error::LoadError;
use crate::kernels::stored::StoredRow;

/// Reads the headers of the shards.
///
/// # Errors
/// Returns an error if a shard is not a whole safetensors file, or a tensor is in more than one.
pub(super) fn weights(shards: &[Shard]) -> Result<Weights<'_>, LoadError> {
    let mut tensors = Vec::new();
    for shard in shards {
        let file = SafeTensors::deserialize(shard.bytes()).map_err(|source| {
            LoadError::unparsable(&shard.file, "not a whole safetensors file", source)
        })?;
        tensors.extend(file.tensors().into_iter().map(|(name, view)| (name, stored(&view))));
    }
    Weights::new(shards, tensors, str::to_owned)
}

fn stored<'a>(view: &TensorView<'a>) -> StoredTensor<'a> {
    let bytes = view.data();
    let numbers = match view.dtype() {
        Dtype::F32 => Ok(StoredRow::F32(bytes.as_chunks().0)),
        Dtype::F16 => Ok(StoredRow::F16(bytes.as_chunks().0)),
        Dtype::BF16 => Ok(StoredRow::Bf16(bytes.as_chunks().0)),
        other => Err(format!("{other:?}")),
    };
    StoredTensor { shape: view.shape().to_vec(), bytes, numbers }
}
