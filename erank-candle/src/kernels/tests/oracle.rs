//! The scalar oracle. It computes sums in F64, with a bound of the rounding error that F32 arithmetic may
//! have.

/// A sum in F64, and the magnitude that bounds the rounding error of the same sum in F32.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Exact {
    value: f64,
    /// `Σ |a·b|`.
    magnitude: f64,
}

impl Exact {
    /// Asserts that the error of `actual`, the same sum of `terms` terms in F32 in any order, is at most
    /// `γ_n Σ|a·b|` with `γ_n = n·u / (1 − n·u)` and `u = 2⁻²⁴` (Higham, Accuracy and Stability
    /// of Numerical Algorithms, §3.1), where each term takes a product and an addition that round to nearest. A sum
    /// with larger errors counts as a sum of more terms.
    pub(in super::super) fn assert_close(self, actual: f32, terms: usize, what: &str) {
        let u = f64::from(f32::EPSILON) / 2.0;
        let n = (terms + 1) as f64;
        let bound = n * u / (1.0 - n * u) * self.magnitude;
        let error = (f64::from(actual) - self.value).abs();
        assert!(error <= bound, "{what}: {actual} is {error:e} from {self:?}, bound {bound:e}");
    }
}

/// Computes `start + Σ a·b`.
pub(in super::super) fn dot(start: f32, terms: impl Iterator<Item = (f32, f32)>) -> Exact {
    let start = f64::from(start);
    terms.fold(Exact { value: start, magnitude: start.abs() }, |sum, (a, b)| {
        let product = f64::from(a) * f64::from(b);
        Exact { value: sum.value + product, magnitude: sum.magnitude + product.abs() }
    })
}

/// Generates repeatable numbers between −1 and 1 (a linear congruential generator, Knuth's MMIX constants).
pub(in super::super) fn numbers(count: usize, seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed;
    (0..count).map(move |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    })
}
