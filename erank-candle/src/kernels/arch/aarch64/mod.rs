//! Instruction sets of 64-bit ARM processors.

pub(crate) mod neon;
pub(crate) mod neon_bf16;
pub(crate) mod neon_dotprod;
pub(crate) mod neon_i8mm;
