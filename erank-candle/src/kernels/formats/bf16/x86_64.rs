//! The micro-kernels for products of BF16 on x86-64.

use half::bf16;

use crate::kernels::arch::Isa;
use crate::kernels::arch::x86_64::amx::{self, Amx, AmxRows};
use crate::kernels::arch::x86_64::avx512_bf16::Avx512Bf16;
use crate::kernels::micro_kernel::{MicroKernel, TilePart};
use crate::kernels::pack::{pack_groups, pack_panel, unpack_row};
use crate::kernels::stored::StoredRow;
use crate::kernels::tile::{Mr, NR, Prefetch};

/// Multiplies two numbers at a time (`vdpbf16ps`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Pairs(pub(super) Avx512Bf16);

impl MicroKernel for Pairs {
    type Isa = Avx512Bf16;
    type Rows = Mr;
    type Lhs = [bf16; 2];
    type Block = [[bf16; 2]; NR];
    const BLOCK_K: usize = 2;
    const KC: usize = 256;
    const PREFETCH: Prefetch = Prefetch { distance: 2048, stride: 64 };

    #[inline(always)]
    fn isa(self) -> Avx512Bf16 {
        self.0
    }

    fn max_mr(self) -> Mr {
        Avx512Bf16::MAX_MR
    }

    fn panels(self) -> usize {
        2
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [[bf16; 2]]) {
        pack_groups(rows, k, mr, lhs);
    }

    #[inline(always)]
    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [Self::Block]) {
        pack_panel::<bf16>(rows, panel);
    }

    fn unpack_row(panel: &[Self::Block], column: usize, out: &mut [f32]) {
        unpack_row::<bf16>(panel, column, out);
    }

    #[inline]
    fn multiply(
        self,
        lhs: &[[bf16; 2]],
        panels: &[&[Self::Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        self.0.multiply_pairs(lhs, panels, mr, sums, prefetch);
    }
}

/// Multiplies 32 numbers of up to 16 rows at a time, in AMX's tiles (`tdpbf16ps`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles(pub(super) Amx);

impl MicroKernel for Tiles {
    type Isa = Amx;
    type Rows = AmxRows;
    type Lhs = amx::LhsRow;
    type Block = amx::Block;
    const BLOCK_K: usize = 2 * amx::PAIRS;
    const KC: usize = 512;
    // All inputs of any model, so that each panel is read from memory in one go.
    const KC_OF_ONE_TILE: usize = 1 << 20;
    const PREFETCH: Prefetch = Prefetch { distance: 8192, stride: 64 };
    const MAX_LHS_NUMBERS: usize = amx::MAX_LHS_NUMBERS;
    const MAX_TILES_OF_A_PREFETCH: usize = 16;

    #[inline(always)]
    fn isa(self) -> Amx {
        self.0
    }

    fn max_mr(self) -> AmxRows {
        AmxRows::ThirtyTwo
    }

    fn panels(self) -> usize {
        2
    }

    fn panels_of_block(self) -> usize {
        4
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [amx::LhsRow]) {
        amx::pack_lhs(rows, k, mr, lhs);
    }

    #[inline(always)]
    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [Self::Block]) {
        pack_panel::<bf16>(rows, panel.as_flattened_mut());
    }

    fn unpack_row(panel: &[Self::Block], column: usize, out: &mut [f32]) {
        unpack_row::<bf16>(panel.as_flattened(), column, out);
    }

    #[inline]
    fn multiply(
        self,
        lhs: &[amx::LhsRow],
        panels: &[&[Self::Block]],
        mr: AmxRows,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        let (then, is_streamed) = (amx::Sums::Add, false);
        let product = amx::Product { lhs, mr, sums, then, is_streamed, prefetch };
        self.0.multiply_tiles([product].into_iter(), panels);
    }

    fn multiply_tiles<'a>(
        self,
        tiles: impl Iterator<Item = TilePart<'a, Self>>,
        panels: &[&[Self::Block]],
    ) {
        let products = tiles.map(|TilePart { lhs, mr, sums, is_first, prefetch }| {
            let then = if is_first { amx::Sums::Replace } else { amx::Sums::Add };
            // Several tiles use the same part of the panels if it is prefetched more slowly than it is multiplied. The
            // nearest cache is just large enough for the part.
            let is_streamed = prefetch.stride < Self::PREFETCH.stride;
            amx::Product { lhs, mr, sums, then, is_streamed, prefetch }
        });
        self.0.multiply_tiles(products, panels);
    }

    fn release(self) {
        self.0.release();
    }

    fn exercise(self, count: usize) -> f64 {
        // The other kernels multiply the same number of inputs each time.
        self.0.exercise(256 * count)
    }
}
