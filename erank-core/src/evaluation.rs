//! How good a run is, query by query, and whether another is better.
//!
//! ```
//! use erank_core::evaluation::Comparison;
//! use erank_core::metrics::Measure;
//! use erank_core::trec::{Qrels, Run};
//!
//! let qrels = Qrels::read("7 0 a 1\n8 0 b 2\n9 0 c 1\n".as_bytes())?;
//! let bm25 = Run::read("7 Q0 a 1 5 x\n8 Q0 d 1 9 x\n8 Q0 b 2 7 x\n".as_bytes())?;
//! let erank = Run::read("7 Q0 a 1 8 x\n8 Q0 b 1 6 x\n8 Q0 d 2 2 x\n".as_bytes())?;
//!
//! let measure = Measure::reciprocal_rank(10);
//! let before = measure.evaluate(&qrels, &bm25);
//! let after = measure.evaluate(&qrels, &erank);
//! assert_eq!(before.iter().collect::<Vec<_>>(), [("7", 1.0), ("8", 0.5), ("9", 0.0)]);
//! assert_eq!(after.mean(), Some(2.0 / 3.0));
//!
//! let gain = Comparison::between(&before, &after)?;
//! assert_eq!(gain.differences().collect::<Vec<_>>(), [("7", 0.0), ("8", 0.5), ("9", 0.0)]);
//! let test = gain.t_test().expect("three queries that differ");
//! assert!(test.p_value > 0.05, "three queries prove nothing");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;

use thiserror::Error;

use crate::metrics::Measure;
use crate::trec::{Qrels, Run};

impl Measure {
    /// The value of every query of `qrels`.
    ///
    /// A query that the run has nothing for counts 0, as with `trec_eval -c` and ir-measures: a
    /// system does not get better by leaving out what is hard. To look only at queries that the run
    /// has, as trec_eval 9 does without `-c`, drop the others first:
    /// `qrels.retain_queries(|query| run.has_query(query))`. Queries of the run without qrels are
    /// passed over.
    pub fn evaluate(self, qrels: &Qrels, run: &Run) -> QueryValues {
        let value = |query: &str| {
            let judged: Vec<i32> = qrels.grades(query).map(|(_, grade)| grade).collect();
            let grade = |(document, _)| qrels.grade(query, document).unwrap_or(0);
            let ranked: Vec<i32> = run.ranking(query).into_iter().map(grade).collect();
            self.of(&ranked, &judged)
        };
        QueryValues {
            values: qrels.queries().map(|query| (query.to_owned(), value(query))).collect(),
        }
    }
}

/// A measure's value for each query.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QueryValues {
    values: BTreeMap<String, f64>,
}

impl QueryValues {
    /// The queries' ids with their values, in the order of the ids' bytes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, f64)> {
        self.values.iter().map(|(query, value)| (query.as_str(), *value))
    }

    /// The query's value; `None` for an unknown query.
    pub fn get(&self, query: &str) -> Option<f64> {
        self.values.get(query).copied()
    }

    /// The arithmetic mean over all queries, those with value 0 included; `None` if there are none.
    pub fn mean(&self) -> Option<f64> {
        mean(self.values.values().copied())
    }
}

/// What one run gains over another, query by query.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    differences: BTreeMap<String, f64>,
}

impl Comparison {
    /// Of the values of one measure before and after a change.
    ///
    /// # Errors
    /// [`UnpairedQuery`] if a query is in one of the two only: evaluate both with the same qrels.
    pub fn between(before: &QueryValues, after: &QueryValues) -> Result<Self, UnpairedQuery> {
        let unpaired = |query: &str| UnpairedQuery { query: query.to_owned() };
        if let Some((query, _)) = before.iter().find(|(query, _)| after.get(query).is_none()) {
            return Err(unpaired(query));
        }
        let difference = |(query, after): (&str, f64)| {
            let before = before.get(query).ok_or_else(|| unpaired(query))?;
            Ok((query.to_owned(), after - before))
        };
        Ok(Self { differences: after.iter().map(difference).collect::<Result<_, _>>()? })
    }

    /// The queries' ids with what was gained, negative for a loss, in the order of the ids' bytes.
    pub fn differences(&self) -> impl ExactSizeIterator<Item = (&str, f64)> {
        self.differences.iter().map(|(query, difference)| (query.as_str(), *difference))
    }

