//! AVX-512's products of BF16 pairs (`vdpbf16ps`): twice as many multiplications in an instruction
//! as in F32, and nothing to widen.
//!
//! ```text
//! for each pair of inputs i, panel p, row r:
//!     sums[p][r][lane] += x[i][r][0] · panel[p][i][lane][0] + x[i][r][1] · panel[p][i][lane][1]
//! ```
#![expect(unsafe_code, reason = "vector loads, and calls of functions that need the instruction")]

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use half::bf16;

use super::super::LANES;

/// 32 registers of 32 BF16 or 16 F32 numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx512Bf16(());

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        has_all.then_some(Self(()))
    }

    /// See [`InstructionSet::tile_pairs`](super::InstructionSet::tile_pairs).
    #[inline]
    pub(super) fn tile<const PANELS: usize>(
        self,
        x: &[[bf16; 2]],
        panels: [&[bf16]; PANELS],
        sums: [&mut [[f32; LANES]]; PANELS],
    ) {
        let height = sums.first().map_or(0, |sums| sums.len().next_power_of_two());
        // SAFETY: the machine must have the features. `self` exists, and `detect`, the only way to
        // make it, saw them all.
        unsafe {
            match height {
                1 => multiply::<1, PANELS>(x, panels, sums),
                2 => multiply::<2, PANELS>(x, panels, sums),
                4 => multiply::<4, PANELS>(x, panels, sums),
                8 => multiply::<8, PANELS>(x, panels, sums),
                _ => {}
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply<const ROWS: usize, const PANELS: usize>(
    x: &[[bf16; 2]],
    panels: [&[bf16]; PANELS],
    mut sums: [&mut [[f32; LANES]]; PANELS],
) {
    let panels = panels.map(|panel| panel.as_chunks::<{ 2 * LANES }>().0);
    let mut local = [[_mm512_setzero_ps(); ROWS]; PANELS];
    for (i, x) in x.as_chunks::<ROWS>().0.iter().enumerate() {
        let mut weights = [pairs(_mm512_set1_epi32(0)); PANELS];
        for (weights, panel) in weights.iter_mut().zip(panels) {
            // SAFETY: 64 bytes are read, and an array of 32 BF16 numbers has them.
            *weights = pairs(unsafe { _mm512_loadu_si512(panel[i].as_ptr().cast()) });
        }
        for (row, [first, second]) in x.iter().enumerate() {
            let pair = u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16;
            let pair = pairs(_mm512_set1_epi32(pair.cast_signed()));
            for (local, weights) in local.iter_mut().zip(weights) {
                local[row] = _mm512_dpbf16_ps(local[row], pair, weights);
            }
        }
    }
    for (sums, local) in sums.iter_mut().zip(local) {
        for (sum, local) in sums.iter_mut().zip(local) {
            // SAFETY: 64 bytes are written, and an array of 16 F32 numbers has them.
            unsafe { _mm512_storeu_ps(sum.as_mut_ptr(), local) };
        }
    }
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

    /// Every height, of any number of rows, and one or two panels, against the oracle.
    #[test]
    fn tiles_agree_with_the_oracle() {
        let Some(set) = Avx512Bf16::detect() else {
            println!("skipped: no AVX-512 BF16");
            return;
        };
        for rows in 1..=8usize {
            for k in [0, 1, 2, 7, 64, 501] {
                let height = rows.next_power_of_two();
                let numbers = |count, seed| -> Vec<bf16> {
                    reference::numbers(count, seed).map(bf16::from_f32).collect()
                };
                let x: Vec<[bf16; 2]> = numbers(2 * k * height, 1).as_chunks().0.to_vec();
                let panels = [numbers(2 * k * LANES, 2), numbers(2 * k * LANES, 3)];
                let mut sums = [vec![[7.0; LANES]; rows], vec![[7.0; LANES]; rows]];
                let [first, second] = &mut sums;
                set.tile(&x, [&panels[0], &panels[1]], [first, second]);
                let mut alone = vec![[7.0; LANES]; rows];
                set.tile(&x, [&panels[1]], [&mut alone]);
                assert_eq!(alone, sums[1]);
                for (panel, sums) in panels.iter().zip(&sums) {
                    for (row, sums) in sums.iter().enumerate() {
                        for (lane, sum) in sums.iter().enumerate() {
                            let terms = (0..2 * k).map(|i| {
                                let x = x[i / 2 * height + row][i % 2];
                                (x.to_f32(), panel[(i / 2 * LANES + lane) * 2 + i % 2].to_f32())
                            });
                            let exact = reference::dot(0.0, terms);
                            exact.assert_close(*sum, 2 * k + 1, &format!("{rows} rows of {k}"));
                        }
                    }
                }
            }
        }
    }
}
