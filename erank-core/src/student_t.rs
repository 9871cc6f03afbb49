//! Student's t distribution.
//!
//! erank-core needs only the two-sided p-value and its inverse. They are written here, because the crate
//! `statrs` 0.19, without its default features, would add five crates and eight seconds of processor time to
//! every user's first build.

/// Returns the probability that a variable with Student's t distribution is at least as far from 0 as
/// `t`, on either side. It is the regularised incomplete beta function `I_x(ν/2, ½)` at
/// `x = ν / (ν + t²)`.
pub(crate) fn two_sided_p(t: f64, degrees_of_freedom: usize) -> f64 {
    let nu = degrees_of_freedom as f64;
    let (a, b) = (nu / 2.0, 0.5);
    let x = 1.0 / (1.0 + t * t / nu);
    // y is 1 − x without cancellation.
    let y = 1.0 / (1.0 + nu / (t * t));
    // The beta function is B(ν/2, ½) = √π·Γ(ν/2) / Γ((ν + 1)/2). The quotient of gammas is √π for
    // ν = 1, and the product of the quotients for ν and ν + 1 is 2/ν.
    let sqrt_pi = std::f64::consts::PI.sqrt();
    let gammas = (1..degrees_of_freedom).fold(sqrt_pi, |gammas, nu| 2.0 / (nu as f64 * gammas));
    let front = x.powf(a) * y.powf(b) / (sqrt_pi * gammas);
    // The continued fraction converges fast for small x. For large x, I_x(a, b) = 1 − I_y(b, a).
    let p = if x < (a + 1.0) / (a + b + 2.0) {
        front / a * beta_fraction(x, a, b)
    } else {
        1.0 - front / b * beta_fraction(y, b, a)
    };
    p.clamp(0.0, 1.0)
}

/// Returns the `t` for which [`two_sided_p`] is `p`, by bisection.
pub(crate) fn critical_value(p: f64, degrees_of_freedom: usize) -> f64 {
    // The logarithms of bounds. With one degree of freedom, t is about 2/(πp).
    let (mut low, mut high) = (-700.0_f64, 700.0_f64);
    // The bounds are 1,400 apart, so 60 halvings leave a relative error of about 10⁻¹⁵.
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if two_sided_p(middle.exp(), degrees_of_freedom) > p {
            low = middle;
        } else {
            high = middle;
        }
    }
    ((low + high) / 2.0).exp()
}

/// Evaluates the continued fraction of the incomplete beta function, `1/(1 + d₁/(1 + d₂/…))` (DLMF
/// 8.17.22), with Lentz's method.
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    // This limit is generous, because convergence takes about √max(a, b) terms.
    const MAX_TERMS: u32 = 100_000;
    let (mut c, mut d, mut fraction) = (1.0, 0.0, 1.0);
    for term in 1..MAX_TERMS {
        let m = f64::from(term / 2);
        let coefficient = if term % 2 == 0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        d = 1.0 / (1.0 + coefficient * d);
        c = 1.0 + coefficient / c;
        fraction *= c * d;
        if (c * d - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    1.0 / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/trec/make.py` computed the expected values with scipy.
    #[test]
    fn two_sided_p_equals_scipy() {
        let mut lines = 0;
        for line in include_str!("../tests/trec/student.tsv").lines() {
            let mut fields = line.split('\t').map(|field| field.parse::<f64>().expect("a number"));
            let mut next = || fields.next().expect("three fields");
            let (t, degrees_of_freedom, expected) = (next(), next() as usize, next());
            for t in [t, -t] {
                let p = two_sided_p(t, degrees_of_freedom);
                assert!((p - expected).abs() <= 1e-9 * expected, "{line}: {p:e}");
            }
            lines += 1;
        }
        assert_eq!(lines, 140);
    }

    /// The expected values are those of printed tables.
    #[test]
    fn critical_value_equals_tables() {
        for (p, degrees_of_freedom, expected) in [
            (0.05, 1, 12.706_205),
            (0.05, 5, 2.570_582),
            (0.05, 11, 2.200_985),
            (0.05, 42, 2.018_082),
            (0.05, 999, 1.962_341),
            (0.01, 10, 3.169_273),
        ] {
            let value = critical_value(p, degrees_of_freedom);
            assert!((value - expected).abs() < 1e-6, "{degrees_of_freedom}: {value}");
        }
    }

    #[test]
    fn two_sided_p_is_a_probability_for_all_inputs() {
        for degrees_of_freedom in [1, 2, 7, 50, 3000] {
            let mut last = 1.0;
            for exponent in -330..=308 {
                let p = two_sided_p(10f64.powi(exponent), degrees_of_freedom);
                assert!((0.0..=last).contains(&p), "1e{exponent} {degrees_of_freedom}: {p}");
                last = p;
            }
            assert_eq!(two_sided_p(0.0, degrees_of_freedom), 1.0);
            assert!(two_sided_p(f64::INFINITY, degrees_of_freedom) == 0.0);
        }
    }
}
