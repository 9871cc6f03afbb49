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

/// One group of 16 outputs. Q5_K has the same, and a fifth bit beside it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct BlockGroup {
    scales: [u8; NR],
    mins: [u8; NR],
    half_bytes: HalfBytes,
}

impl BlockGroup {
    /// Writes the scale, the min and the lower four bits of the numbers of group `index` of a file's block.
    pub(super) fn set_column(&mut self, column: usize, fields: &ggml::Block, index: usize) {
        self.scales[column] = fields.scales[2 * index] as u8;
        self.mins[column] = fields.mins[2 * index];
        for (i, number) in fields.numbers[index * GROUP..][..GROUP].iter().enumerate() {
            quantised::set_half_byte(&mut self.half_bytes, i, column, *number as u8);
        }
    }

    /// Returns the lower four bits of number `index` of one output.
    pub(super) fn half_byte(&self, index: usize, column: usize) -> u8 {
        quantised::half_byte(&self.half_bytes, index, column)
    }

    pub(super) fn scale(&self, d: &[f16; NR], column: usize) -> f32 {
        d[column].to_f32() * f32::from(self.scales[column])
    }

    pub(super) fn min(&self, dmin: &[f16; NR], column: usize) -> f32 {
        dmin[column].to_f32() * f32::from(self.mins[column])
    }
}

#[cfg(target_arch = "x86_64")]
impl BlockGroup {
    /// Returns the lower four bits of step `STEP`.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[inline(always)]
    pub(super) unsafe fn load_half_bytes<const STEP: usize>(&self, side: usize) -> __m256i {
        // SAFETY: the caller guarantees AVX2.
        unsafe { quantised::load_half_bytes::<STEP>(&self.half_bytes, side) }
    }

    /// Returns the scales of eight outputs.
    ///
    /// # Safety
    /// The machine must have AVX2 and F16C.
    #[inline(always)]
    pub(super) unsafe fn load_scales(&self, d: &[f16; NR], side: usize) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and F16C.
        unsafe {
            _mm256_mul_ps(quantised::load_f16(d, side), quantised::load_u8(&self.scales, side))
        }
    }

    /// Returns the mins of eight outputs.
    ///
    /// # Safety
    /// The machine must have AVX2 and F16C.
    #[inline(always)]
    pub(super) unsafe fn load_mins(&self, dmin: &[f16; NR], side: usize) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and F16C.
        unsafe {
            _mm256_mul_ps(quantised::load_f16(dmin, side), quantised::load_u8(&self.mins, side))
        }
    }
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
            group.set_column(column, fields, index);
        }
    }

    fn number(block: &Block, group: usize, index: usize, column: usize) -> i32 {
        block.groups[group].half_byte(index, column).into()
    }

    fn scale(block: &Block, group: usize, _: usize, column: usize) -> f32 {
        block.groups[group].scale(&block.d, column)
    }

    fn min(block: &Block, group: usize, column: usize) -> f32 {
        block.groups[group].min(&block.dmin, column)
    }
}

#[cfg(target_arch = "x86_64")]
impl quantised::ByteSteps for Q4K {
    const STEPS_IN_16_BITS: usize = 8;

    #[inline(always)]
    unsafe fn step<const STEP: usize>(block: &Block, group: usize, side: usize) -> __m256i {
        // SAFETY: the caller guarantees AVX2.
        unsafe { block.groups[group].load_half_bytes::<STEP>(side) }
    }

    #[inline(always)]
    unsafe fn scales(block: &Block, group: usize, _: usize, side: usize) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and F16C.
        unsafe { block.groups[group].load_scales(&block.d, side) }
    }

    #[inline(always)]
    unsafe fn mins(block: &Block, group: usize, side: usize) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and F16C.
        unsafe { block.groups[group].load_mins(&block.dmin, side) }
    }
}
