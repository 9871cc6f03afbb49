//! Q6_K weights: 256 integers of 6 bits, in parts of 16 with a scale of 8 bits, which are scaled by an F16
//! number.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::super::ggml::{self, BlockType};
use super::super::tile::NR;
use super::quantised::{self, GROUP, GroupFormat, HalfBytes, Registers, STEP, Step};

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
    type PerGroup<T: Pod + Send + Sync> = [T; 8];
    const GROUPS: usize = 8;
    const PARTS: usize = 2;
    const BITS: u32 = 6;
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

    #[inline(always)]
    fn load_step<R: Registers, const INDEX: usize>(
        registers: R,
        block: &Block,
        group: usize,
        side: usize,
    ) -> R::Bytes {
        let group = &block.groups[group];
        let low = quantised::load_half_bytes::<R, INDEX>(registers, &group.half_bytes, side);
        let upper = registers.load(&group.upper_bits[INDEX / 4], side);
        quantised::add_upper_bits(registers, low, upper, const { upper_bits(STEP * INDEX) }, 48)
    }

    #[inline(always)]
    fn load_scales<R: Registers>(
        registers: R,
        block: &Block,
        group: usize,
        part: usize,
        side: usize,
    ) -> R::Floats {
        let scales = registers.load_i8(&block.groups[group].scales[part], side);
        registers.multiply(registers.load_f16(&block.d, side), scales)
    }
}

/// Returns the place of the upper two bits of number `index`. One shift of the byte brings the bits to place 4.
const fn upper_bits(index: usize) -> usize {
    (2 * (index / STEP) + 4) % 8
}
