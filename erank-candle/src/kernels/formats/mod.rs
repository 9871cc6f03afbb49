//! Weight formats, one file each: a block's layout, packing, dequantising, and the micro-kernels that
//! multiply it.

mod bf16;
mod f32;
mod widened;

use std::io;

use super::arch::InstructionSet;
use super::gemm::PackedWeights;
use super::micro_kernel::{KernelVisitor, MicroKernel};
use super::packed_matrix::PackedMatrix;
use super::stored::StoredMatrix;

/// A format that weights are packed into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// 32-bit floating point, 4 bytes a weight.
    F32,
    /// The upper half of F32, 2 bytes a weight.
    Bf16,
}

impl WeightFormat {
    /// Returns the format's name, such as `"BF16"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }
}

/// Calls the visitor with the best micro-kernel that an instruction set has for a format.
pub(super) fn with_kernel<V: KernelVisitor>(
    format: WeightFormat,
    set: InstructionSet,
    visitor: V,
) -> V::Output {
    match format {
        WeightFormat::F32 => f32::with_kernel(set, visitor),
        WeightFormat::Bf16 => bf16::with_kernel(set, visitor),
    }
}

/// Packs a stored matrix into a format for an instruction set, on rayon's current threads.
///
/// # Errors
/// If the system cannot provide the memory.
pub(super) fn pack(
    format: WeightFormat,
    set: InstructionSet,
    matrix: &StoredMatrix<'_>,
) -> io::Result<Box<dyn PackedWeights>> {
    struct Pack<'a>(&'a StoredMatrix<'a>);

    impl KernelVisitor for Pack<'_> {
        type Output = io::Result<Box<dyn PackedWeights>>;

        fn visit<K: MicroKernel>(self, kernel: K) -> Self::Output {
            Ok(Box::new(PackedMatrix::pack(kernel, self.0)?))
        }
    }

    with_kernel(format, set, Pack(matrix))
}

/// Calls the visitor with every micro-kernel of every format that an instruction set has.
#[cfg(test)]
pub(super) fn with_every_kernel<V: KernelVisitor + Copy>(
    set: InstructionSet,
    visitor: V,
) -> Vec<V::Output> {
    let mut outputs = vec![f32::with_kernel(set, visitor)];
    outputs.extend(bf16::with_every_kernel(set, visitor));
    outputs
}
