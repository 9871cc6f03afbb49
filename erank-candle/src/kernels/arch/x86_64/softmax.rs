//! Attention weights of whole rows of scores with AVX-512, for attention in AMX's tiles.
//!
//! ```text
//! for each row of scores:
//!     power' = max(power, ⌈max(scores · scale)⌉),     scores that the row does not see excluded
//!     weight = 2^(score · scale − power'),            0 for those scores
//!     total  = total · 2^(power − power') + weights
//! ```
//!
//! `2^t = 2^n · 2^(t − n)` with `n` the integer next to `t`. The second factor is a polynomial, and the first changes
//! the exponent alone. `power` is an integer, too, so a later `power` changes no bit of a weight but its exponent. So
//! the results have the same bits, no matter how many blocks are weighed at a time.
#![expect(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::{
    __m512bh, __mmask16, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_add_ps,
    _mm512_cvtne2ps_pbh, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_max_ps,
    _mm512_maskz_scalef_ps, _mm512_mul_ps, _mm512_reduce_max_ps, _mm512_roundscale_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use half::bf16;

use super::super::super::tile::{NR, SumRow};
use super::amx::{LhsRow, PAIRS};
use super::avx512_bf16::Avx512Bf16;

/// The state of a row's softmax.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SoftmaxRow {
    /// Number of scores that the row sees, from the first on.
    pub(crate) visible: usize,
    /// The power of two by which the weights are divided. It is −∞ before the first weight.
    pub(crate) power: f32,
    /// Sums of weights, by slot of a block.
    pub(crate) total: SumRow,
    /// The factor by which the last scores changed the scale of earlier weights: a power of two, or 0.
    pub(crate) shrink: f32,
}

impl Avx512Bf16 {
    /// Computes the weights, `[pairs of blocks][rows]` of 32 tokens, of `scores`, `[blocks][rows][16]`. The scores are
    /// multiplied by `scale` before they are taken as powers of two.
    ///
    /// # Panics
    /// Panics if there are fewer scores than visible ones.
    pub(crate) fn softmax(
        self,
        scores: &[[f32; NR]],
        scale: f32,
        rows: &mut [SoftmaxRow],
        weights: &mut [LhsRow],
    ) {
        let height = rows.len();
        for (index, row) in rows.iter_mut().enumerate() {
            assert!(row.visible.div_ceil(NR) * height <= scores.len());
            // SAFETY: the machine must have the features. `self` exists, and `detect`, the only way to make it, checked
            // all of them.
            unsafe { weigh_row(scores, scale, (index, height), row, weights) };
        }
    }
}

/// Returns which scores of block `block` a row sees.
fn visible_in(visible: usize, block: usize) -> __mmask16 {
    let count = visible.saturating_sub(block * NR).min(NR);
    ((1u32 << count) - 1) as __mmask16
}

/// Returns `2^power`, or 0 below the smallest normal number.
fn power_of_two(power: f32) -> f32 {
    if power < -126.0 { 0.0 } else { f32::from_bits((((power as i32) + 127) as u32) << 23) }
}

