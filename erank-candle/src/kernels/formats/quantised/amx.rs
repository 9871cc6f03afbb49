//! The micro-kernel of the integer formats in AMX's tiles.
//!
//! A tile of integers adds the products of 64 inputs, so groups of 32 would leave it half full, and each group's total
//! would have to leave the tile before it is scaled. Dequantising the weights to BF16 takes a fraction of that time:
//!
//! ```text
//! for each panel:
//!     dequantised = BF16(scales · numbers − mins)      a part of the panel, which stays in the nearest cache
//! for each tile of rows:
//!     sums += BF16(lhs) · dequantised
//! ```
//!
//! Activations are rounded to BF16, not quantised. So the bits differ from those of the other sets, and are the same in
//! any batch.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::{
    __m512, __m512i, _CMP_UNORD_Q, _mm512_add_epi32, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_fmsub_ps, _mm512_mask_blend_ps, _mm512_mask_shuffle_epi8,
    _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_set4_epi32, _mm512_slli_epi32,
    _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_ps, _mm512_ternarylogic_epi32,
};
use std::cell::RefCell;
use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::{GROUP, GroupFormat, STEP, UNSIGNED};
use crate::kernels::arch::x86_64::amx::{self, Amx, AmxRows, LhsRow, PAIRS};
use crate::kernels::arch::x86_64::avx512::Avx512;
use crate::kernels::arch::{Isa, features};
use crate::kernels::ggml::BlockType;
use crate::kernels::micro_kernel::{MicroKernel, TilePart};
use crate::kernels::stored::StoredRow;
use crate::kernels::tile::{NR, Prefetch};

/// The number whose mantissa's upper eight bits are replaced by a stored number, which adds the number to it.
const ADDED: f32 = 256.0;

/// Weights that are dequantised to BF16 while they are multiplied.
#[derive(Debug, Clone, Copy)]
pub(super) struct DequantisedTiles<F> {
    isa: Amx,
    format: PhantomData<F>,
}

impl<F> DequantisedTiles<F> {
    pub(super) fn new(isa: Amx) -> Self {
        Self { isa, format: PhantomData }
    }
}

impl<F: GroupFormat> MicroKernel for DequantisedTiles<F> {
    type Isa = Amx;
    type Rows = AmxRows;
    /// The memory is used as `[groups][mr]`, not as `[mr][groups of a block]`.
    type Lhs = F::PerGroup<LhsRow>;
    type Block = F::Block;
    const BLOCK_K: usize = F::GROUPS * GROUP;
    const BLOCK_TYPE: Option<BlockType> = Some(F::BLOCK_TYPE);
    const FROM_NUMBERS: bool = F::FROM_NUMBERS;
    // A part of the panels has 32 KB when it is dequantised.
    const KC: usize = 512;
    const KC_OF_ONE_TILE: usize = 512;
    const PREFETCH: Prefetch = Prefetch::NONE;
    const PREFETCHES_PARTS: bool = true;
    const MAX_LHS_NUMBERS: usize = amx::MAX_LHS_NUMBERS;

