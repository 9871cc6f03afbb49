//! Q8_0 weights: groups of 32 integers of 8 bits with an F16 scale.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vector loads"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m256i};

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::super::ggml::{self, BlockType};
use super::super::tile::NR;
use super::quantised::{self, GROUP, Group, GroupFormat, STEP, Step};

quantised_format!(Q8_0);

/// One group of 16 outputs: 544 bytes.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Block {
    scales: [f16; NR],
    numbers: [Step<i8>; GROUP / STEP],
}

impl GroupFormat for Q8_0 {
    const BLOCK_TYPE: BlockType = BlockType::Q8_0;
    type Block = Block;
    type Lhs = Group;
    const GROUPS: usize = 1;
    const PARTS: usize = 1;
    const OFFSET: i32 = 0;
    const MINS: bool = false;
    const FROM_NUMBERS: bool = true;

    /// Rounds as llama.cpp does when it makes a file: ties away from zero.
    fn quantise(numbers: &[f32; GROUP]) -> ggml::Block {
        let (scale, inverse) = quantised::scale(numbers);
        let mut block = ggml::Block::with_scale(f16::from_f32(scale));
        for (rounded, number) in block.numbers.iter_mut().zip(numbers) {
            *rounded = (number * inverse).round() as i8;
        }
        block
    }

    fn set_column(block: &mut Block, column: usize, fields: &ggml::Block) {
        block.scales[column] = fields.d;
        for (step, numbers) in block.numbers.iter_mut().zip(fields.numbers.as_chunks().0) {
            step[column] = *numbers;
        }
    }

    fn number(block: &Block, _: usize, index: usize, column: usize) -> i32 {
        block.numbers[index / STEP][column][index % STEP].into()
    }

    fn scale(block: &Block, _: usize, _: usize, column: usize) -> f32 {
        block.scales[column].to_f32()
    }
}

#[cfg(target_arch = "x86_64")]
impl quantised::ByteSteps for Q8_0 {
    const STEPS_IN_16_BITS: usize = 0;

    #[inline(always)]
    unsafe fn step<const STEP: usize>(block: &Block, _: usize, side: usize) -> __m256i {
        // SAFETY: the caller guarantees AVX2.
        unsafe { quantised::load(&block.numbers[STEP], side) }
    }

    #[inline(always)]
    unsafe fn scales(block: &Block, _: usize, _: usize, side: usize) -> __m256 {
        // SAFETY: the caller guarantees AVX2 and F16C.
        unsafe { quantised::load_f16(&block.scales, side) }
    }
}
