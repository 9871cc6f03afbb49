//! Q4_K weights: 256 integers of 4 bits, in groups of 32 with a scale and a min of 6 bits each, which are scaled
//! by two F16 numbers.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vector loads"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m256i, _mm256_mul_ps};

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::super::ggml::{self, BlockType};
use super::super::tile::NR;
use super::quantised::{self, GROUP, Group, GroupFormat, HalfBytes};

quantised_format!(Q4K);

/// Eight groups of 16 outputs: 2,368 bytes.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Block {
    d: [f16; NR],
    dmin: [f16; NR],
    groups: [BlockGroup; 8],
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct BlockGroup {
    scales: [u8; NR],
    mins: [u8; NR],
    half_bytes: HalfBytes,
}

impl GroupFormat for Q4K {
    const BLOCK_TYPE: BlockType = BlockType::Q4K;
    type Block = Block;
    type Lhs = [Group; 8];
    const GROUPS: usize = 8;
    const PARTS: usize = 1;
    const OFFSET: i32 = 0;
    const MINS: bool = true;

    fn set_column(block: &mut Block, column: usize, fields: &ggml::Block) {
        (block.d[column], block.dmin[column]) = (fields.d, fields.dmin);
        for (index, group) in block.groups.iter_mut().enumerate() {
            group.scales[column] = fields.scales[2 * index] as u8;
            group.mins[column] = fields.mins[2 * index];
            for (i, number) in fields.numbers[index * GROUP..][..GROUP].iter().enumerate() {
                quantised::set_half_byte(&mut group.half_bytes, i, column, *number as u8);
            }
        }
    }

    fn number(block: &Block, group: usize, index: usize, column: usize) -> i32 {
        quantised::half_byte(&block.groups[group].half_bytes, index, column).into()
    }

    fn scale(block: &Block, group: usize, _: usize, column: usize) -> f32 {
        block.d[column].to_f32() * f32::from(block.groups[group].scales[column])
    }

    fn min(block: &Block, group: usize, column: usize) -> f32 {
        block.dmin[column].to_f32() * f32::from(block.groups[group].mins[column])
    }
}

#[cfg(target_arch = "x86_64")]
impl quantised::ByteSteps for Q4K {
    const STEPS_IN_16_BITS: usize = 8;

    #[inline(always)]
    unsafe fn step<const STEP: usize>(block: &Block, group: usize, side: usize) -> __m256i {
        // SAFETY: the caller guarantees AVX2.
        unsafe { quantised::load_half_bytes::<STEP>(&block.groups[group].half_bytes, side) }
    }

    #[inline(always)]
    unsafe fn scales(block: &Block, group: usize, _: usize, side: usize) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and F16C.
        unsafe {
            let scales = quantised::load_u8(&block.groups[group].scales, side);
            _mm256_mul_ps(quantised::load_f16(&block.d, side), scales)
        }
    }

    #[inline(always)]
    unsafe fn mins(block: &Block, group: usize, side: usize) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and F16C.
        unsafe {
            let mins = quantised::load_u8(&block.groups[group].mins, side);
            _mm256_mul_ps(quantised::load_f16(&block.dmin, side), mins)
        }
    }
}