    #[inline(always)]
    fn isa(self) -> Amx {
        self.isa
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
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [Self::Lhs]) {
        amx::pack_lhs(rows, k, mr, bytemuck::cast_slice_mut(lhs));
    }

    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [F::Block]) {
        super::pack_rows::<F>(rows, panel);
    }

    fn unpack_row(panel: &[F::Block], column: usize, out: &mut [f32]) {
        super::unpack_row::<F>(panel, column, out);
    }

    fn multiply(
        self,
        lhs: &[Self::Lhs],
        panels: &[&[F::Block]],
        mr: AmxRows,
        sums: &mut [[f32; NR]],
        prefetch: Prefetch,
    ) {
        let tile = TilePart { lhs, mr, sums, is_first: false, prefetch };
        self.multiply_tiles([tile].into_iter(), panels);
    }

    fn multiply_tiles<'a>(
        self,
        tiles: impl Iterator<Item = TilePart<'a, Self>>,
        panels: &[&[F::Block]],
    ) {
        thread_local! {
            /// Dequantised panels. The memory is used for one part after another.
            static DEQUANTISED: RefCell<Vec<LhsRow>> = const { RefCell::new(Vec::new()) };
        }

        let mut tiles = tiles.peekable();
        let Some(first) = tiles.peek() else { return };
        // Weights are only read while they are dequantised, so that is when the following weights are prefetched.
        let distance = first.prefetch.distance;
        let groups = F::GROUPS * panels.iter().map(|panel| panel.len()).min().unwrap_or(0);
        DEQUANTISED.with_borrow_mut(|rows| {
            let size = groups * panels.len() * PAIRS;
            if rows.len() < size {
                rows.resize(size, LhsRow::zeroed());
            }
            let blocks: &mut [amx::Block] = bytemuck::cast_slice_mut(&mut rows[..size]);
            for (panel, blocks) in panels.iter().zip(blocks.chunks_exact_mut(groups.max(1))) {
                self.isa.run(
                    #[inline(always)]
                    || dequantise::<F>(self.isa, panel, distance, blocks),
                );
            }
            let panels: Vec<&[amx::Block]> = blocks.chunks_exact(groups.max(1)).collect();
            let products = tiles.map(|TilePart { lhs, mr, sums, is_first, .. }| {
                let then = if is_first { amx::Sums::Replace } else { amx::Sums::Add };
                let lhs = bytemuck::cast_slice(lhs);
                let (is_streamed, prefetch) = (true, Prefetch::NONE);
                amx::Product { lhs, mr, sums, then, is_streamed, prefetch }
            });
            self.isa.multiply_tiles(products, &panels);
        });
    }

    fn release(self) {
        self.isa.release();
    }

    #[cfg(test)]
    fn round_weights(row: &[f32]) -> Option<Vec<f32>> {
        let round = |weight: &f32| f32::from_bits((weight.to_bits() + 0x8000) & 0xffff_0000);
        Some(row.iter().map(round).collect())
    }

    fn exercise(self, count: usize) -> f64 {
        // The other kernels multiply the same number of inputs each time.
        self.isa.exercise(256 * count)
    }
}

/// Dequantises a part of a panel to `[groups]`, and prefetches what lies `distance` bytes after it.
#[inline(always)]
fn dequantise<F: GroupFormat>(
    isa: Amx,
    panel: &[F::Block],
    distance: usize,
    blocks: &mut [amx::Block],
) {
    for (weights, blocks) in panel.iter().zip(blocks.chunks_exact_mut(F::GROUPS)) {
        let start = std::ptr::from_ref(weights).cast::<u8>().wrapping_add(distance);
        for (group, block) in blocks.iter_mut().enumerate() {
            let bytes = size_of::<F::Block>() / F::GROUPS;
            for offset in (group * bytes..(group + 1) * bytes).step_by(64) {
                features::prefetch(start.wrapping_add(offset));
            }
            Group::<F> { isa: isa.widening(), weights, group }.dequantise(block);
        }
    }
}

/// A group of 32 inputs and 16 outputs.
struct Group<'a, F: GroupFormat> {
    isa: Avx512,
    weights: &'a F::Block,
    group: usize,
}

/// The scales and mins of a part of a group, a number for each of the 16 columns.
#[derive(Clone, Copy)]
struct Part {
    scales: __m512,
    /// The products of the scales and of what [`Group::multiply`] adds to each number.
    offsets: __m512,
    mins: __m512,
}

