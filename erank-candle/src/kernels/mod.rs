//! The computations of the forward pass, as plain functions over slices.
//!
//! All products use one inner loop, the micro-kernel. It multiplies a few rows with a panel of 16 columns:
//!
//! ```text
//! multiply(lhs: [k][MR], panel: [k][16]):
//!     for i in 0..k, row in 0..MR, column in 0..16:
//!         sums[row][column] += lhs[i][row] · panel[i][column]
//! ```
//!
//! Weights are packed into such panels while loading ([`packed_matrix`]), and the KV cache is kept in them
//! ([`attention`]), so the same loop serves projections, attention scores and the weighted sum of values.
//! Each sum adds its products in a fixed order in one accumulator, and depends only on its own row and
//! column. So a row's result has the same bits, no matter which other rows are computed with it.
//!
//! | module | content |
//! |---|---|
//! | [`arch`] | instruction sets, and the loops that need their instructions; one set is chosen at run time |
//! | [`formats`] | weight formats: a block's layout, packing, dequantising, the micro-kernels |
//! | [`micro_kernel`] | the trait of a micro-kernel, one format on one instruction set |
//! | [`gemm`], [`projection`] | products of any number of rows, with their epilogues |
//! | [`cache`], [`attention`], [`tile_attention`] | the KV cache's types, and attention over it |
//!
//! Different sets may give results with different last bits, because they round differently (fused or
//! separate multiply-add, pairs, tiles of pairs). Within one set, the order of summation is always the same.

pub(crate) mod arch;
pub(crate) mod attention;
pub(crate) mod attention_kernel;
pub(crate) mod buffer;
mod column_blocks;
mod element;
pub(crate) mod exp;
pub(crate) mod formats;
mod gemm;
pub(crate) mod ggml;
pub mod measure;
mod micro_kernel;
pub(crate) mod norm;
mod pack;
mod packed_matrix;
mod parallel;
pub(crate) mod projection;
pub(crate) mod stored;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tile_attention;

pub(crate) use arch::InstructionSet;
pub use formats::{UnknownWeightFormat, WeightFormat};
pub(crate) use projection::Projection;
