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
//! in their bits (fused or separate multiply-add, pairs at once, tiles of pairs); with each, the order of
//! summation is always the same.
//! Where the machine multiplies BF16 numbers in pairs, BF16 weights and the cache are laid out for that
//! ([`products`]); 8-bit and 4-bit weights would be further kinds of [`PackedWeights`].

pub(crate) mod arch;
pub(crate) mod attention;
pub(crate) mod buffer;
mod columns;
pub(crate) mod exp;
#[cfg(all(test, target_os = "linux"))]
mod guard_pages;
pub(crate) mod linear;
pub mod measure;
pub(crate) mod norm;
mod packed;
pub(crate) mod products;
#[cfg(test)]
mod reference;

pub(crate) use arch::InstructionSet;
pub(crate) use packed::{PackedMatrix, PackedWeights};

use bytemuck::Pod;
use half::bf16;

/// Columns of a panel.
pub(crate) const LANES: usize = 16;

/// What to have fetched from memory while panels are multiplied: what lies so many bytes behind a
/// panel's beginning, and so many more with each 64 bytes of the panel, which are multiplied at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    pub(crate) bytes: usize,
    pub(crate) step: usize,
}

impl Ahead {
    /// Left to the processor.
    pub(crate) const NOTHING: Self = Self { bytes: 0, step: 0 };
}

/// A type that weights and the KV cache are stored in. All arithmetic is in F32.
pub(crate) trait Element: Pod + Send + Sync {
    /// So many numbers of a column that lie together in a panel: one word of memory.
    const DEPTH: usize;
    /// As many numbers of a row.
    type Left: Pod + Default + AsRef<[f32]> + AsMut<[f32]> + Send + Sync;
    /// As many numbers of each column, `[16][DEPTH]`.
    type Group: Pod;

    fn widen(self) -> f32;
    fn round(value: f32) -> Self;

    /// Number `place` of each column.
    fn lanes(group: &Self::Group, place: usize) -> [f32; LANES];
}

impl Element for f32 {
    const DEPTH: usize = 1;
    type Left = [f32; 1];
    type Group = [f32; LANES];

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn lanes(group: &[f32; LANES], _: usize) -> [f32; LANES] {
        *group
    }
}

impl Element for bf16 {
    const DEPTH: usize = 2;
    type Left = [f32; 2];
    type Group = [[bf16; 2]; LANES];

    // A BF16 number is the upper half of an F32. `bf16::to_f32` also quiets NaNs, for which no
    // kernel has a use, at the price of a branch.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    // To the nearest, of two equally near ones the even: as `bf16::from_f32`, but without a branch,
    // so that it is vectorised. NaNs are quieted, as rounding up could make them infinite.
    #[inline(always)]
    fn round(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let bits = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
        Self::from_bits((bits >> 16) as u16)
    }

    // One shift or one mask for a word: spreading sixteen neighbours over as many words is slower.
    #[inline(always)]
    fn lanes(group: &[[bf16; 2]; LANES], place: usize) -> [f32; LANES] {
        let words: [u32; LANES] = bytemuck::cast(*group);
        let shift = if cfg!(target_endian = "little") == (place == 0) { 16 } else { 0 };
        let mut lanes = [0.0; LANES];
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = f32::from_bits((word << shift) & 0xffff_0000);
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_half_s() {
        // Two lie halfway between their neighbours.
        let halfway = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
        let numbers = [[0.0, -0.0], halfway, [-3.3e38, 1e-40], [1.0, f32::INFINITY]].concat();
        let more = (0..100_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9)));
        for number in numbers.into_iter().chain(more) {
            let (ours, theirs) = (<bf16 as Element>::round(number), bf16::from_f32(number));
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{number:e}");
        }
    }
}