    /// The mean gain; `None` if there are no queries.
    pub fn mean(&self) -> Option<f64> {
        mean(self.differences.values().copied())
    }

    /// Student's paired t-test, two-sided: how likely at least such a mean gain or loss would be if
    /// there were none in truth and the differences were drawn from a normal distribution. It is
    /// the usual test of the field, and holds up well where the differences are not normal (Urbano,
    /// Lima and Hanjalic, SIGIR 2019).
    ///
    /// `None` if there are fewer than two queries or all differences are equal: nothing can then be
    /// said of their spread.
    pub fn t_test(&self) -> Option<TTest> {
        let count = self.differences.len();
        let mean = self.mean()?;
        let deviations = self.differences.values().map(|difference| difference - mean);
        let squares: f64 = deviations.map(|deviation| deviation * deviation).sum();
        let mut values = self.differences.values();
        let first = values.next()?;
        if values.all(|value| value == first) || squares == 0.0 {
            return None;
        }
        let degrees_of_freedom = count - 1;
        let standard_error = (squares / degrees_of_freedom as f64 / count as f64).sqrt();
        let t = mean / standard_error;
        Some(TTest { t, degrees_of_freedom, p_value: two_sided_p(t, degrees_of_freedom) })
    }

    /// Fisher's paired randomisation test, two-sided, which assumes no distribution (Smucker, Allan
    /// and Carterette, CIKM 2007): the p-value is how often at least such a mean gain or loss comes
    /// about when a coin decides for every query which of the two runs was which.
    ///
    /// `rounds` such drawings are made, of which the actual outcome counts as one more, so that the
    /// p-value is never 0; 100,000 put it within ±0.0014 around 0.05 (95 %). The same seed gives the
    /// same p-value. `None` if there are no queries.
    pub fn randomisation_test(&self, rounds: u32, seed: u64) -> Option<f64> {
        let differences: Vec<f64> = self.differences.values().copied().collect();
        if differences.is_empty() {
            return None;
        }
        // Sums that are equal but for rounding count as equal.
        let magnitude: f64 = differences.iter().map(|difference| difference.abs()).sum();
        let observed = differences.iter().sum::<f64>().abs() - 1e-12 * magnitude;
        let mut random = SplitMix64(seed);
        let mut as_extreme = 0u32;
        for _ in 0..rounds {
            let mut sum = 0.0;
            for chunk in differences.chunks(64) {
                let coins = random.next();
                for (place, difference) in chunk.iter().enumerate() {
                    sum += if coins >> place & 1 == 0 { *difference } else { -difference };
                }
            }
            as_extreme += u32::from(sum.abs() >= observed);
        }
        Some((f64::from(as_extreme) + 1.0) / (f64::from(rounds) + 1.0))
    }
}

/// The outcome of a [t-test](Comparison::t_test).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TTest {
    /// The mean difference in units of its standard error.
    pub t: f64,
    /// The number of queries less one.
    pub degrees_of_freedom: usize,
    /// The probability, in `[0, 1]`, of a `t` at least this far from 0 by chance.
    pub p_value: f64,
}

/// A query that only one of two evaluations has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("only one of the two has query {query:?}; evaluate both with the same qrels")]
#[non_exhaustive]
pub struct UnpairedQuery {
    /// The query's id.
    pub query: String,
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len();
    (count > 0).then(|| values.sum::<f64>() / count as f64)
}

/// The probability that Student's t lies at least this far from 0, on either side: the regularised
/// incomplete beta function `I_x(ν/2, ½)` at `x = ν / (ν + t²)`.
fn two_sided_p(t: f64, degrees_of_freedom: usize) -> f64 {
    let nu = degrees_of_freedom as f64;
    let (a, b) = (nu / 2.0, 0.5);
    let x = 1.0 / (1.0 + t * t / nu);
    // 1 − x, without the cancellation.
    let y = 1.0 / (1.0 + nu / (t * t));
    // The beta function B(ν/2, ½) = √π·Γ(ν/2) / Γ((ν + 1)/2). The quotient of gammas is √π at
    // ν = 1, and those of ν and ν + 1 have the product 2/ν.
    let sqrt_pi = std::f64::consts::PI.sqrt();
    let gammas = (1..degrees_of_freedom).fold(sqrt_pi, |gammas, nu| 2.0 / (nu as f64 * gammas));
    let front = x.powf(a) * y.powf(b) / (sqrt_pi * gammas);
    // The continued fraction converges quickly for small x; beyond, the symmetric one does.
    let p = if x < (a + 1.0) / (a + b + 2.0) {
        front / a * beta_fraction(x, a, b)
    } else {
        1.0 - front / b * beta_fraction(y, b, a)
    };
    p.clamp(0.0, 1.0)
}

