//! Weight formats, one file each: a block's layout, packing, dequantising, and the micro-kernels that
//! multiply it.
//!
//! The list in this file is the only one. The enum [`WeightFormat`] and every dispatch are generated from it.

#[macro_use]
mod quantised;

mod bf16;
mod f16;
mod f32;
mod q4_0;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_0;
mod widened;

use std::fmt;
use std::io;
use std::str::FromStr;

use super::arch::InstructionSet;
use super::gemm::PackedWeights;
use super::ggml::BlockType;
use super::micro_kernel::{KernelVisitor, MicroKernel};
use super::packed_matrix::PackedMatrix;
use super::stored::StoredMatrix;
use super::tile::NR;

/// Generates [`WeightFormat`] and every dispatch over it from a list of variants, names and files.
macro_rules! weight_formats {
    ($($(#[$doc:meta])* $variant:ident($name:literal, $file:ident),)*) => {
        /// A format that weights are packed into.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum WeightFormat {
            $($(#[$doc])* $variant,)*
        }

        impl WeightFormat {
            /// Every format, in the order of the list.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the format's name, such as `"BF16"`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
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
                $(WeightFormat::$variant => $file::with_kernel(set, visitor),)*
            }
        }

        /// Calls the visitor with every micro-kernel of every format that an instruction set has.
        #[cfg(test)]
        pub(super) fn with_every_kernel<V: KernelVisitor + Copy>(
            set: InstructionSet,
            visitor: V,
        ) -> Vec<V::Output> {
            let mut outputs = Vec::new();
            $(outputs.extend($file::with_every_kernel(set, visitor));)*
            outputs
        }
    };
}

weight_formats! {
    /// 32-bit floating point, 4 bytes per weight.
    F32("F32", f32),
    /// The upper half of F32, 2 bytes per weight.
    Bf16("BF16", bf16),
    /// 16-bit floating point of IEEE 754, 2 bytes per weight. Activations are not rounded, so products are those of
    /// the same weights in F32. Weights above 65,504 become infinite.
    F16("F16", f16),
    /// Groups of 32 integers of 8 bits with an F16 scale, 1.06 bytes per weight. The format is llama.cpp's.
    /// F32, F16 and BF16 tensors are quantised while they are loaded, and activations are quantised in each
    /// product.
    Q8_0("Q8_0", q8_0),
    /// Groups of 32 integers of 4 bits with an F16 scale, 0.56 bytes per weight. The format is llama.cpp's, and
    /// is made while loading as Q8_0 is.
    Q4_0("Q4_0", q4_0),
    /// llama.cpp's groups of 32 integers of 4 bits with a scale and a min, 0.58 bytes per weight. Loading does not
    /// convert other tensors to this format. Files of the kind Q4_K_M consist of this format and Q6_K.
    Q4K("Q4_K", q4_k),
    /// As Q4_K with integers of 5 bits, 0.70 bytes per weight. Loading does not convert other tensors to this format.
    Q5K("Q5_K", q5_k),
    /// llama.cpp's groups of 16 integers of 6 bits with a scale, 0.82 bytes per weight. Loading does not convert other
    /// tensors to this format.
    Q6K("Q6_K", q6_k),
}

impl WeightFormat {
    /// Returns the bytes that a weight takes in memory, with its share of the scales.
    pub fn bytes_per_weight(self) -> f64 {
        struct BytesPerWeight;

        impl KernelVisitor for BytesPerWeight {
            type Output = f64;

            fn visit<K: MicroKernel>(self, _: K) -> f64 {
                size_of::<K::Block>() as f64 / (NR * K::BLOCK_K) as f64
            }
        }

        with_kernel(self, InstructionSet::best(), BytesPerWeight)
    }

    /// Returns the type of blocks that files keep this format in.
    pub(super) fn block_type(self) -> Option<BlockType> {
        struct BlockTypeOf;

        impl KernelVisitor for BlockTypeOf {
            type Output = Option<BlockType>;

            fn visit<K: MicroKernel>(self, _: K) -> Option<BlockType> {
                K::BLOCK_TYPE
            }
        }

        with_kernel(self, InstructionSet::best(), BlockTypeOf)
    }
}

impl From<BlockType> for WeightFormat {
    fn from(block_type: BlockType) -> Self {
        match block_type {
            BlockType::Q8_0 => Self::Q8_0,
            BlockType::Q4_0 => Self::Q4_0,
            BlockType::Q4K => Self::Q4K,
            BlockType::Q5K => Self::Q5K,
            BlockType::Q6K => Self::Q6K,
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WeightFormat {
    type Err = UnknownWeightFormat;

    /// Reads a format's name. Case does not matter.
    fn from_str(name: &str) -> Result<Self, UnknownWeightFormat> {
        let format = Self::ALL.iter().find(|format| format.name().eq_ignore_ascii_case(name));
        format.copied().ok_or_else(|| UnknownWeightFormat(name.to_owned()))
    }
}

/// A name that no [`WeightFormat`] has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no weight format {0:?}; the formats are {formats}", formats = names())]
pub struct UnknownWeightFormat(String);

fn names() -> String {
    let names: Vec<&str> = WeightFormat::ALL.iter().map(|format| format.name()).collect();
    names.join(", ")
}

/// Packs a stored matrix into a format for an instruction set, on rayon's current threads.
///
/// # Errors
/// Returns an error if the system cannot provide the memory, or the format is only read from files and the
/// matrix is not stored in it.
pub(super) fn pack(
    format: WeightFormat,
    set: InstructionSet,
    matrix: &StoredMatrix<'_>,
) -> io::Result<Box<dyn PackedWeights>> {
    struct Pack<'a>(&'a StoredMatrix<'a>);

    impl KernelVisitor for Pack<'_> {
        type Output = io::Result<Box<dyn PackedWeights>>;

        fn visit<K: MicroKernel>(self, kernel: K) -> Self::Output {
            check_source::<K>(self.0)?;
            Ok(Box::new(PackedMatrix::pack(kernel, self.0)?))
        }
    }

    with_kernel(format, set, Pack(matrix))
}

/// Returns the bytes that [`pack`] allocates.
///
/// # Errors
/// Returns an error if the format is only read from files and the matrix is not stored in it.
pub(crate) fn packed_bytes(
    format: WeightFormat,
    set: InstructionSet,
    matrix: &StoredMatrix<'_>,
) -> io::Result<usize> {
    struct PackedBytes<'a>(&'a StoredMatrix<'a>);

    impl KernelVisitor for PackedBytes<'_> {
        type Output = io::Result<usize>;

        fn visit<K: MicroKernel>(self, _: K) -> Self::Output {
            check_source::<K>(self.0)?;
            Ok(PackedMatrix::<K>::block_count(self.0) * size_of::<K::Block>())
        }
    }

    with_kernel(format, set, PackedBytes(matrix))
}

/// Checks that a kernel's format can be made from a stored matrix.
fn check_source<K: MicroKernel>(matrix: &StoredMatrix<'_>) -> io::Result<()> {
    if !K::FROM_NUMBERS && !matrix.consists_of(K::BLOCK_TYPE) {
        return Err(io::Error::other(
            "weights of this format are only read from files that have them; open a GGUF file in this format, \
             or choose Q8_0",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_type_has_a_format() {
        for format in WeightFormat::ALL {
            if let Some(block_type) = format.block_type() {
                assert_eq!(WeightFormat::from(block_type), *format);
            }
        }
    }

    #[test]
    fn from_str_reads_every_name_and_rejects_others() {
        for format in WeightFormat::ALL {
            assert_eq!(format.name().to_lowercase().parse(), Ok(*format));
        }
        let error = "Q1_0".parse::<WeightFormat>().expect_err("no such format");
        assert!(
            error.to_string().contains("\"Q1_0\"; the formats are F32, BF16, F16, Q8_0"),
            "{error}"
        );
    }
}
