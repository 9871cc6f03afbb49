//! The micro-kernel of floating-point formats that every instruction set has. Weights are widened to F32 and
//! multiplied one number at a time.

use std::marker::PhantomData;

use super::super::arch::WideningIsa;
use super::super::element::Element;
use super::super::micro_kernel::MicroKernel;
use super::super::pack::{pack_panel, pack_widened, unpack_row};
use super::super::stored::StoredRow;
use super::super::tile::{Mr, NR, Prefetch};

/// Weights of type `E`, multiplied in F32 on the instruction set `I`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widened<I, E> {
    isa: I,
    element: PhantomData<E>,
}

impl<I: WideningIsa, E: Element> Widened<I, E> {
    pub(super) fn new(isa: I) -> Self {
        Self { isa, element: PhantomData }
    }
}

impl<I: WideningIsa, E: Element + 'static> MicroKernel for Widened<I, E> {
    type Isa = I;
    type Rows = Mr;
    type Lhs = E::Lhs;
    type Block = E::Block;
    const BLOCK_K: usize = E::DEPTH;
    // The part of one panel is read from the L2 cache in order. That of two panels stays in the L1 cache.
    const KC: usize = if I::PANELS == 1 { 1024 } else { 256 };
    const PREFETCH: Prefetch = Prefetch::NONE;

    #[inline(always)]
    fn isa(self) -> I {
        self.isa
    }

    fn max_mr(self) -> Mr {
        I::MAX_MR
    }

    fn panels(self) -> usize {
        I::PANELS
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [E::Lhs]) {
        pack_widened::<E>(rows, k, mr, lhs);
    }

    #[inline(always)]
    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [E::Block]) {
        pack_panel::<E>(rows, panel);
    }

    fn unpack_row(panel: &[E::Block], column: usize, out: &mut [f32]) {
        unpack_row::<E>(panel, column, out);
    }

    #[inline]
    fn multiply(
        self,
        lhs: &[E::Lhs],
        panels: &[&[E::Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        self.isa.multiply_widened::<E>(lhs, panels, mr, sums, prefetch);
    }

    #[cfg(test)]
    fn round_activations(row: &[f32]) -> Vec<f32> {
        row.iter().map(|number| E::round_activation(*number)).collect()
    }
}
