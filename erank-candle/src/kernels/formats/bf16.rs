//! BF16 weights. A block is two inputs of 16 outputs, `[16][2]`: 64 bytes. Sixteen such blocks, 32 inputs, are
//! a block for AMX.

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::super::arch::x86_64::{
    amx::{self, Amx, AmxRows},
    avx512_bf16::Avx512Bf16,
};
use super::super::arch::{InstructionSet, Isa, with_isa};
use super::super::element::Element;
use super::super::micro_kernel::{KernelVisitor, MicroKernel};
use super::super::pack::{pack_pairs, pack_panel, unpack_row};
use super::super::stored::StoredRow;
use super::super::tile::{Mr, NR, Prefetch};
use super::widened::Widened;

/// Calls the visitor with the best micro-kernel of an instruction set: tiles, else pairs, else widened
/// numbers.
pub(super) fn with_kernel<V: KernelVisitor>(set: InstructionSet, visitor: V) -> V::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = set.token::<Amx>() {
        return visitor.visit(Tiles(isa));
    } else if let Some(isa) = set.token::<Avx512Bf16>() {
        return visitor.visit(Pairs(isa));
    }
    with_isa!(set, isa => visitor.visit(Widened::<_, bf16>::new(isa.widening())))
}

/// Calls the visitor with every micro-kernel of an instruction set.
#[cfg(test)]
pub(super) fn with_every_kernel<V: KernelVisitor + Copy>(
    set: InstructionSet,
    visitor: V,
) -> Vec<V::Output> {
    let mut outputs =
        vec![with_isa!(set, isa => visitor.visit(Widened::<_, bf16>::new(isa.widening())))];
    #[cfg(target_arch = "x86_64")]
    {
        outputs.extend(set.token::<Avx512Bf16>().map(|isa| visitor.visit(Pairs(isa))));
        outputs.extend(set.token::<Amx>().map(|isa| visitor.visit(Tiles(isa))));
    }
    outputs
}

/// Two numbers at a time (`vdpbf16ps`).
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
struct Pairs(Avx512Bf16);

#[cfg(target_arch = "x86_64")]
impl MicroKernel for Pairs {
    type Isa = Avx512Bf16;
    type Rows = Mr;
    type Lhs = [bf16; 2];
    type Block = [[bf16; 2]; NR];
    const BLOCK_K: usize = 2;
    const PANELS: usize = 2;
    const KC: usize = 256;
    const PREFETCH: Prefetch = Prefetch { distance: 2048, stride: 64 };

    #[inline(always)]
    fn isa(self) -> Avx512Bf16 {
        self.0
    }

    fn max_mr(self) -> Mr {
        Avx512Bf16::MAX_MR
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [[bf16; 2]]) {
        pack_pairs(rows, k, mr, lhs);
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

/// AMX's tiles: 32 numbers of up to 16 rows at a time (`tdpbf16ps`).
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
struct Tiles(Amx);

#[cfg(target_arch = "x86_64")]
impl MicroKernel for Tiles {
    type Isa = Amx;
    type Rows = AmxRows;
    type Lhs = amx::LhsRow;
    type Block = amx::Block;
    const BLOCK_K: usize = 2 * amx::PAIRS;
    const PANELS: usize = 2;
    const KC: usize = 512;
    const PREFETCH: Prefetch = Prefetch { distance: 2048, stride: 64 };

    #[inline(always)]
    fn isa(self) -> Amx {
        self.0
    }

    fn max_mr(self) -> AmxRows {
        AmxRows::ThirtyTwo
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [amx::LhsRow]) {
        for (index, block) in lhs.chunks_exact_mut(mr).enumerate() {
            for (out, row) in block.iter_mut().zip(rows.chunks_exact(k)) {
                let numbers = &row[k.min(index * Self::BLOCK_K)..];
                out.as_flattened_mut()
                    .iter_mut()
                    .zip(numbers)
                    .for_each(|(out, number)| *out = Element::round(*number));
            }
        }
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
        self.0.multiply_tiles(lhs, panels, mr, sums, prefetch);
    }

    fn exercise(self, count: usize) -> f64 {
        // As many inputs as the other kernels multiply each time.
        self.0.exercise(256 * count)
    }
}