impl<F: GroupFormat> Group<'_, F> {
    #[inline(always)]
    fn dequantise(&self, block: &mut amx::Block) {
        let (first, second) = (self.part(0), self.part(F::PARTS - 1));
        self.dequantise_step::<0>(first, block);
        self.dequantise_step::<1>(first, block);
        self.dequantise_step::<2>(first, block);
        self.dequantise_step::<3>(first, block);
        self.dequantise_step::<4>(second, block);
        self.dequantise_step::<5>(second, block);
        self.dequantise_step::<6>(second, block);
        self.dequantise_step::<7>(second, block);
    }

    #[inline(always)]
    fn part(&self, part: usize) -> Part {
        let scales = F::load_scales(self.isa, self.weights, self.group, part, 0);
        let mins = F::load_mins(self.isa, self.weights, self.group, 0);
        // SAFETY: as in `dequantise_step`.
        unsafe {
            let (scales, mins) = (canonical(scales), canonical(mins));
            // Exact, because a scale has at most 19 significant bits, and the factor at most six.
            let added = ADDED + if F::SIGNED { UNSIGNED } else { F::OFFSET } as f32;
            Part { scales, offsets: _mm512_mul_ps(scales, _mm512_set1_ps(added)), mins }
        }
    }

    /// Dequantises four inputs, which are two pairs of the block.
    #[inline(always)]
    fn dequantise_step<const INDEX: usize>(&self, part: Part, block: &mut amx::Block) {
        let bytes = F::load_step::<_, INDEX>(self.isa, self.weights, self.group, 0);
        let pairs = &mut block[INDEX * STEP / 2..][..STEP / 2];
        // SAFETY: the machine must have AVX-512, of which `self.isa` is a proof. A pair has 64 bytes, as a register does.
        unsafe {
            // The four bytes of each column, moved to the upper eight bits of the mantissa.
            let first = self.multiply(part, _mm512_slli_epi32::<15>(bytes));
            let second = self.multiply(part, _mm512_slli_epi32::<7>(bytes));
            let third = self.multiply(part, _mm512_srli_epi32::<1>(bytes));
            let fourth = self.multiply(part, _mm512_srli_epi32::<9>(bytes));
            let (first, second) = (interleave(first, second), interleave(third, fourth));
            _mm512_storeu_si512(pairs[0].as_mut_ptr().cast(), first);
            _mm512_storeu_si512(pairs[1].as_mut_ptr().cast(), second);
        }
    }

    /// Returns the weights of the numbers in the upper eight bits of each mantissa.
    ///
    /// The number is added to 256 by writing it to the mantissa of 256, and the product of 256 and the scale is
    /// subtracted again by a fused multiply-subtract. So the weight is rounded once, as if the number had been
    /// converted.
    #[inline(always)]
    fn multiply(&self, part: Part, bytes: __m512i) -> __m512 {
        /// The truth table of `(a & b) ^ c`.
        const AND_XOR: i32 = 0b0110_1010;
        /// Makes a signed byte unsigned.
        const SIGN: u32 = 0x80 << 15;
        let one = ADDED.to_bits() ^ if F::SIGNED { SIGN } else { 0 };
        // SAFETY: as in `dequantise_step`.
        unsafe {
            let (mask, one) = (_mm512_set1_epi32(0xff << 15), _mm512_set1_epi32(one.cast_signed()));
            let numbers =
                _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<AND_XOR>(bytes, mask, one));
            let weights = _mm512_fmsub_ps(numbers, part.scales, part.offsets);
            if F::MINS { _mm512_sub_ps(weights, part.mins) } else { weights }
        }
    }
}

/// Returns the same numbers, and each NaN with the same bits, because rounding would make a number of some others.
#[inline]
#[target_feature(enable = "avx512f")]
fn canonical(numbers: __m512) -> __m512 {
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(numbers, numbers);
    _mm512_mask_blend_ps(is_nan, numbers, _mm512_set1_ps(f32::NAN))
}

/// Rounds two numbers of each column to BF16, ties away from zero, and returns them side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(first: __m512, second: __m512) -> __m512i {
    /// The lower two bytes of each column.
    const LOWER: u64 = 0x3333_3333_3333_3333;
    let half = _mm512_set1_epi32(1 << 15);
    let first = _mm512_add_epi32(_mm512_castps_si512(first), half);
    let second = _mm512_add_epi32(_mm512_castps_si512(second), half);
    // Moves the upper two bytes of each column to the lower two.
    let places = _mm512_set4_epi32(0x0f0e_0f0e, 0x0b0a_0b0a, 0x0706_0706, 0x0302_0302);
    _mm512_mask_shuffle_epi8(second, LOWER, first, places)
}
