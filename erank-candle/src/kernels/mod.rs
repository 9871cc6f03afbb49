//! What the forward pass computes with, as plain functions over slices.
//!
//! Everything rests on one inner loop, the product of a few rows with a panel of 16 columns:
//!
//! ```text
//! tile(x: [k][ROWS], panel: [k][16]):
//!     for i in 0..k, r in 0..ROWS, lane in 0..16:
//!         sum[r][lane] += x[i][r] · panel[i][lane]
//! ```
//!
//! Weights are packed into such panels while loading ([`PackedMatrix`]), and the KV cache is kept
//! in them ([`attention`]), so that one loop serves projections, attention scores and the weighted
//! sum of values. Each sum runs over `k` in order, one accumulator each: it depends on nothing but
//! its own row and column, so a row's result has the same bits whatever rows surround it.
//!
//! [`arch`] compiles the loop once per instruction set and chooses one at run time. The sets differ
//! in their bits (fused or separate multiply-add), never in the order of summation.

pub(crate) mod arch;
pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod norm;
mod packed;
#[cfg(test)]
mod reference;

pub(crate) use arch::InstructionSet;
pub(crate) use packed::{PackedMatrix, PackedWeights};

use half::bf16;

/// Columns of a panel.
pub(crate) const LANES: usize = 16;

/// A type that weights and the KV cache are stored in. All arithmetic is in F32.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    fn widen(self) -> f32;
    fn round(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    // A BF16 number is the upper half of an F32. `bf16::to_f32` also quiets NaNs, for which no
    // kernel has a use, at the price of a branch.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// Copies up to `height` rows of `row_length` numbers, interleaved as [`arch`]'s tiles read them:
/// `[row_length][height]`. Rows beyond those given are zero. Numbers are rounded to `E`, the type
/// of what they will be multiplied with.
pub(crate) fn interleave<E: Element>(rows: &[f32], row_length: usize, height: usize) -> Vec<f32> {
    let mut tile = vec![0.0; row_length * height];
    for (r, row) in rows.chunks_exact(row_length).enumerate() {
        for (slot, value) in tile.iter_mut().skip(r).step_by(height).zip(row) {
            *slot = E::round(*value).widen();
        }
    }
    tile
}
