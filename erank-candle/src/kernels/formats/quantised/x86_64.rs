//! The micro-kernel of the integer formats on AVX2.
//!
//! ```text
//! for each panel, block, group, part:
//!     for each step s of the part, row r:
//!         totals[r] += step(s) · lhs[r].numbers[s]      four products per column
//!     sums[r] += totals[r] · (scales · lhs[r].scale)
//! ```
//!
//! `vpmaddubsw` multiplies unsigned with signed bytes and adds pairs of products in 16 bits. Numbers of 4, 5 and
//! 6 bits are small enough for that and for adding the products of several steps in 16 bits, before they are
//! widened. Numbers of 8 bits are multiplied as their magnitudes, and their signs move to the activations.
#![expect(
    unsafe_code,
    reason = "vector loads, and calls of functions that need an instruction set"
)]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_HINT_T0, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch,
    _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtph_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps,
    _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8, _mm256_slli_epi16,
    _mm256_srli_epi16, _mm256_storeu_ps, _mm256_sub_epi32, _mm256_sub_ps,
};
use std::marker::PhantomData;

use half::f16;

use super::{GROUP, Group, GroupFormat, HalfBytes, Step};
use crate::kernels::arch::x86_64::avx2::Avx2;
use crate::kernels::ggml::BlockType;
use crate::kernels::micro_kernel::MicroKernel;
use crate::kernels::stored::StoredRow;
use crate::kernels::tile::{Mr, NR, Prefetch};

/// Columns of a vector register.
const LANES: usize = 8;
/// Registers of a row of a panel.
const SIDES: usize = NR / LANES;

/// A format whose steps AVX2 reads.
///
/// The methods need AVX2 and F16C, and are inlined into functions that enable both. `side` is 0 for the first
/// eight columns, and 1 for the last eight.
pub(in super::super) trait ByteSteps: GroupFormat {
    /// Steps whose products can be added in 16 bits. 0 for signed numbers of 8 bits.
    const STEPS_IN_16_BITS: usize;

    /// Returns step `STEP` of a group: four numbers of each of eight columns.
    ///
    /// # Safety
    /// The machine must have AVX2.
    unsafe fn step<const STEP: usize>(block: &Self::Block, group: usize, side: usize) -> __m256i;

    /// Returns the scales of a part of a group.
    ///
    /// # Safety
    /// The machine must have AVX2 and F16C.
    unsafe fn scales(block: &Self::Block, group: usize, part: usize, side: usize) -> __m256;

    /// Returns the mins of a group: zeros, unless the format has mins.
    ///
    /// # Safety
    /// The machine must have AVX2 and F16C.
    #[inline(always)]
    unsafe fn mins(_: &Self::Block, _: usize, _: usize) -> __m256 {
        // SAFETY: the caller guarantees AVX2.
        unsafe { _mm256_setzero_ps() }
    }
}

/// Products of bytes (`vpmaddubsw`).
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteProducts<F> {
    isa: Avx2,
    format: PhantomData<F>,
}

impl<F> ByteProducts<F> {
    pub(super) fn new(isa: Avx2) -> Self {
        Self { isa, format: PhantomData }
    }
}

impl<F: ByteSteps> MicroKernel for ByteProducts<F> {
    type Isa = Avx2;
    type Rows = Mr;
    type Lhs = F::Lhs;
    type Block = F::Block;
    const BLOCK_K: usize = F::GROUPS * GROUP;
    const BLOCK_TYPE: Option<BlockType> = Some(F::BLOCK_TYPE);
    const FROM_NUMBERS: bool = F::FROM_NUMBERS;
    const PANELS: usize = 1;
    const KC: usize = 1024;
    const PREFETCH: Prefetch = Prefetch { distance: 2048, stride: 64 };

    #[inline(always)]
    fn isa(self) -> Avx2 {
        self.isa
    }