/// The continued fraction of the incomplete beta function (DLMF 8.17.22), `1/(1 + d₁/(1 + d₂/…))`,
/// by the method of Lentz.
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    // Far more than the some √max(a, b) that it takes.
    const MOST_TERMS: u32 = 100_000;
    let (mut c, mut d, mut fraction) = (1.0, 0.0, 1.0);
    for term in 1..MOST_TERMS {
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

/// A small generator of pseudo-random numbers (Steele, Lea and Flood, OOPSLA 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(values: &[f64]) -> QueryValues {
        let values = values.iter().enumerate();
        QueryValues { values: values.map(|(query, value)| (query.to_string(), *value)).collect() }
    }

    fn differences(differences: &[f64]) -> Comparison {
        let zeros = vec![0.0; differences.len()];
        Comparison::between(&values(&zeros), &values(differences)).expect("paired")
    }

    /// Expected figures from scipy; `tests/trec/make.py` made them.
    #[test]
    fn students_distribution_is_scipys() {
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

    #[test]
    fn p_values_are_probabilities_everywhere() {
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

    #[test]
    fn the_t_test_says_nothing_without_a_spread() {
        for none in [&[][..], &[0.5], &[0.0; 9], &[0.1; 7]] {
            assert_eq!(differences(none).t_test(), None, "{none:?}");
        }
        let even = differences(&[0.25, -0.25]).t_test().expect("a spread");
        assert_eq!((even.t, even.degrees_of_freedom, even.p_value), (0.0, 1, 1.0));
    }

    #[test]
    fn the_randomisation_test_nears_the_exact_p_value() {
        // Of the 2^8 drawings, only all gains and all losses are as extreme.
        let gains = differences(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]);
        let p = gains.randomisation_test(100_000, 7).expect("queries");
        assert!((p - 2.0 / 256.0).abs() < 0.001, "{p}");
        assert_eq!(gains.randomisation_test(100_000, 7), Some(p));
        assert_ne!(gains.randomisation_test(100_000, 8), Some(p));
        // No drawing comes nearer to 0 than one of these losses; some do in floating point.
        let losses = differences(&[-0.2, -0.2, -0.2, 0.2, 0.2]);
        assert_eq!(losses.randomisation_test(1000, 7), Some(1.0));
        assert_eq!(differences(&[0.0; 3]).randomisation_test(1000, 7), Some(1.0));
        assert_eq!(gains.randomisation_test(0, 7), Some(1.0));
        assert_eq!(differences(&[]).randomisation_test(1000, 7), None);
        // More queries than one drawing has bits.
        let many: Vec<f64> = (0..150).map(|i| f64::from(i % 7) - 2.6).collect();
        let many = differences(&many);
        let by_t = many.t_test().expect("a spread").p_value;
        let p = many.randomisation_test(20_000, 7).expect("queries");
        assert!((p - by_t).abs() < 0.01, "{p} {by_t}");
    }

    #[test]
    fn only_the_same_queries_are_compared() {
        let error = |query: &str| Err(UnpairedQuery { query: query.to_owned() });
        let (two, three) = (values(&[1.0, 0.5]), values(&[1.0, 0.5, 0.0]));
        assert_eq!(Comparison::between(&two, &three), error("2"));
        assert_eq!(Comparison::between(&three, &two), error("2"));
        let comparison = Comparison::between(&two, &values(&[0.5, 0.75])).expect("paired");
        assert!(comparison.differences().eq([("0", -0.5), ("1", 0.25)]));
        assert_eq!(comparison.mean(), Some(-0.125));
        assert_eq!(differences(&[]).mean(), None);
    }
}
