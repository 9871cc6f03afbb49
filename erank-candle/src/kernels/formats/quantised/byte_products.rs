//! The micro-kernel of the integer formats on sets with products of bytes.
//!
//! ```text
//! for each panel, block, group, part:
//!     for each step s of the part, row r:
//!         totals[r] += step(s) · lhs[r].numbers[s]      four products per column
//!     sums[r] += totals[r] · (scales · lhs[r].scale)
//! ```
//!
//! The totals of all rows are in registers. If they need too many registers, some sides of a panel are multiplied
//! after the others. If a register has all columns of a panel, and the totals of two panels fit into registers, two
//! panels share each load of the lhs. With one or two rows, the panels are multiplied one after another. The weights
//! are then read from memory, which is fastest in one stream.

use std::marker::PhantomData;

#[cfg(target_arch = "aarch64")]
use super::super::super::arch::aarch64::{
    neon::Neon, neon_dotprod::NeonDotprod, neon_i8mm::NeonI8mm,
};
#[cfg(target_arch = "x86_64")]
use super::super::super::arch::x86_64::{
    avx_vnni::AvxVnni, avx2::Avx2, avx512::Avx512, avx512_vnni::Avx512Vnni,
};
use super::super::super::arch::{InstructionSet, Isa, features};
use super::super::super::ggml::BlockType;
use super::super::super::micro_kernel::MicroKernel;
use super::super::super::stored::StoredRow;
use super::super::super::tile::{Mr, NR, Prefetch};
use super::registers::Registers;
use super::{GROUP, Group, GroupFormat};

/// An instruction set with products of bytes.
pub(super) trait ByteIsa: Isa {
    type Registers: Registers;
    /// The sums of products of a part of a group, for each column.
    type Totals: Copy;
    /// The number of totals that stay in registers beside the operands.
    const MAX_TOTALS: usize;

    fn registers(self) -> Self::Registers;

    /// Returns totals before any product: the offset if the set adds it here, or 0.
    fn start<F: GroupFormat>(self, offset: i32) -> Self::Totals;

    /// Adds the products of step `INDEX`, four weights of each column and four of the numbers of a row. The weights
    /// are as they are stored.
    fn add_products<F: GroupFormat, const INDEX: usize>(
        self,
        totals: Self::Totals,
        weights: <Self::Registers as Registers>::Bytes,
        numbers: &[i8; GROUP],
    ) -> Self::Totals;

    /// Adds the products of half of a group, steps 0 to 3 or 4 to 7, to a tile.
    #[inline(always)]
    fn multiply_half<
        F: GroupFormat,
        const MR: usize,
        const PANELS: usize,
        const SIDES: usize,
        const HALF: usize,
    >(
        product: &GroupProduct<'_, F, Self, MR, PANELS, SIDES>,
        tile: &mut Tile<Self, MR, PANELS, SIDES>,
    ) {
        product.multiply_steps::<HALF>(tile);
    }

    /// Returns the totals as numbers, with the offset unless [`start`](Self::start) has added it. Stored weights
    /// are larger than the weights by a constant, and the offset corrects the totals for that.
    fn finish<F: GroupFormat>(
        self,
        totals: Self::Totals,
        offset: i32,
    ) -> <Self::Registers as Registers>::Floats;
}

