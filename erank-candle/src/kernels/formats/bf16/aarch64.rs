//! The micro-kernel for products of BF16 on ARM.

use half::bf16;

use crate::kernels::arch::Isa;
use crate::kernels::arch::aarch64::neon_bf16::{self, NeonBf16};
use crate::kernels::element::Element;
use crate::kernels::micro_kernel::MicroKernel;
use crate::kernels::pack::{pack_groups, pack_panel};
use crate::kernels::stored::StoredRow;
use crate::kernels::tile::{Mr, NR, Prefetch};

/// Multiplies four numbers at a time (`bfmmla`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Quads(pub(super) NeonBf16);

impl MicroKernel for Quads {
    type Isa = NeonBf16;
    type Rows = Mr;
    type Lhs = [bf16; 4];
    type Block = neon_bf16::Quads;
    const BLOCK_K: usize = 4;
    const KC: usize = 512;
    const PREFETCH: Prefetch = Prefetch { distance: 2048, stride: 64 };

    #[inline(always)]
    fn isa(self) -> NeonBf16 {
        self.0
    }

    fn max_mr(self) -> Mr {
        NeonBf16::MAX_MR
    }

    fn panels(self) -> usize {
        1
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [[bf16; 4]]) {
        pack_groups(rows, k, mr, lhs);
    }

    /// Packs pairs of numbers, and then brings the two pairs of each block together.
    #[inline(always)]
    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [Self::Block]) {
        pack_panel::<bf16>(rows, bytemuck::cast_slice_mut(panel));
        for block in panel {
            let [first, second]: [[[bf16; 2]; NR]; 2] = bytemuck::cast(*block);
            for (quad, (first, second)) in block.iter_mut().zip(first.into_iter().zip(second)) {
                *quad = bytemuck::cast([first, second]);
            }
        }
    }

    fn unpack_row(panel: &[Self::Block], column: usize, out: &mut [f32]) {
        for (block, out) in panel.iter().zip(out.chunks_mut(4)) {
            for (out, number) in out.iter_mut().zip(block[column]) {
                *out = Element::widen(number);
            }
        }
    }

    #[inline]
    fn multiply(
        self,
        lhs: &[[bf16; 4]],
        panels: &[&[Self::Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        self.0.multiply_quads(lhs, panels, mr, sums, prefetch);
    }
}
