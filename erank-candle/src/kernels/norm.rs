//! RMSNorm, the rotary embedding, and SiLU.

use super::exp::exp;

/// Number of partial sums of squares.
const SUMS: usize = 16;

/// RMSNorm with its weights, as in Qwen3.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    pub(crate) epsilon: f32,
}

impl Norm {
    /// Computes `out = x / √(mean(x²) + ε) · weight`.
    #[inline(always)]
    pub(crate) fn apply(&self, x: &[f32], out: &mut [f32]) {
        // With sixteen sums, the compiler vectorises them.
        let mut squares = [0.0; SUMS];
        let (whole, rest) = x.as_chunks::<SUMS>();
        for x in whole {
            squares.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
        }
        squares.iter_mut().zip(rest).for_each(|(sum, x)| *sum += x * x);
        // By halves, so that an addition need not wait for all others.
        let mut half = SUMS / 2;
        while half > 0 {
            let (left, right) = squares.split_at_mut(half);
            left.iter_mut().zip(right).for_each(|(left, right)| *left += *right);
            half /= 2;
        }
        let mean = squares[0] / x.len() as f32;
        let scale = 1.0 / (mean + self.epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(&self.weight) {
            *out = x * scale * weight;
        }
    }
}

/// Rotates a head in place. Element `i` pairs with element `i + head_dim / 2` ("rotate half"). The angles are
/// given as cosines and sines, `head_dim / 2` each.
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// Computes `x · sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    // `exp` has this limit. The comparison is false for NaN.
    let x = if x < -88.0 { -88.0 } else { x };
    x / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::super::tests::oracle;
    use super::*;

    #[test]
    fn apply_agrees_with_f64() {
        for length in [1, 2, 31, 128, 1000] {
            let x: Vec<f32> = oracle::numbers(length, 3).collect();
            let weight: Vec<f32> = oracle::numbers(length, 4).collect();
            let mut out = vec![0.0; length];
            let norm = Norm { weight, epsilon: 1e-6 };
            norm.apply(&x, &mut out);
            let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let scale = 1.0 / (squares / length as f64 + 1e-6).sqrt();
            for ((out, x), weight) in out.iter().zip(&x).zip(&norm.weight) {
                let exact = f64::from(*x) * scale * f64::from(*weight);
                // The error of the sum, halved by the root, and three more roundings.
                let bound = (length as f64 / 2.0 + 4.0) * f64::from(f32::EPSILON) * exact.abs();
                assert!((f64::from(*out) - exact).abs() <= bound);
            }
        }
    }

    #[test]
    fn rotate_keeps_lengths_and_turns_by_the_angle() {
        let mut head = [1.0, 2.0, 0.0, 0.5];
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            [0.3f32, -1.2].map(|a| (a.cos(), a.sin())).into_iter().unzip();
        rotate(&mut head, &cos, &sin);
        assert!((head[0] - cos[0]).abs() < 1e-6 && (head[2] - sin[0]).abs() < 1e-6);
        assert!((head[1].hypot(head[3]) - 2f32.hypot(0.5)).abs() < 1e-6);
    }

    #[test]
    fn silu_is_not_nan_at_the_ends() {
        for (x, expected) in [(0.0, 0.0), (200.0, 200.0), (-200.0, 0.0), (f32::MIN, 0.0)] {
            assert!((silu(x) - expected).abs() < 1e-30, "{x}");
        }
    }
}
