//! The types of tensors in GGUF files.

use crate::kernels::ggml::BlockType;
use crate::kernels::stored::StoredRow;

/// The names of ggml's types. The position is the number in files; an empty name is not in use.
const NAMES: [&str; 40] = [
    "F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K",
    "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S",
    "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16", "", "", "", "TQ1_0", "TQ2_0", "",
    "", "", "MXFP4",
];

/// A type of tensor that is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum TensorType {
    F32,
    F16,
    Bf16,
    Blocks(BlockType),
}

impl TensorType {
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Blocks(BlockType::Q4_0),
            8 => Self::Blocks(BlockType::Q8_0),
            12 => Self::Blocks(BlockType::Q4K),
            13 => Self::Blocks(BlockType::Q5K),
            14 => Self::Blocks(BlockType::Q6K),
            30 => Self::Bf16,
            _ => {
                let name = NAMES.get(id as usize).filter(|name| !name.is_empty());
                let name =
                    name.map_or_else(|| format!("number {id}"), |name| format!("{name} ({id})"));
                return Err(format!(
                    "its type is {name}; F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K and Q6_K are read"
                ));
            }
        })
    }

    /// Returns the number of bytes of a tensor, whose fastest dimension is the last one.
    pub(super) fn size(self, shape: &[usize]) -> Result<usize, String> {
        let (values, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Blocks(block) => (block.values(), block.bytes()),
        };
        if shape.contains(&0) {
            return Err(format!("its shape is {shape:?}, which holds no numbers"));
        }
        if !shape.last().is_some_and(|width| width.is_multiple_of(values)) {
            return Err(format!(
                "its rows, of shape {shape:?}, are not whole blocks of {values} values"
            ));
        }
        let numbers = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        let size = numbers.and_then(|numbers| (numbers / values).checked_mul(bytes));
        size.ok_or_else(|| format!("its shape {shape:?} is too large"))
    }

    /// Returns the numbers in the bytes of a tensor.
    pub(super) fn numbers(self, bytes: &[u8]) -> StoredRow<'_> {
        match self {
            Self::F32 => StoredRow::F32(bytes.as_chunks().0),
            Self::F16 => StoredRow::F16(bytes.as_chunks().0),
            Self::Bf16 => StoredRow::Bf16(bytes.as_chunks().0),
            Self::Blocks(block) => StoredRow::Blocks(block, bytes),
        }
    }
}
