//! Q5_K weights: as Q4_K, with a fifth bit.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::super::ggml::{self, BlockType};
use super::super::tile::NR;
use super::q4_k;
use super::quantised::{self, GROUP, GroupFormat, Registers, STEP, Step};

quantised_format!(Q5K);

/// Eight groups of 16 outputs: 2,880 bytes.
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
    low: q4_k::BlockGroup,
    /// Bit `(step + 4) % 8` of each byte belongs to a step of the group.
    fifth_bits: Step<u8>,
}

impl GroupFormat for Q5K {
    const BLOCK_TYPE: BlockType = BlockType::Q5K;
    type Block = Block;
    type PerGroup<T: Pod + Send + Sync> = [T; 8];
    const GROUPS: usize = 8;
    const PARTS: usize = 1;
    const BITS: u32 = 5;
    const OFFSET: i32 = 0;
    const MINS: bool = true;

    fn set_column(block: &mut Block, column: usize, fields: &ggml::Block) {
        (block.d[column], block.dmin[column]) = (fields.d, fields.dmin);
        for (index, group) in block.groups.iter_mut().enumerate() {
            group.low.set_column(column, fields, index);
            for (i, number) in fields.numbers[index * GROUP..][..GROUP].iter().enumerate() {
                group.fifth_bits[column][i % STEP] |= (*number as u8) >> 4 << fifth_bit(i);
            }
        }
    }

    fn number(block: &Block, group: usize, index: usize, column: usize) -> i32 {
        let group = &block.groups[group];
        let fifth = group.fifth_bits[column][index % STEP] >> fifth_bit(index) & 1;
        (group.low.half_byte(index, column) | fifth << 4).into()
    }

    fn scale(block: &Block, group: usize, _: usize, column: usize) -> f32 {
        block.groups[group].low.scale(&block.d, column)
    }

    fn min(block: &Block, group: usize, column: usize) -> f32 {
        block.groups[group].low.min(&block.dmin, column)
    }

    #[inline(always)]
    fn load_step<R: Registers, const INDEX: usize>(
        registers: R,
        block: &Block,
        group: usize,
        side: usize,
    ) -> R::Bytes {
        let group = &block.groups[group];
        let low = group.low.load_half_bytes::<R, INDEX>(registers, side);
        let fifth = registers.load(&group.fifth_bits, side);
        quantised::add_upper_bits(registers, low, fifth, const { fifth_bit(STEP * INDEX) }, 16)
    }

    #[inline(always)]
    fn load_scales<R: Registers>(
        registers: R,
        block: &Block,
        group: usize,
        _: usize,
        side: usize,
    ) -> R::Floats {
        block.groups[group].low.load_scales(registers, &block.d, side)
    }

    #[inline(always)]
    fn load_mins<R: Registers>(
        registers: R,
        block: &Block,
        group: usize,
        side: usize,
    ) -> R::Floats {
        block.groups[group].low.load_mins(registers, &block.dmin, side)
    }
}

/// Returns the place of the fifth bit of number `index`. One shift of the byte brings the bit to place 4.
const fn fifth_bit(index: usize) -> usize {
    (index / STEP + 4) % 8
}
