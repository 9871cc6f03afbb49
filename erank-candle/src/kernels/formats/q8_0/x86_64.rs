//! The micro-kernel for products of integers on x86-64.
//!
//! ```text
//! for each panel, each group, each pair of inputs p, row r:
//!     totals[r][column] += lhs[r].numbers[p] · panel.weights[p][column]      two products per column
//! ```
//!
//! `vpmaddwd` multiplies pairs of 16-bit integers and adds both products in 32 bits, so no sum saturates. Each
//! widened pair of weights is used for all rows.
#![expect(
    unsafe_code,
    reason = "vector loads, and calls of functions that need an instruction set"
)]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_add_epi32,
    _mm256_add_ps, _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_loadu_ps,
    _mm256_madd_epi16, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256,
    _mm256_storeu_ps,
};

use super::{Block, GROUP, Group};
use crate::kernels::arch::x86_64::avx2::Avx2;
use crate::kernels::micro_kernel::MicroKernel;
use crate::kernels::stored::StoredRow;
use crate::kernels::tile::{Mr, NR, Prefetch};

/// Two products of integers at a time (`vpmaddwd`).
#[derive(Debug, Clone, Copy)]
pub(super) struct PairProducts(pub(super) Avx2);

impl MicroKernel for PairProducts {
    type Isa = Avx2;
    type Rows = Mr;
    type Lhs = Group;
    type Block = Block;
    const BLOCK_K: usize = GROUP;
    const PANELS: usize = 1;
    const KC: usize = 1024;
    const PREFETCH: Prefetch = Prefetch::NONE;

    #[inline(always)]
    fn isa(self) -> Avx2 {
        self.0
    }

    fn max_mr(self) -> Mr {
        Mr::Four
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [Group]) {
        super::pack_lhs(rows, k, mr, lhs);
    }

    #[inline(always)]
    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [Block]) {
        super::pack_rows(rows, panel);
    }

    fn unpack_row(panel: &[Block], column: usize, out: &mut [f32]) {
        super::unpack_row(panel, column, out);
    }

    #[inline]
    fn multiply(
        self,
        lhs: &[Group],
        panels: &[&[Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        // SAFETY: the machine must have AVX2 and F16C. The token exists, and its `detect` checked both.
        unsafe {
            match mr {
                Mr::One => multiply::<1>(lhs, panels, sums, prefetch),
                Mr::Two => multiply::<2>(lhs, panels, sums, prefetch),
                Mr::Four => multiply::<4>(lhs, panels, sums, prefetch),
                Mr::Eight => multiply::<8>(lhs, panels, sums, prefetch),
            }
        }
    }

    #[cfg(test)]
    fn round_weights(row: &[f32]) -> Vec<f32> {
        super::reference::round_weights(row)
    }

    #[cfg(test)]
    fn round_activations(row: &[f32]) -> Vec<f32> {
        super::reference::round_activations(row)
    }
}

#[target_feature(enable = "avx2,f16c")]
fn multiply<const MR: usize>(
    lhs: &[Group],
    panels: &[&[Block]],
    sums: &mut [[f32; NR]],
    prefetch: Prefetch,
) {
    let lhs = lhs.as_chunks::<MR>().0;
    for (panel, sums) in panels.iter().zip(sums.as_chunks_mut::<MR>().0) {
        for (index, (block, groups)) in panel.iter().zip(lhs).enumerate() {
            prefetch_block(panel, index, prefetch);
            let totals = multiply_group(block, groups);
            let scales = load_scales(block);
            for ((sums, totals), group) in sums.iter_mut().zip(totals).zip(groups) {
                let scale = _mm256_set1_ps(group.scale);
                for ((sums, total), scales) in
                    sums.as_chunks_mut::<8>().0.iter_mut().zip(totals).zip(scales)
                {
                    let products =
                        _mm256_mul_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(scales, scale));
                    // SAFETY: the addresses must be readable and writable for eight numbers. `sums` is an
                    // exclusive reference to eight.
                    unsafe {
                        let sum = _mm256_add_ps(_mm256_loadu_ps(sums.as_ptr()), products);
                        _mm256_storeu_ps(sums.as_mut_ptr(), sum);
                    }
                }
            }
        }
    }
}

/// Returns the totals of a group by row and half of the columns. They are exact: a total is at most 32 · 127 · 128.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn multiply_group<const MR: usize>(block: &Block, groups: &[Group; MR]) -> [[__m256i; 2]; MR] {
    let mut totals = [[_mm256_setzero_si256(); 2]; MR];
    for (index, weights) in block.weights.iter().enumerate() {
        // SAFETY: the addresses must be readable for 16 bytes each. `weights` has 32.
        let weights = unsafe {
            let weights = weights.as_ptr().cast::<__m128i>();
            [_mm_loadu_si128(weights), _mm_loadu_si128(weights.add(1))]
        };
        let weights = weights.map(|weights| _mm256_cvtepi8_epi16(weights));
        for (totals, group) in totals.iter_mut().zip(groups) {
            let numbers = _mm256_set1_epi32(bytemuck::cast(group.numbers[index]));
            for (total, weights) in totals.iter_mut().zip(weights) {
                *total = _mm256_add_epi32(*total, _mm256_madd_epi16(weights, numbers));
            }
        }
    }
    totals
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_scales(block: &Block) -> [__m256; 2] {
    // SAFETY: the addresses must be readable for 16 bytes each. `scales` has 32.
    let scales = unsafe {
        let scales = block.scales.as_ptr().cast::<__m128i>();
        [_mm_loadu_si128(scales), _mm_loadu_si128(scales.add(1))]
    };
    scales.map(|scales| _mm256_cvtph_ps(scales))
}

/// Prefetches the part of the following data that belongs to block `index` of a panel.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn prefetch_block(panel: &[Block], index: usize, prefetch: Prefetch) {
    if prefetch.stride == 0 {
        return;
    }
    let start = index * size_of::<Block>() * prefetch.stride / 64;
    let end = (index + 1) * size_of::<Block>() * prefetch.stride / 64;
    for offset in (start..end).step_by(64) {
        let address = panel.as_ptr().cast::<i8>().wrapping_add(prefetch.distance + offset);
        _mm_prefetch::<_MM_HINT_T0>(address);
    }
}
