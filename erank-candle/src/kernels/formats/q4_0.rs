//! Q4_0 weights: groups of 32 integers of 4 bits with an F16 scale.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::super::ggml::{self, BlockType};
use super::super::tile::NR;
use super::quantised::{self, GROUP, GroupFormat, HalfBytes, Registers};

quantised_format!(Q4_0);

/// One group of 16 outputs: 288 bytes.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Block {
    scales: [f16; NR],
    half_bytes: HalfBytes,
}

impl GroupFormat for Q4_0 {
    const BLOCK_TYPE: BlockType = BlockType::Q4_0;
    type Block = Block;
    type PerGroup<T: Pod + Send + Sync> = T;
    const GROUPS: usize = 1;
    const PARTS: usize = 1;
    const BITS: u32 = 4;
    const OFFSET: i32 = 8;
    const MINS: bool = false;
    const FROM_NUMBERS: bool = true;

    /// Rounds as llama.cpp does when it makes a file: the number with the largest magnitude becomes −8.
    fn quantise(numbers: &[f32; GROUP]) -> ggml::Block {
        let mut largest = 0f32;
        for number in numbers {
            if number.abs() > largest.abs() {
                largest = *number;
            }
        }
        // The sum is NaN if a number is infinite or NaN.
        let scale = largest / -8.0 + numbers.iter().map(|number| number * 0.0).sum::<f32>();
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let mut block = ggml::Block::with_scale(f16::from_f32(scale));
        for (rounded, number) in block.numbers.iter_mut().zip(numbers) {
            *rounded = (number * inverse + 8.5).clamp(0.0, 15.0) as i8 - 8;
        }
        block
    }

    fn set_column(block: &mut Block, column: usize, fields: &ggml::Block) {
        block.scales[column] = fields.d;
        for (index, number) in fields.numbers[..GROUP].iter().enumerate() {
            quantised::set_half_byte(&mut block.half_bytes, index, column, (number + 8) as u8);
        }
    }

    fn number(block: &Block, _: usize, index: usize, column: usize) -> i32 {
        quantised::half_byte(&block.half_bytes, index, column).into()
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
        quantised::load_half_bytes::<R, INDEX>(registers, &block.half_bytes, side)
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
