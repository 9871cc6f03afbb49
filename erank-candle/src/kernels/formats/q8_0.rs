//! Q8_0 weights: groups of 32 integers of 8 bits with an F16 scale.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::super::ggml::{self, BlockType};
use super::super::tile::NR;
use super::quantised::{self, GROUP, GroupFormat, Registers, STEP, Step};

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
    type PerGroup<T: Pod + Send + Sync> = T;
    const GROUPS: usize = 1;
    const PARTS: usize = 1;
    const BITS: u32 = 8;
    const SIGNED: bool = true;
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

    #[inline(always)]
    fn load_step<R: Registers, const INDEX: usize>(
        registers: R,
        block: &Block,
        _: usize,
        side: usize,
    ) -> R::Bytes {
        registers.load(&block.numbers[INDEX], side)
    }

    #[inline(always)]
    fn load_scales<R: Registers>(
        registers: R,
        block: &Block,
        _: usize,
        _: usize,
        side: usize,
    ) -> R::Floats {
        registers.load_f16(&block.scales, side)
    }
}