    fn max_mr(self) -> Mr {
        Mr::Four
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [F::Lhs]) {
        super::pack_lhs::<F>(rows, k, mr, lhs);
    }

    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [F::Block]) {
        super::pack_rows::<F>(rows, panel);
    }

    fn unpack_row(panel: &[F::Block], column: usize, out: &mut [f32]) {
        super::unpack_row::<F>(panel, column, out);
    }

    #[inline]
    fn multiply(
        self,
        lhs: &[F::Lhs],
        panels: &[&[F::Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        let lhs = bytemuck::cast_slice(lhs);
        // SAFETY: the machine must have AVX2 and F16C. The token exists, and its `detect` checked both.
        unsafe {
            match mr {
                Mr::One => multiply::<F, 1>(lhs, panels, sums, prefetch),
                Mr::Two => multiply::<F, 2>(lhs, panels, sums, prefetch),
                Mr::Four => multiply::<F, 4>(lhs, panels, sums, prefetch),
                Mr::Eight => multiply::<F, 8>(lhs, panels, sums, prefetch),
            }
        }
    }

    #[cfg(test)]
    fn round_activations(row: &[f32]) -> Vec<f32> {
        super::round_activations(row)
    }
}

#[target_feature(enable = "avx2,f16c")]
fn multiply<F: ByteSteps, const MR: usize>(
    lhs: &[Group],
    panels: &[&[F::Block]],
    sums: &mut [[f32; NR]],
    prefetch: Prefetch,
) {
    for (panel, sums) in panels.iter().zip(sums.as_chunks_mut::<MR>().0) {
        for (index, (block, rows)) in panel.iter().zip(lhs.chunks_exact(MR * F::GROUPS)).enumerate()
        {
            for group in 0..F::GROUPS {
                prefetch_group::<F>(panel, index * F::GROUPS + group, prefetch);
                let rows: [&Group; MR] = std::array::from_fn(|r| &rows[r * F::GROUPS + group]);
                multiply_group::<F, MR>(block, group, rows, sums);
            }
        }
    }
}

/// Integers of 16 columns in two registers, for each row of a tile.
type Tile<const MR: usize> = [[__m256i; SIDES]; MR];

/// Adds the products of a group to the sums of all rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn multiply_group<F: ByteSteps, const MR: usize>(
    block: &F::Block,
    group: usize,
    rows: [&Group; MR],
    sums: &mut [[f32; NR]; MR],
) {
    let mut tile = [[_mm256_setzero_si256(); SIDES]; MR];
    let mut totals = tile;
    multiply_step::<F, MR, 0>(block, group, rows, &mut tile, &mut totals);
    multiply_step::<F, MR, 1>(block, group, rows, &mut tile, &mut totals);
    multiply_step::<F, MR, 2>(block, group, rows, &mut tile, &mut totals);
    multiply_step::<F, MR, 3>(block, group, rows, &mut tile, &mut totals);
    if F::PARTS == 2 {
        let sums_of_rows = rows.map(|row| row.sums[0]);
        add_scaled::<F, MR>(block, group, 0, rows, sums_of_rows, totals, sums);
        totals = [[_mm256_setzero_si256(); SIDES]; MR];
    }
    multiply_step::<F, MR, 4>(block, group, rows, &mut tile, &mut totals);
    multiply_step::<F, MR, 5>(block, group, rows, &mut tile, &mut totals);
    multiply_step::<F, MR, 6>(block, group, rows, &mut tile, &mut totals);
    multiply_step::<F, MR, 7>(block, group, rows, &mut tile, &mut totals);
    if F::PARTS == 2 {
        let sums_of_rows = rows.map(|row| row.sums[1]);
        add_scaled::<F, MR>(block, group, 1, rows, sums_of_rows, totals, sums);
    } else {
        let sums_of_rows = rows.map(|row| row.sums[0] + row.sums[1]);
        add_scaled::<F, MR>(block, group, 0, rows, sums_of_rows, totals, sums);
    }
    if F::MINS {
        for side in 0..SIDES {
            // SAFETY: the machine must have AVX2 and F16C. This function enables both.
            let mins = unsafe { F::mins(block, group, side) };
            for (row, sums) in rows.into_iter().zip(&mut *sums) {
                let mins = _mm256_mul_ps(mins, _mm256_set1_ps(row.scaled_sum));
                let sum = _mm256_sub_ps(load_sums(sums, side), mins);
                store(sums, side, sum);
            }
        }
    }
}

