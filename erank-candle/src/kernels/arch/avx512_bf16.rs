//! AVX-512's products of BF16 pairs (`vdpbf16ps`): twice as many multiplications in an instruction
//! as in F32, and nothing to widen.
//!
//! ```text
//! for each pair of inputs i, panel p, row r:
//!     sums[p][r][lane] += x[i][r][0] · panel[p][i][lane][0] + x[i][r][1] · panel[p][i][lane][1]
//! ```
#![expect(unsafe_code, reason = "vector loads, and calls of functions that need the instruction")]

use std::arch::x86_64::{
    __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use half::bf16;

use super::super::{Ahead, LANES};
use super::x86_64::Avx512;

/// [`Avx512`], and products of BF16 pairs: 32 registers of 32 BF16 or 16 F32 numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Self> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Self)
    }

    pub(super) fn avx512(self) -> Avx512 {
        self.0
    }

    /// See [`InstructionSet::run`](super::InstructionSet::run).
    #[inline]
    pub(super) fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: as in `tiles`.
        unsafe { run(work) }
    }

    /// See [`InstructionSet::tiles_of_pairs`](super::InstructionSet::tiles_of_pairs).
    #[inline]
    pub(super) fn tiles(
        self,
        x: &[[bf16; 2]],
        panels: &[&[bf16]],
        height: usize,
        sums: &mut [[f32; LANES]],
        ahead: Ahead,
    ) {
        // SAFETY: the machine must have the features. `self` exists, and `detect`, the only way to
        // make it, saw them all.
        unsafe {
            match height {
                1 => multiply::<1, 4>(x, panels, sums, ahead),
                2 => multiply::<2, 4>(x, panels, sums, ahead),
                4 => multiply::<4, 4>(x, panels, sums, ahead),
                8 => multiply::<8, 2>(x, panels, sums, ahead),
                _ => {}
            }
        }
    }

    /// See [`InstructionSet::weigh`](super::InstructionSet::weigh).
    #[inline]
    pub(super) fn weigh(
        self,
        weights: &[[bf16; LANES]],
        panels: &[bf16],
        seen: usize,
        sums: &mut [[f32; LANES]],
    ) {
        // SAFETY: as in `tiles`.
        unsafe {
            match weights.len() {
                1 => weigh::<1>(weights, panels, seen, sums),
                2 => weigh::<2>(weights, panels, seen, sums),
                4 => weigh::<4>(weights, panels, seen, sums),
                8 => weigh::<8>(weights, panels, seen, sums),
                _ => {}
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn run<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// All panels, as many at once as have their sums in registers.
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply<const ROWS: usize, const PANELS: usize>(
    x: &[[bf16; 2]],
    panels: &[&[bf16]],
    sums: &mut [[f32; LANES]],
    ahead: Ahead,
) {
    let x = x.as_chunks::<ROWS>().0;
    let (blocks, rest) = panels.as_chunks();
    let (block_sums, rest_sums) = sums.split_at_mut((blocks.len() * PANELS * ROWS).min(sums.len()));
    for (panels, sums) in blocks.iter().zip(block_sums.chunks_exact_mut(PANELS * ROWS)) {
        multiply_block::<ROWS, PANELS>(x, panels, sums, ahead);
    }
    for (panel, sums) in rest.iter().zip(rest_sums.chunks_exact_mut(ROWS)) {
        multiply_block::<ROWS, 1>(x, &[panel], sums, ahead);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_block<const ROWS: usize, const PANELS: usize>(
    x: &[[[bf16; 2]; ROWS]],
    panels: &[&[bf16]; PANELS],
    sums: &mut [[f32; LANES]],
    ahead: Ahead,
) {
    let mut steps = x.len();
    for panel in panels {
        steps = steps.min(panel.len() / (2 * LANES));
    }
    let mut local = [[_mm512_setzero_ps(); ROWS]; PANELS];
    for (local, sums) in local.iter_mut().zip(sums.as_chunks::<ROWS>().0) {
        for (local, sum) in local.iter_mut().zip(sums) {
            // SAFETY: 64 bytes are read, and an array of 16 F32 numbers has them.
            *local = unsafe { _mm512_loadu_ps(sum.as_ptr()) };
        }
    }
    for (i, x) in x[..steps].iter().enumerate() {
        let mut weights = [pairs(_mm512_set1_epi32(0)); PANELS];
        for (weights, panel) in weights.iter_mut().zip(panels) {
            // A single panel is read in order, which the processor fetches ahead by itself.
            if PANELS > 1 {
                let later = ahead.bytes.wrapping_add(i * ahead.step);
                _mm_prefetch::<_MM_HINT_T0>(panel.as_ptr().wrapping_byte_add(later).cast());
            }
            // SAFETY: 64 bytes are read, 32 BF16 numbers from `i * 32` on. A panel has `steps` times as
            // many, as seen above, and `i` is below `steps`.
            *weights =
                pairs(unsafe { _mm512_loadu_si512(panel.as_ptr().add(i * 2 * LANES).cast()) });
        }
        for (row, pair) in x.iter().enumerate() {
            let pair = broadcast(*pair);
            for (local, weights) in local.iter_mut().zip(weights) {
                local[row] = _mm512_dpbf16_ps(local[row], pair, weights);
            }
        }
    }
    for (local, sums) in local.iter().zip(sums.as_chunks_mut::<ROWS>().0) {
        for (local, sum) in local.iter().zip(sums) {
            // SAFETY: 64 bytes are written, and an array of 16 F32 numbers has them.
            unsafe { _mm512_storeu_ps(sum.as_mut_ptr(), *local) };
        }
    }
}

/// Panel by panel, as they lie in memory.
#[target_feature(enable = "avx512f,avx512bf16")]
fn weigh<const ROWS: usize>(
    weights: &[[bf16; LANES]],
    panels: &[bf16],
    seen: usize,
    sums: &mut [[f32; LANES]],
) {
    let Some(weights) = weights.as_array::<ROWS>() else { return };
    let steps = seen.min(LANES).div_ceil(2);
    let panels = panels.as_chunks::<{ LANES * LANES }>().0;
    for (panel, sums) in panels.iter().zip(sums.as_chunks_mut::<ROWS>().0) {
        let mut local = [_mm512_setzero_ps(); ROWS];
        for (local, sum) in local.iter_mut().zip(&*sums) {
            // SAFETY: 64 bytes are read, and an array of 16 F32 numbers has them.
            *local = unsafe { _mm512_loadu_ps(sum.as_ptr()) };
        }
        for (i, values) in panel.as_chunks::<{ 2 * LANES }>().0[..steps].iter().enumerate() {
            // SAFETY: 64 bytes are read, and an array of 32 BF16 numbers has them.
            let values = pairs(unsafe { _mm512_loadu_si512(values.as_ptr().cast()) });
            for (local, weights) in local.iter_mut().zip(weights) {
                let pair = weights.as_chunks::<2>().0[i];
                *local = _mm512_dpbf16_ps(*local, broadcast(pair), values);
            }
        }
        for (local, sum) in local.iter().zip(sums) {
            // SAFETY: 64 bytes are written, and an array of 16 F32 numbers has them.
            unsafe { _mm512_storeu_ps(sum.as_mut_ptr(), *local) };
        }
    }
}

/// A pair of numbers in every lane.
#[target_feature(enable = "avx512f,avx512bf16")]
fn broadcast([first, second]: [bf16; 2]) -> __m512bh {
    let pair = u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16;
    pairs(_mm512_set1_epi32(pair.cast_signed()))
}

/// The same bits as BF16 numbers.
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without any meaning of their own.
    unsafe { std::mem::transmute(bits) }
}

#[cfg(test)]
mod tests {
    use super::super::super::reference;
    use super::*;

    /// Every height and number of panels against the oracle.
    #[test]
    fn tiles_agree_with_the_oracle() {
        let Some(set) = Avx512Bf16::detect() else {
            println!("skipped: no AVX-512 BF16");
            return;
        };
        for height in [1, 2, 4, 8] {
            for panel_count in [1, 2, 3, 4, 5, 9] {
                for k in [0, 1, 2, 7, 64, 501] {
                    let numbers = |count, seed| -> Vec<bf16> {
                        reference::numbers(count, seed).map(bf16::from_f32).collect()
                    };
                    let x: Vec<[bf16; 2]> = numbers(2 * k * height, 1).as_chunks().0.to_vec();
                    let panels: Vec<Vec<bf16>> =
                        (0..panel_count).map(|p| numbers(2 * k * LANES, 2 + p)).collect();
                    let panels: Vec<&[bf16]> = panels.iter().map(Vec::as_slice).collect();
                    let mut sums = vec![[0.5; LANES]; panels.len() * height];
                    set.tiles(&x, &panels, height, &mut sums, Ahead::NOTHING);
                    for (panel, sums) in panels.iter().zip(sums.chunks_exact(height)) {
                        for (row, sums) in sums.iter().enumerate() {
                            for (lane, sum) in sums.iter().enumerate() {
                                let terms = (0..2 * k).map(|i| {
                                    let x = x[i / 2 * height + row][i % 2];
                                    let weight = panel[(i / 2 * LANES + lane) * 2 + i % 2];
                                    (x.to_f32(), weight.to_f32())
                                });
                                let exact = reference::dot(0.5, terms);
                                let what = format!("{height} rows, {panel_count} panels of {k}");
                                exact.assert_close(*sum, 2 * k + 1, &what);
                            }
                        }
                    }
                }
            }
        }
    }
}
