//! Instruction sets of x86-64 processors.

pub(crate) mod amx;
pub(crate) mod amx_vectors;
pub(crate) mod avx2;
pub(crate) mod avx512;
pub(crate) mod avx512_bf16;
pub(crate) mod avx512_vnni;
pub(crate) mod avx_vnni;
pub(crate) mod softmax;
