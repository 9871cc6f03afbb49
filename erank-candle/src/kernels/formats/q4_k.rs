//! Q4_K weights: 256 integers of 4 bits, in groups of 32 with a scale and a min of 6 bits each, which are scaled
//! by two F16 numbers.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::super::ggml::{self, BlockType};
use super::super::tile::NR;
use super::quantised::{self, GROUP, GroupFormat, HalfBytes, Registers};

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

    /// Returns the lower four bits of step `INDEX`.
    #[inline(always)]
    pub(super) fn load_half_bytes<R: Registers, const INDEX: usize>(
        &self,
        registers: R,
        side: usize,
    ) -> R::Bytes {
        quantised::load_half_bytes::<R, INDEX>(registers, &self.half_bytes, side)
    }

    /// Returns the scales of the columns of a register.
    #[inline(always)]
    pub(super) fn load_scales<R: Registers>(
        &self,
        registers: R,
        d: &[f16; NR],
        side: usize,
    ) -> R::Floats {
        registers.multiply(registers.load_f16(d, side), registers.load_u8(&self.scales, side))
    }

    /// Returns the mins of the columns of a register.
    #[inline(always)]
    pub(super) fn load_mins<R: Registers>(
        &self,
        registers: R,
        dmin: &[f16; NR],
        side: usize,
    ) -> R::Floats {
        registers.multiply(registers.load_f16(dmin, side), registers.load_u8(&self.mins, side))
    }
}

impl GroupFormat for Q4K {
    const BLOCK_TYPE: BlockType = BlockType::Q4K;
    type Block = Block;
    type PerGroup<T: Pod + Send + Sync> = [T; 8];
    const GROUPS: usize = 8;
    const PARTS: usize = 1;
    const BITS: u32 = 4;
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

    #[inline(always)]
    fn load_step<R: Registers, const INDEX: usize>(
        registers: R,
        block: &Block,
        group: usize,
        side: usize,
    ) -> R::Bytes {
        block.groups[group].load_half_bytes::<R, INDEX>(registers, side)
    }

    #[inline(always)]
    fn load_scales<R: Registers>(
        registers: R,
        block: &Block,
        group: usize,
        _: usize,
        side: usize,
    ) -> R::Floats {
        block.groups[group].load_scales(registers, &block.d, side)
    }

    #[inline(always)]
    fn load_mins<R: Registers>(
        registers: R,
        block: &Block,
        group: usize,
        side: usize,
    ) -> R::Floats {
        block.groups[group].load_mins(registers, &block.dmin, side)
    }
}
