//! The exponential function, written so that the compiler vectorises it.

use super::arch::Isa;

/// Computes `e^x` within two units in the last place. Below −87 the result is `e^−87` (about 10⁻³⁸), and
/// above 88 it is `e^88`, so it is never 0 and never infinite. NaN stays NaN.
///
/// `e^x = 2^n · e^r` with `n = round(x / ln 2)` and `r = x − n · ln 2`, `ln 2` in two parts (Cody and
/// Waite 1980), and `e^r` as Cephes' polynomial for `|r| ≤ ln 2 / 2`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    compute(x, |a, b, c| a * b + c)
}

/// Computes [`exp`] with the fused products and sums of an instruction set, if it has them.
#[inline(always)]
pub(crate) fn exp_of<I: Isa>(x: f32) -> f32 {
    if I::FUSED { compute(x, f32::mul_add) } else { exp(x) }
}

#[inline(always)]
fn compute(x: f32, multiply_add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    // These comparisons are false for NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // After adding 1.5 · 2²³, no bits are left for a fraction. So the sum is rounded, and its last bits are
    // n.
    const ROUNDER: f32 = 12_582_912.0;
    let shifted = multiply_add(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = multiply_add(n, 2.121_944_4e-4, multiply_add(n, -0.693_359_4, x));
    let p = multiply_add(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = multiply_add(p, r, 8.333_452e-3);
    let p = multiply_add(p, r, 4.166_579_6e-2);
    let p = multiply_add(p, r, 1.666_666_5e-1);
    let p = multiply_add(p, r, 0.5);
    let p = multiply_add(p, r * r, r) + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut largest: f64 = 0.0;
        for i in 0..2_000_000 {
            let x = -87.0 + 175.0 * (i as f32 / 2e6);
            let exact = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * exact.log2().floor().exp2();
            largest = largest.max((f64::from(exp(x)) - exact).abs() / unit);
        }
        assert!(largest <= 2.0, "{largest}");
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn exp_is_finite_at_the_ends_and_keeps_nan() {
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
        assert!(exp(-87.0) > 0.0 && exp(-87.0) < 2e-38);
        assert_eq!(exp(f32::INFINITY), exp(88.0));
        assert!(exp(88.0).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }
}