/// Weighs the scores of row `index` of `height`.
#[target_feature(enable = "avx512f,avx512bf16")]
fn weigh_row(
    scores: &[[f32; NR]],
    scale: f32,
    (index, height): (usize, usize),
    row: &mut SoftmaxRow,
    weights: &mut [LhsRow],
) {
    let none = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut largest = none;
    for (block, scores) in scores.iter().skip(index).step_by(height).enumerate() {
        // SAFETY: the load reads 64 bytes, and an array of 16 F32 numbers has them.
        let scores = unsafe { _mm512_loadu_ps(scores.as_ptr()) };
        largest = _mm512_mask_max_ps(largest, visible_in(row.visible, block), largest, scores);
    }
    let power = (_mm512_reduce_max_ps(largest) * scale).ceil();
    row.shrink = 1.0;
    if power > row.power {
        row.shrink = power_of_two(row.power - power);
        row.power = power;
        row.total.0.iter_mut().for_each(|total| *total *= row.shrink);
    }

    let (scale, power) = (_mm512_set1_ps(scale), _mm512_set1_ps(row.power));
    // SAFETY: the load reads 64 bytes, and an array of 16 F32 numbers has them.
    let mut total = unsafe { _mm512_loadu_ps(row.total.0.as_ptr()) };
    for (pair, weights) in weights.iter_mut().skip(index).step_by(height).enumerate() {
        let mut halves = [_mm512_setzero_ps(); 2];
        for (half, weight) in halves.iter_mut().enumerate() {
            let block = 2 * pair + half;
            let visible = visible_in(row.visible, block);
            // A sequence may end in the first block of a pair.
            let Some(scores) = scores.get(block * height + index) else { continue };
            // SAFETY: as for the first load.
            let scores = unsafe { _mm512_loadu_ps(scores.as_ptr()) };
            let exponent = _mm512_mul_ps(scores, scale);
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            let integer = _mm512_roundscale_ps::<NEAREST>(exponent);
            let rest = _mm512_sub_ps(exponent, integer);
            // 2^rest for |rest| ≤ ½ by interpolation at Chebyshev's points. Its relative error is below 4·10⁻⁶, and
            // the weight is rounded to BF16 after it.
            let mut result = _mm512_set1_ps(9.666_368e-3);
            for coefficient in [5.592_197_6e-2, 2.402_235e-1, 6.931_21e-1, 1.0] {
                result = _mm512_fmadd_ps(result, rest, _mm512_set1_ps(coefficient));
            }
            *weight = _mm512_maskz_scalef_ps(visible, result, _mm512_sub_ps(integer, power));
            total = _mm512_add_ps(total, *weight);
        }
        let rounded = _mm512_cvtne2ps_pbh(halves[1], halves[0]);
        // SAFETY: both types are 64 bytes, and every bit pattern is valid for both.
        weights.0 = unsafe { std::mem::transmute::<__m512bh, [[bf16; 2]; PAIRS]>(rounded) };
    }
    // SAFETY: the store writes 64 bytes, and an array of 16 F32 numbers has them.
    unsafe { _mm512_storeu_ps(row.total.0.as_mut_ptr(), total) };
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::super::super::super::tests::oracle;
    use super::super::super::isa::Isa;
    use super::*;

    fn new_row(visible: usize) -> SoftmaxRow {
        SoftmaxRow { visible, power: f32::NEG_INFINITY, total: SumRow::zeroed(), shrink: 0.0 }
    }

    #[test]
    fn softmax_gives_powers_of_two_in_any_division_of_the_blocks() {
        let Some(isa) = Avx512Bf16::detect() else {
            println!("skipped: no AVX-512 BF16");
            return;
        };
        const BLOCKS: usize = 6;
        for (height, visible) in [(1, 96), (2, 90), (3, 33), (4, 16), (2, 1)] {
            let mut scores = vec![[0.0; NR]; BLOCKS * height];
            let numbers = oracle::numbers(scores.len() * NR, 3);
            scores.as_flattened_mut().iter_mut().zip(numbers).for_each(|(to, n)| *to = 40.0 * n);
            let mut together = vec![new_row(visible); height];
            let mut weights = vec![LhsRow::zeroed(); BLOCKS / 2 * height];
            isa.softmax(&scores, 0.7, &mut together, &mut weights);

            let mut apart = vec![new_row(0); height];
            let mut last = vec![LhsRow::zeroed(); height];
            for (pair, scores) in scores.chunks(2 * height).enumerate() {
                let visible = visible.saturating_sub(2 * NR * pair).min(2 * NR);
                apart.iter_mut().for_each(|row| row.visible = visible);
                isa.softmax(scores, 0.7, &mut apart, &mut last);
            }
            for (row, (together, apart)) in together.iter().zip(&apart).enumerate() {
                assert_eq!(together.power, apart.power);
                assert_eq!(together.total.0, apart.total.0);
                for token in 0..BLOCKS * NR {
                    let score = f64::from(scores[token / NR * height + row][token % NR] * 0.7);
                    let pair = weights[token / (2 * NR) * height + row].0[token % (2 * NR) / 2];
                    let weight = f64::from(pair[token % 2].to_f32());
                    let exact = match token < visible {
                        true => (score - f64::from(together.power)).exp2(),
                        false => 0.0,
                    };
                    // BF16 keeps 8 bits, and numbers below 2⁻¹²⁶ become 0.
                    let error = (weight - exact).abs();
                    assert!(error <= exact / 256.0 + 1e-37, "{weight:e} {exact:e}");
                }
            }
        }
    }

    #[test]
    fn softmax_keeps_nan_and_ignores_scores_that_are_not_seen() {
        let Some(isa) = Avx512Bf16::detect() else {
            println!("skipped: no AVX-512 BF16");
            return;
        };
        let mut scores = [[f32::NAN; NR]; 2];
        scores[0][..3].fill(1.5);
        for (visible, is_nan) in [(3, false), (4, true), (32, true)] {
            let mut row = [new_row(visible)];
            let mut weights = [LhsRow::zeroed()];
            isa.softmax(&scores, 1.0, &mut row, &mut weights);
            let total: f32 = row[0].total.0.iter().sum();
            assert_eq!(total.is_nan() || total.is_infinite(), is_nan, "{visible}: {total}");
            let has_nan = weights[0].0.as_flattened().iter().any(|weight| !weight.is_finite());
            assert_eq!(has_nan, is_nan, "{visible}");
        }
        let mut row = [new_row(0)];
        let mut weights = [LhsRow::zeroed()];
        isa.softmax(&scores, 1.0, &mut row, &mut weights);
        assert_eq!((row[0].power, row[0].total.0), (f32::NEG_INFINITY, [0.0; NR]));
        assert!(weights[0].0.as_flattened().iter().all(|weight| weight.to_f32() == 0.0));
    }
}