/// Adds the products of a step to the tile. Adds the tile to the totals, if the next products would not fit into
/// 16 bits.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn multiply_step<F: ByteSteps, const MR: usize, const STEP: usize>(
    block: &F::Block,
    group: usize,
    rows: [&Group; MR],
    tile: &mut Tile<MR>,
    totals: &mut Tile<MR>,
) {
    // SAFETY: the machine must have AVX2. This function enables it.
    let weights: [__m256i; SIDES] =
        unsafe { [F::step::<STEP>(block, group, 0), F::step::<STEP>(block, group, 1)] };
    let ones = _mm256_set1_epi16(1);
    for r in 0..MR {
        let numbers = rows[r].numbers.as_chunks::<{ super::STEP }>().0[STEP];
        let numbers = _mm256_set1_epi32(bytemuck::cast(numbers));
        for side in 0..SIDES {
            let weights = weights[side];
            if F::STEPS_IN_16_BITS == 0 {
                let signed = _mm256_sign_epi8(numbers, weights);
                let products = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
                let products = _mm256_madd_epi16(products, ones);
                totals[r][side] = _mm256_add_epi32(totals[r][side], products);
                continue;
            }
            let products = _mm256_maddubs_epi16(weights, numbers);
            tile[r][side] = _mm256_add_epi16(tile[r][side], products);
        }
    }
    if F::STEPS_IN_16_BITS > 0 && (STEP + 1).is_multiple_of(F::STEPS_IN_16_BITS) {
        // Nested loops over indices are unrolled, and the tile stays in registers.
        for r in 0..MR {
            for side in 0..SIDES {
                let products = _mm256_madd_epi16(tile[r][side], ones);
                totals[r][side] = _mm256_add_epi32(totals[r][side], products);
                tile[r][side] = _mm256_setzero_si256();
            }
        }
    }
}