/// Generates the enum of the sets with products of bytes, the best first, and the calls of their micro-kernels. The
/// name before the colon is the set that all others are or extend. The names after it are in the order of preference.
macro_rules! byte_sets {
    ($common:ident: $($set:ident),+) => {
        type Common = $common;

        /// A set with products of bytes.
        #[derive(Debug, Clone, Copy)]
        enum ByteSet {
            $($set($set),)+
        }

        impl ByteSet {
            /// Returns those that an instruction set is or extends, the best first.
            fn all(set: InstructionSet) -> impl Iterator<Item = Self> {
                [$(set.token().map(Self::$set)),+].into_iter().flatten()
            }

            fn max_mr(self) -> Mr {
                match self {
                    $(Self::$set(_) => <$set as Isa>::MAX_MR,)+
                }
            }

            fn panels(self) -> usize {
                match self {
                    $(Self::$set(_) => panels_at_once::<$set>(),)+
                }
            }

            fn multiply<F: GroupFormat>(
                self,
                lhs: &[Group],
                panels: &[&[F::Block]],
                mr: Mr,
                sums: &mut [[f32; NR]],
                prefetch: Prefetch,
            ) {
                match self {
                    $(Self::$set(isa) => multiply::<F, _>(isa, lhs, panels, mr, sums, prefetch),)+
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
byte_sets! { Avx2: Avx512Vnni, Avx512, AvxVnni, Avx2 }
#[cfg(target_arch = "aarch64")]
byte_sets! { Neon: NeonI8mm, NeonDotprod, Neon }

/// Returns the number of panels to multiply at once with many rows. Two panels share each load of the lhs if a register
/// has all columns of a panel, and the totals of both panels fit into registers.
const fn panels_at_once<I: ByteIsa>() -> usize {
    if I::Registers::LANES == NR && 2 * I::MAX_MR as usize <= I::MAX_TOTALS { 2 } else { 1 }
}

/// Products of bytes on any set that has them. The type does not name the set, so that the code around the products
/// is compiled once for each format.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteProducts<F> {
    isa: Common,
    set: ByteSet,
    format: PhantomData<F>,
}

impl<F> ByteProducts<F> {
    /// Returns the micro-kernels of an instruction set, the best first.
    pub(super) fn all(set: InstructionSet) -> impl Iterator<Item = Self> {
        let isa: Option<Common> = set.token();
        isa.into_iter().flat_map(move |isa| {
            ByteSet::all(set).map(move |set| Self { isa, set, format: PhantomData })
        })
    }
}

impl<F: GroupFormat> MicroKernel for ByteProducts<F> {
    type Isa = Common;
    type Rows = Mr;
    type Lhs = F::PerGroup<Group>;
    type Block = F::Block;
    const BLOCK_K: usize = F::GROUPS * GROUP;
    const BLOCK_TYPE: Option<BlockType> = Some(F::BLOCK_TYPE);
    const FROM_NUMBERS: bool = F::FROM_NUMBERS;
    const KC: usize = 1024;
    const PREFETCH: Prefetch = Prefetch { distance: 2048, stride: 64 };

    #[inline(always)]
    fn isa(self) -> Common {
        self.isa
    }

    fn max_mr(self) -> Mr {
        self.set.max_mr()
    }

    fn panels(self) -> usize {
        self.set.panels()
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [F::PerGroup<Group>]) {
        super::pack_lhs::<F>(rows, k, mr, lhs);
    }

    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [F::Block]) {
        super::pack_rows::<F>(rows, panel);
    }

    fn unpack_row(panel: &[F::Block], column: usize, out: &mut [f32]) {
        super::unpack_row::<F>(panel, column, out);
    }

    fn multiply(
        self,
        lhs: &[F::PerGroup<Group>],
        panels: &[&[F::Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        self.set.multiply::<F>(bytemuck::cast_slice(lhs), panels, mr, sums, prefetch);
    }

    #[cfg(test)]
    fn round_activations(row: &[f32]) -> Vec<f32> {
        super::round_activations(row)
    }
}

fn multiply<F: GroupFormat, I: ByteIsa>(
    isa: I,
    lhs: &[Group],
    panels: &[&[F::Block]],
    mr: Mr,
    sums: &mut [[f32; NR]],
    prefetch: Prefetch,
) {
    isa.run(
        #[inline(always)]
        || match mr {
            Mr::One => multiply_tile::<F, I, 1>(isa, lhs, panels, sums, prefetch),
            Mr::Two => multiply_tile::<F, I, 2>(isa, lhs, panels, sums, prefetch),
            Mr::Four => multiply_tile::<F, I, 4>(isa, lhs, panels, sums, prefetch),
            // The condition keeps tiles that a set does not use from being compiled.
            Mr::Eight => {
                if const { I::MAX_MR as usize == Mr::Eight as usize } {
                    multiply_tile::<F, I, 8>(isa, lhs, panels, sums, prefetch);
                } else {
                    unreachable!("{} has no tiles of eight rows", I::NAME);
                }
            }
        },
    );
}

#[inline(always)]
fn multiply_tile<F: GroupFormat, I: ByteIsa, const MR: usize>(
    isa: I,
    lhs: &[Group],
    panels: &[&[F::Block]],
    sums: &mut [[f32; NR]],
    prefetch: Prefetch,
) {
    let (mut panels, mut sums) = (panels, sums.as_chunks_mut::<MR>().0);
    if const { panels_at_once::<I>() == 2 && MR >= 4 } {
        let (pairs, rest) = panels.as_chunks();
        let (pair_sums, rest_sums) = sums.split_at_mut((2 * pairs.len()).min(sums.len()));
        for (pair, sums) in pairs.iter().zip(pair_sums.as_chunks_mut().0) {
            multiply_panels::<F, I, MR, 2>(isa, lhs, pair, sums, prefetch);
        }
        (panels, sums) = (rest, rest_sums);
    }
    for (panel, sums) in panels.iter().zip(sums.as_chunks_mut().0) {
        multiply_panels::<F, I, MR, 1>(isa, lhs, &[panel], sums, prefetch);
    }
}

#[inline(always)]
fn multiply_panels<F: GroupFormat, I: ByteIsa, const MR: usize, const PANELS: usize>(
    isa: I,
    lhs: &[Group],
    panels: &[&[F::Block]; PANELS],
    sums: &mut [[[f32; NR]; MR]; PANELS],
    prefetch: Prefetch,
) {
    let length = panels.iter().map(|panel| panel.len()).min().unwrap_or(0);
    for (index, rows) in lhs.chunks_exact(MR * F::GROUPS).take(length).enumerate() {
        let blocks: [&F::Block; PANELS] = std::array::from_fn(|panel| &panels[panel][index]);
        for group in 0..F::GROUPS {
            for panel in panels {
                prefetch_group::<F>(panel, index * F::GROUPS + group, prefetch);
            }
            let rows: [&Group; MR] = std::array::from_fn(|r| &rows[r * F::GROUPS + group]);
            match const { sides_at_once::<I>(MR) } {
                1 => add_group::<F, I, MR, PANELS, 1>(isa, blocks, group, rows, sums),
                2 => add_group::<F, I, MR, PANELS, 2>(isa, blocks, group, rows, sums),
                _ => add_group::<F, I, MR, PANELS, 4>(isa, blocks, group, rows, sums),
            }
        }
    }
}

/// Returns the number of sides of a panel whose totals of `mr` rows stay in registers.
const fn sides_at_once<I: ByteIsa>(mr: usize) -> usize {
    let sides = NR / I::Registers::LANES;
    if sides * mr <= I::MAX_TOTALS { sides } else { I::MAX_TOTALS / mr }
}

/// Adds the products of a group to the sums, `SIDES` sides of each panel at once.
#[inline(always)]
fn add_group<
    F: GroupFormat,
    I: ByteIsa,
    const MR: usize,
    const PANELS: usize,
    const SIDES: usize,
>(
    isa: I,
    blocks: [&F::Block; PANELS],
    group: usize,
    rows: [&Group; MR],
    sums: &mut [[[f32; NR]; MR]; PANELS],
) {
    for first_side in (0..NR / I::Registers::LANES).step_by(SIDES) {
        GroupProduct::<F, I, MR, PANELS, SIDES> { isa, blocks, group, first_side, rows }
            .add_to(sums);
    }
}

/// The operands of the product of one group: its rows of activations, and `SIDES` sides of a block of each panel.
pub(super) struct GroupProduct<
    'a,
    F: GroupFormat,
    I: ByteIsa,
    const MR: usize,
    const PANELS: usize,
    const SIDES: usize,
> {
    pub(super) isa: I,
    blocks: [&'a F::Block; PANELS],
    group: usize,
    first_side: usize,
    pub(super) rows: [&'a Group; MR],
}

/// The totals of all rows.
pub(super) type Tile<I, const MR: usize, const PANELS: usize, const SIDES: usize> =
    [[[<I as ByteIsa>::Totals; MR]; SIDES]; PANELS];

#[expect(
    clippy::needless_range_loop,
    reason = "tiles stay in registers only in loops over indices"
)]
impl<F: GroupFormat, I: ByteIsa, const MR: usize, const PANELS: usize, const SIDES: usize>
    GroupProduct<'_, F, I, MR, PANELS, SIDES>
{
    /// Adds the products to the sums of all rows.
    #[inline(always)]
    fn add_to(&self, sums: &mut [[[f32; NR]; MR]; PANELS]) {
        let mut tile = self.start(0);
        I::multiply_half::<F, MR, PANELS, SIDES, 0>(self, &mut tile);
        if const { F::PARTS == 2 } {
            self.add_scaled(0, tile, sums);
            tile = self.start(1);
        }
        I::multiply_half::<F, MR, PANELS, SIDES, 1>(self, &mut tile);
        self.add_scaled(F::PARTS - 1, tile, sums);
    }

    /// Returns the totals of a part before any product is added.
    #[inline(always)]
    fn start(&self, part: usize) -> Tile<I, MR, PANELS, SIDES> {
        let rows = std::array::from_fn(|r| self.isa.start::<F>(self.rows[r].offsets[part]));
        [[rows; SIDES]; PANELS]
    }

    /// Adds the products of half of the group, steps 0 to 3 or 4 to 7, to the tile.
    #[inline(always)]
    pub(super) fn multiply_steps<const HALF: usize>(&self, tile: &mut Tile<I, MR, PANELS, SIDES>) {
        if const { HALF == 0 } {
            self.multiply_step::<0>(tile);
            self.multiply_step::<1>(tile);
            self.multiply_step::<2>(tile);
            self.multiply_step::<3>(tile);
        } else {
            self.multiply_step::<4>(tile);
            self.multiply_step::<5>(tile);
            self.multiply_step::<6>(tile);
            self.multiply_step::<7>(tile);
        }
    }

    /// Adds the products of step `INDEX` to the tile.
    #[inline(always)]
    fn multiply_step<const INDEX: usize>(&self, tile: &mut Tile<I, MR, PANELS, SIDES>) {
        let mut weights = [[self.load_step::<INDEX>(0, 0); SIDES]; PANELS];
        for panel in 0..PANELS {
            for side in 0..SIDES {
                weights[panel][side] = self.load_step::<INDEX>(panel, side);
            }
        }
        for r in 0..MR {
            let numbers = &self.rows[r].numbers;
            for panel in 0..PANELS {
                for side in 0..SIDES {
                    let weights = weights[panel][side];
                    let totals = tile[panel][side][r];
                    tile[panel][side][r] =
                        self.isa.add_products::<F, INDEX>(totals, weights, numbers);
                }
            }
        }
    }

    /// Returns step `INDEX` of one of the sides.
    #[inline(always)]
    pub(super) fn load_step<const INDEX: usize>(
        &self,
        panel: usize,
        side: usize,
    ) -> <I::Registers as Registers>::Bytes {
        let side = self.first_side + side;
        F::load_step::<_, INDEX>(self.isa.registers(), self.blocks[panel], self.group, side)
    }

    /// Scales the totals of a part, and adds them to the sums. After the last part, also subtracts the products of the
    /// mins.
    #[inline(always)]
    fn add_scaled(
        &self,
        part: usize,
        tile: Tile<I, MR, PANELS, SIDES>,
        sums: &mut [[[f32; NR]; MR]; PANELS],
    ) {
        let registers = self.isa.registers();
        for panel in 0..PANELS {
            for side in 0..SIDES {
                let totals = tile[panel][side];
                let side = self.first_side + side;
                let block = self.blocks[panel];
                let scales = F::load_scales(registers, block, self.group, part, side);
                let mins = F::load_mins(registers, block, self.group, side);
                for r in 0..MR {
                    let row = self.rows[r];
                    let totals = self.isa.finish::<F>(totals[r], row.offsets[part]);
                    let scales = registers.multiply(scales, registers.splat(row.scale));
                    let products = registers.multiply(totals, scales);
                    let sums = &mut sums[panel][r];
                    let mut sum = registers.add(registers.load_f32(sums, side), products);
                    if F::MINS && part + 1 == F::PARTS {
                        let products = registers.multiply(mins, registers.splat(row.scaled_sum));
                        sum = registers.subtract(sum, products);
                    }
                    registers.store_f32(sums, side, sum);
                }
            }
        }
    }
}

/// Prefetches the part of the following data that belongs to group `index` of a panel.
#[inline(always)]
fn prefetch_group<F: GroupFormat>(panel: &[F::Block], index: usize, prefetch: Prefetch) {
    if prefetch.stride == 0 {
        return;
    }
    let bytes = size_of::<F::Block>() / F::GROUPS * prefetch.stride / 64;
    for offset in (0..bytes).step_by(64) {
        let offset = prefetch.distance + index * bytes + offset;
        features::prefetch(panel.as_ptr().cast::<u8>().wrapping_add(offset));
    }
}
