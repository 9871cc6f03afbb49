//! The number types that weights and the KV cache are stored in. All arithmetic is in F32.

use std::fmt::Debug;

use bytemuck::Pod;
use half::bf16;

use super::tile::NR;

/// A stored number. `DEPTH` numbers of a column fill one 32-bit word. The words of 16 columns fill a block of
/// 64 bytes, one step of a panel.
pub(crate) trait Element: Pod + Debug + Send + Sync {
    /// Numbers in a word.
    const DEPTH: usize;
    /// The numbers of one row that are multiplied with a block, widened to F32.
    type Lhs: Pod + Default + AsRef<[f32]> + AsMut<[f32]> + Send + Sync;
    /// One step of a panel, `[16][DEPTH]`.
    type Block: Pod + Debug + Send + Sync;

    /// Converts to F32, exactly.
    fn widen(self) -> f32;

    /// Rounds to the nearest number of this type, ties to even.
    fn round(value: f32) -> Self;

    /// Returns number `index` of each column's word, widened.
    fn column(block: &Self::Block, index: usize) -> [f32; NR];
}

impl Element for f32 {
    const DEPTH: usize = 1;
    type Lhs = [f32; 1];
    type Block = [f32; NR];

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn column(block: &[f32; NR], _: usize) -> [f32; NR] {
        *block
    }
}

impl Element for bf16 {
    const DEPTH: usize = 2;
    type Lhs = [f32; 2];
    type Block = [[bf16; 2]; NR];

    // A BF16 number is the upper half of an F32. `bf16::to_f32` also quiets NaNs, which costs a branch
    // and which no kernel needs.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    // Gives the result of `bf16::from_f32` without a branch, so that the compiler vectorises it. NaNs are
    // quieted, because rounding up could turn them into infinity.
    #[inline(always)]
    fn round(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let bits = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
        Self::from_bits((bits >> 16) as u16)
    }

    // This takes one shift or one mask per word. Spreading sixteen neighbouring numbers over sixteen words is
    // slower.
    #[inline(always)]
    fn column(block: &[[bf16; 2]; NR], index: usize) -> [f32; NR] {
        let words: [u32; NR] = bytemuck::cast(*block);
        let shift = if cfg!(target_endian = "little") == (index == 0) { 16 } else { 0 };
        let mut column = [0.0; NR];
        for (number, word) in column.iter_mut().zip(words) {
            *number = f32::from_bits((word << shift) & 0xffff_0000);
        }
        column
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_agrees_with_half() {
        // Two of these lie halfway between their neighbours.
        let halfway = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
        let numbers = [[0.0, -0.0], halfway, [-3.3e38, 1e-40], [1.0, f32::INFINITY]].concat();
        let more = (0..100_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9)));
        for number in numbers.into_iter().chain(more) {
            let (actual, expected) = (<bf16 as Element>::round(number), bf16::from_f32(number));
            assert!(actual == expected || actual.is_nan() && expected.is_nan(), "{number:e}");
        }
    }
}
