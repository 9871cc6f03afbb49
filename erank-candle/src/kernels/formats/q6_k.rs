//! Q6_K weights: 256 integers of 6 bits, in parts of 16 with a scale of 8 bits, which are scaled by an F16
//! number.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vector loads"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m256i, _mm256_mul_ps};

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::super::ggml::{self, BlockType};
use super::super::tile::NR;
use super::quantised::{self, GROUP, Group, GroupFormat, HalfBytes, STEP, Step};

quantised_format!(Q6K);

/// Eight groups of 16 outputs: 3,360 bytes.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Block {
    d: [f16; NR],
    groups: [BlockGroup; 8],
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct BlockGroup {
    scales: [[i8; NR]; 2],
    half_bytes: HalfBytes,
    /// Bits `(2 · step + 4) % 8` and the next of each byte belong to a step of the part.
    upper_bits: [Step<u8>; 2],
}

impl GroupFormat for Q6K {
    const BLOCK_TYPE: BlockType = BlockType::Q6K;
    type Block = Block;
    type Lhs = [Group; 8];
    const GROUPS: usize = 8;
    const PARTS: usize = 2;
    const OFFSET: i32 = 32;
    const MINS: bool = false;

    fn set_column(block: &mut Block, column: usize, fields: &ggml::Block) {
        block.d[column] = fields.d;
        for (index, group) in block.groups.iter_mut().enumerate() {
            for (part, scales) in group.scales.iter_mut().enumerate() {
                scales[column] = fields.scales[2 * index + part];
            }
            for (i, number) in fields.numbers[index * GROUP..][..GROUP].iter().enumerate() {
                let number = (number + 32) as u8;
                quantised::set_half_byte(&mut group.half_bytes, i, column, number);
                group.upper_bits[i / 16][column][i % STEP] |= number >> 4 << upper_bits(i);
            }
        }
    }

    fn number(block: &Block, group: usize, index: usize, column: usize) -> i32 {
        let group = &block.groups[group];
        let low = quantised::half_byte(&group.half_bytes, index, column);
        let upper = group.upper_bits[index / 16][column][index % STEP] >> upper_bits(index) & 3;
        (low | upper << 4).into()
    }

    fn scale(block: &Block, group: usize, part: usize, column: usize) -> f32 {
        block.d[column].to_f32() * f32::from(block.groups[group].scales[part][column])
    }
}

#[cfg(target_arch = "x86_64")]
impl quantised::ByteSteps for Q6K {
    const STEPS_IN_16_BITS: usize = 2;

    #[inline(always)]
    unsafe fn step<const STEP: usize>(block: &Block, group: usize, side: usize) -> __m256i {
        // SAFETY: the caller guarantees AVX2.
        unsafe {
            let group = &block.groups[group];
            let low = quantised::load_half_bytes::<STEP>(&group.half_bytes, side);
            let upper = quantised::load(&group.upper_bits[STEP / 4], side);
            quantised::add_upper_bits::<48>(low, upper, upper_bits(quantised::STEP * STEP))
        }
    }

    #[inline(always)]
    unsafe fn scales(block: &Block, group: usize, part: usize, side: usize) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and F16C.
        unsafe {
            let scales = quantised::load_i8(&block.groups[group].scales[part], side);
            _mm256_mul_ps(quantised::load_f16(&block.d, side), scales)
        }
    }
}

/// Returns the place of the upper two bits of number `index`. One shift of the byte brings the bits to place 4.
fn upper_bits(index: usize) -> usize {
    (2 * (index / STEP) + 4) % 8
}
