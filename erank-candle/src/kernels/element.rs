//! The number types that weights and the KV cache are stored in. All arithmetic is in F32.

use std::fmt::Debug;

use bytemuck::Pod;
use half::{bf16, f16};

use super::stored::StoredRow;
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

    /// Rounds an activation that is multiplied with numbers of this type, and widens it again.
    #[inline(always)]
    fn round_activation(value: f32) -> f32 {
        Self::round(value).widen()
    }

    /// Returns numbers of a file as bits, if they are of this type and have 16 bits.
    #[inline(always)]
    fn bits_of<'a>(_: StoredRow<'a>) -> Option<&'a [[u8; 2]]> {
        None
    }

    /// Returns number `index` of each column's word, widened.
    fn column(block: &Self::Block, index: usize) -> [f32; NR];
}

/// Returns the bits of number `index` of each column's pair of 16-bit numbers, in the upper half of the word.
#[inline(always)]
fn upper_halves(words: [u32; NR], index: usize) -> [u32; NR] {
    let shift = if cfg!(target_endian = "little") == (index == 0) { 16 } else { 0 };
    words.map(|word| (word << shift) & 0xffff_0000)
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
        upper_halves(bytemuck::cast(*block), index).map(f32::from_bits)
    }

    #[inline(always)]
    fn bits_of<'a>(numbers: StoredRow<'a>) -> Option<&'a [[u8; 2]]> {
        if let StoredRow::Bf16(numbers) = numbers { Some(numbers) } else { None }
    }
}

/// Weights only. Activations are not rounded to F16, because they can exceed its largest number, 65,504.
impl Element for f16 {
    const DEPTH: usize = 2;
    type Lhs = [f32; 2];
    type Block = [[f16; 2]; NR];

    #[inline(always)]
    fn widen(self) -> f32 {
        widen_f16(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    fn round_activation(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn bits_of<'a>(numbers: StoredRow<'a>) -> Option<&'a [[u8; 2]]> {
        if let StoredRow::F16(numbers) = numbers { Some(numbers) } else { None }
    }

    #[inline(always)]
    fn column(block: &[[f16; 2]; NR], index: usize) -> [f32; NR] {
        // `map` would be a call, because the function is not small.
        let mut column = [0.0; NR];
        for (number, word) in column.iter_mut().zip(upper_halves(bytemuck::cast(*block), index)) {
            *number = widen_f16(word);
        }
        column
    }
}

/// Keys and values only. A number is a multiple of the scale of its token
/// ([`CacheElement::scale`](super::attention_kernel::CacheElement::scale)).
impl Element for i8 {
    const DEPTH: usize = 4;
    type Lhs = [f32; 4];
    type Block = [[i8; 4]; NR];

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }

    /// Rounds to −127 at least and 127 at most, and NaN to 0.
    #[inline(always)]
    fn round(value: f32) -> Self {
        // Next to 2²³ + 2²², neighbouring F32 numbers differ by 1, so the sum is rounded to an integer, whose lowest byte
        // is that of the sum's bits.
        (value.clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as i8
    }

    #[inline(always)]
    fn round_activation(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn column(block: &[[i8; 4]; NR], index: usize) -> [f32; NR] {
        let words: [u32; NR] = bytemuck::cast(*block);
        let shift = if cfg!(target_endian = "little") { 24 - 8 * index } else { 8 * index };
        words.map(|word| ((word << shift).cast_signed() >> 24) as f32)
    }
}

/// Widens an F16 number, given by its bits in the upper half of a word. There is no branch, so that the compiler
/// vectorises a loop of calls.
#[inline(always)]
fn widen_f16(word: u32) -> f32 {
    const MANTISSA_BITS: u32 = 23;
    // Exponent and mantissa in their places of an F32. The biases of the exponents, 15 and 127, differ by 112.
    let magnitude = (word & 0x7fff_0000) >> 3;
    let normal = magnitude + (112 << MANTISSA_BITS);
    // A subnormal number is m · 2⁻²⁴. The difference is (1 + m · 2⁻¹⁰) · 2⁻¹⁴ − 2⁻¹⁴.
    let least = 113 << MANTISSA_BITS;
    let subnormal = (f32::from_bits(magnitude + least) - f32::from_bits(least)).to_bits();
    // Infinity and NaN: the exponent 31 becomes 255.
    let special = magnitude + (224 << MANTISSA_BITS);
    let widened = match magnitude >> MANTISSA_BITS {
        0 => subnormal,
        31 => special,
        _ => normal,
    };
    f32::from_bits(widened | word & 0x8000_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widen_of_every_f16_number_agrees_with_half() {
        for bits in 0..=u16::MAX {
            let number = f16::from_bits(bits);
            let (actual, expected) = (Element::widen(number), number.to_f32());
            let is_equal = actual.to_bits() == expected.to_bits();
            assert!(is_equal || actual.is_nan() && expected.is_nan(), "{bits:04x}: {actual:e}");
        }
    }

    #[test]
    fn round_to_8_bits_is_to_the_nearest_and_column_gives_it_back() {
        let halves = (-260..=260).map(|half| half as f32 / 2.0);
        for number in halves.chain([0.49, -0.51, 1e30, -1e30, f32::INFINITY]) {
            let expected = number.clamp(-127.0, 127.0).round_ties_even();
            assert_eq!(f32::from(<i8 as Element>::round(number)), expected, "{number}");
        }
        assert_eq!(<i8 as Element>::round(f32::NAN), 0);
        let block: [[i8; 4]; NR] =
            bytemuck::cast(std::array::from_fn::<i8, 64, _>(|i| i as i8 - 30));
        for index in 0..4 {
            let expected = std::array::from_fn(|column| (4 * column + index) as f32 - 30.0);
            assert_eq!(i8::column(&block, index), expected);
        }
    }

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