/// Takes the offset from totals, scales them, and adds them to the sums. `sums_of_rows` are the sums of the
/// activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
#[expect(clippy::needless_range_loop, reason = "the sides come first, because they share scales")]
fn add_scaled<F: ByteSteps, const MR: usize>(
    block: &F::Block,
    group: usize,
    part: usize,
    rows: [&Group; MR],
    sums_of_rows: [i32; MR],
    totals: Tile<MR>,
    sums: &mut [[f32; NR]; MR],
) {
    for side in 0..SIDES {
        // SAFETY: the machine must have AVX2 and F16C. This function enables both.
        let scales = unsafe { F::scales(block, group, part, side) };
        for (r, sums) in sums.iter_mut().enumerate() {
            let mut total = totals[r][side];
            if F::OFFSET > 0 {
                let offset = _mm256_set1_epi32(F::OFFSET * sums_of_rows[r]);
                total = _mm256_sub_epi32(total, offset);
            }
            let scales = _mm256_mul_ps(scales, _mm256_set1_ps(rows[r].scale));
            let products = _mm256_mul_ps(_mm256_cvtepi32_ps(total), scales);
            let sum = _mm256_add_ps(load_sums(sums, side), products);
            store(sums, side, sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_sums(sums: &[f32; NR], side: usize) -> __m256 {
    // SAFETY: the address must be readable for eight numbers. `side` is 0 or 1, and there are 16.
    unsafe { _mm256_loadu_ps(sums.as_ptr().add(side * LANES)) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store(sums: &mut [f32; NR], side: usize, columns: __m256) {
    // SAFETY: the address must be writable for eight numbers. `side` is 0 or 1, and there are 16.
    unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(side * LANES), columns) }
}

/// Returns eight columns of a step.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
pub(in super::super) unsafe fn load<T: bytemuck::Pod>(step: &Step<T>, side: usize) -> __m256i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: the address must be readable for 32 bytes. `side` is 0 or 1, and a step has 64 bytes.
    unsafe { _mm256_loadu_si256(step.as_ptr().add(side * LANES).cast()) }
}

/// Returns step `STEP` of half bytes.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
pub(in super::super) unsafe fn load_half_bytes<const STEP: usize>(
    bytes: &HalfBytes,
    side: usize,
) -> __m256i {
    // SAFETY: the caller guarantees AVX2.
    unsafe {
        let both = load(&bytes[STEP / 2], side);
        let both = if STEP.is_multiple_of(2) { both } else { _mm256_srli_epi16::<4>(both) };
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }
}

/// Adds the bits above a half byte. `MASK` selects them after they are moved from `place` to place 4.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
pub(in super::super) unsafe fn add_upper_bits<const MASK: i8>(
    half_bytes: __m256i,
    bits: __m256i,
    place: usize,
) -> __m256i {
    // SAFETY: the caller guarantees AVX2.
    unsafe {
        let moved = match place {
            0 => _mm256_slli_epi16::<4>(bits),
            1 => _mm256_slli_epi16::<3>(bits),
            2 => _mm256_slli_epi16::<2>(bits),
            3 => _mm256_slli_epi16::<1>(bits),
            4 => bits,
            5 => _mm256_srli_epi16::<1>(bits),
            6 => _mm256_srli_epi16::<2>(bits),
            _ => _mm256_srli_epi16::<3>(bits),
        };
        _mm256_or_si256(half_bytes, _mm256_and_si256(moved, _mm256_set1_epi8(MASK)))
    }
}

/// Returns eight F16 numbers as F32.
///
/// # Safety
/// The machine must have F16C.
#[inline(always)]
pub(in super::super) unsafe fn load_f16(numbers: &[f16; NR], side: usize) -> __m256 {
    // SAFETY: the address must be readable for 16 bytes. `side` is 0 or 1, and there are 32 bytes. The caller
    // guarantees F16C.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(numbers.as_ptr().add(side * LANES).cast())) }
}

/// Returns eight unsigned bytes as F32.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
pub(in super::super) unsafe fn load_u8(numbers: &[u8; NR], side: usize) -> __m256 {
    // SAFETY: the address must be readable for 8 bytes. `side` is 0 or 1, and there are 16. The caller
    // guarantees AVX2.
    unsafe {
        let bytes: __m128i = _mm_loadl_epi64(numbers.as_ptr().add(side * LANES).cast());
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
    }
}

/// Returns eight signed bytes as F32.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
pub(in super::super) unsafe fn load_i8(numbers: &[i8; NR], side: usize) -> __m256 {
    // SAFETY: the address must be readable for 8 bytes. `side` is 0 or 1, and there are 16. The caller
    // guarantees AVX2.
    unsafe {
        let bytes: __m128i = _mm_loadl_epi64(numbers.as_ptr().add(side * LANES).cast());
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
    }
}

/// Prefetches the part of the following data that belongs to group `index` of a panel.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn prefetch_group<F: GroupFormat>(panel: &[F::Block], index: usize, prefetch: Prefetch) {
    if prefetch.stride == 0 {
        return;
    }
    let bytes = size_of::<F::Block>() / F::GROUPS * prefetch.stride / 64;
    for offset in (0..bytes).step_by(64) {
        let offset = prefetch.distance + index * bytes + offset;
        _mm_prefetch::<_MM_HINT_T0>(panel.as_ptr().cast::<i8>().wrapping_add(offset));
    }
}
