//! Evaluation of runs against qrels, and significance tests of the difference between two runs.
//!
//! The tests are implemented here because they take a few lines each, apart from Student's t
//! distribution in the module `student_t`.
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
//! let test = gain.t_test().expect("different values");
//! assert!(test.p_value > 0.05, "three queries are too few for a significant difference");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, HashMap};

use thiserror::Error;

use crate::metrics::{Measure, rank_change};
use crate::student_t::{critical_value, two_sided_p};
use crate::trec::{Qrels, Run};

impl Measure {
    /// Returns the value for every query of `qrels`.
    ///
    /// A query without documents in the run has the value 0, as in `trec_eval -c` and ir-measures, so
    /// that omitting hard queries does not improve a system's mean. To evaluate only the queries of the
    /// run, as trec_eval 9 does without `-c`, remove the others first with
    /// `qrels.retain_queries(|query| run.has_query(query))`. Queries of the run without qrels are
    /// ignored.
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

/// Returns p-MRR, the measure of FollowIR, for each query (Weller et al., arXiv 2403.15246, §4.2).
///
/// FollowIR ranks the documents of a query twice: with its original instruction, and with a changed one, by which some
/// documents are not relevant any more. `no_longer_relevant` holds these documents, with any grade. For each of them,
/// [`rank_change`] compares its ranks in the runs `original` and `changed`, in which the
/// query has the same id. The value of a query is the mean over its documents, from −1 to 1. It is positive if the
/// documents moved down, as the changed instruction asks; 0 means that the model ignores the change. The papers give
/// the mean over the queries, multiplied by 100.
///
/// A document that a run lacks has the rank after the run's last one. A query without documents in one of the runs is
/// left out. The values are those of the package `mteb`, whose ties in score are ordered as those of [`Run`].
///
/// ```
/// use erank_core::evaluation::{no_longer_relevant, p_mrr};
/// use erank_core::trec::{Qrels, Run};
///
/// let original_qrels = Qrels::read("7 0 a 1\n7 0 b 1\n".as_bytes())?;
/// let changed_qrels = Qrels::read("7 0 a 0\n7 0 b 1\n".as_bytes())?;
/// let original = Run::read("7 Q0 a 1 9 x\n7 Q0 b 2 8 x\n".as_bytes())?;
/// let changed = Run::read("7 Q0 b 1 9 x\n7 Q0 a 2 3 x\n".as_bytes())?;
///
/// let documents = no_longer_relevant(&original_qrels, &changed_qrels);
/// let values = p_mrr(&documents, &original, &changed);
/// assert_eq!(values.iter().collect::<Vec<_>>(), [("7", 0.5)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn p_mrr(no_longer_relevant: &Qrels, original: &Run, changed: &Run) -> QueryValues {
    let value = |query: &str| {
        if !original.has_query(query) || !changed.has_query(query) {
            return None;
        }
        let [before, after] = [original, changed].map(|run| ranks(run, query));
        let rank = |ranks: &HashMap<&str, usize>, document| {
            ranks.get(document).copied().unwrap_or(ranks.len() + 1)
        };
        let changes: Vec<f64> = no_longer_relevant
            .grades(query)
            .map(|(document, _)| rank_change(rank(&before, document), rank(&after, document)))
            .collect();
        mean(changes.iter().copied())
    };
    let queries = no_longer_relevant.queries();
    QueryValues {
        values: queries.filter_map(|query| Some((query.to_owned(), value(query)?))).collect(),
    }
}

/// Returns the documents that are relevant by the qrels `original` (a grade of 1 or more), and not by the qrels
/// `changed`, with grade 0. A query of only one of the two is left out.
pub fn no_longer_relevant(original: &Qrels, changed: &Qrels) -> Qrels {
    let mut documents = Qrels::new();
    for query in original.queries().filter(|query| changed.has_query(query)) {
        for (document, grade) in original.grades(query) {
            if grade > 0 && changed.grade(query, document).unwrap_or(0) <= 0 {
                // The ids come from qrels, so they are valid, and each occurs once.
                let _ = documents.insert(query, document, 0);
            }
        }
    }
    documents
}

/// Returns the ranks of a query's documents in a run, from 1.
fn ranks<'a>(run: &'a Run, query: &str) -> HashMap<&'a str, usize> {
    run.ranking(query).into_iter().map(|(document, _)| document).zip(1..).collect()
}

/// The value of one measure for each query.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QueryValues {
    values: BTreeMap<String, f64>,
}

impl QueryValues {
    /// Returns the query ids with their values, in the byte order of the ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, f64)> {
        self.values.iter().map(|(query, value)| (query.as_str(), *value))
    }

    /// Returns the value of a query. `None` for an unknown query.
    pub fn get(&self, query: &str) -> Option<f64> {
        self.values.get(query).copied()
    }

    /// Returns the arithmetic mean over all queries. `None` if there are no queries.
    pub fn mean(&self) -> Option<f64> {
        mean(self.values.values().copied())
    }
}

/// The differences between two runs, query by query.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    differences: BTreeMap<String, f64>,
}

impl Comparison {
    /// Compares a measure's per-query values before and after a change.
    ///
    /// # Errors
    /// Returns [`UnpairedQuery`] if only one of the two has a value for some query. Evaluate both with
    /// the same qrels.
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

    /// Returns the query ids with their differences, positive for a gain, in the byte order of the ids.
    pub fn differences(&self) -> impl ExactSizeIterator<Item = (&str, f64)> {
        self.differences.iter().map(|(query, difference)| (query.as_str(), *difference))
    }

    /// Returns the mean difference. `None` if there are no queries.
    pub fn mean(&self) -> Option<f64> {
        mean(self.differences.values().copied())
    }

    /// Computes Student's two-sided paired t-test.
    ///
    /// The p-value is the probability of a mean difference at least this large if the true mean were 0
    /// and the differences had a normal distribution. This is the usual test in information retrieval,
    /// and it is robust if the differences are not normal (Urbano, Lima and Hanjalic, SIGIR 2019).
    ///
    /// Returns `None` if there are fewer than two queries or if all differences are equal, because their
    /// variance cannot then be estimated.
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
        let p_value = two_sided_p(t, degrees_of_freedom);
        Some(TTest { t, degrees_of_freedom, standard_error, p_value })
    }

    /// Returns the smallest and the largest mean difference of a confidence interval by Student's t distribution.
    ///
    /// `confidence` is the probability of such an interval to contain the true mean, such as 0.95, by the assumptions
    /// of the [t-test](Self::t_test). The interval excludes 0 if the p-value is below `1 − confidence`. Returns `None`
    /// if there is no t-test, or if `confidence` is not between 0 and 1.
    ///
    /// ```
    /// use erank_core::evaluation::Comparison;
    /// use erank_core::metrics::Measure;
    /// use erank_core::trec::{Qrels, Run};
    ///
    /// let qrels = Qrels::read("1 0 a 1\n2 0 a 1\n".as_bytes())?;
    /// let values = |run: &str| Run::read(run.as_bytes()).map(|run| Measure::precision(1).evaluate(&qrels, &run));
    /// let comparison = Comparison::between(&values("1 Q0 a 1 1 x\n")?, &values("1 Q0 a 1 1 x\n2 Q0 a 1 1 x\n")?)?;
    /// let (low, high) = comparison.confidence_interval(0.95).ok_or("equal differences")?;
    /// assert!(low < 0.0 && 1.0 < high);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn confidence_interval(&self, confidence: f64) -> Option<(f64, f64)> {
        let (mean, test) = (self.mean()?, self.t_test()?);
        if !(confidence > 0.0 && confidence < 1.0) {
            return None;
        }
        let half = critical_value(1.0 - confidence, test.degrees_of_freedom) * test.standard_error;
        Some((mean - half, mean + half))
    }

    /// Computes Fisher's two-sided paired randomisation test, which assumes no distribution (Smucker,
    /// Allan and Carterette, CIKM 2007).
    ///
    /// Each of `rounds` rounds swaps the two runs' values of every query at random. The p-value is the
    /// fraction of rounds with a mean difference at least as large as the observed one. The observed
    /// assignment counts as one more round, so the p-value is never 0. With 100,000 rounds, a p-value of
    /// 0.05 is accurate to ±0.0014 (95 %). The same seed gives the same p-value. Returns `None` if there
    /// are no queries.
    pub fn randomisation_test(&self, rounds: u32, seed: u64) -> Option<f64> {
        let differences: Vec<f64> = self.differences.values().copied().collect();
        if differences.is_empty() {
            return None;
        }
        // The margin makes sums that differ only by rounding count as equal.
        let magnitude: f64 = differences.iter().map(|difference| difference.abs()).sum();
        let observed = differences.iter().sum::<f64>().abs() - 1e-12 * magnitude;
        let mut random = SplitMix64(seed);
        let mut as_extreme = 0u32;
        for _ in 0..rounds {
            let mut sum = 0.0;
            for chunk in differences.chunks(64) {
                let coins = random.next();
                for (bit, difference) in chunk.iter().enumerate() {
                    sum += if coins >> bit & 1 == 0 { *difference } else { -difference };
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
    /// The mean difference divided by its standard error.
    pub t: f64,
    /// The number of queries minus one.
    pub degrees_of_freedom: usize,
    /// The standard error of the mean difference.
    pub standard_error: f64,
    /// The probability of a `t` at least this far from 0 under the null hypothesis, in `[0, 1]`.
    pub p_value: f64,
}

/// The error of comparing evaluations of different queries.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("only one of the two evaluations has query {query:?}; evaluate both with the same qrels")]
#[non_exhaustive]
pub struct UnpairedQuery {
    /// The query's id.
    pub query: String,
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len();
    (count > 0).then(|| values.sum::<f64>() / count as f64)
}

/// The pseudo-random generator SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). It is implemented here
/// because it takes ten lines, and because a p-value for a seed must not change with a crate's version.
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

    #[test]
    fn no_longer_relevant_needs_a_relevant_document_of_both_qrels() {
        let qrels = |text: &str| Qrels::read(text.as_bytes()).expect("qrels");
        let original = qrels("q 0 a 1\nq 0 b 2\nq 0 c 0\nq 0 d 1\nq 0 e 1\nother 0 a 1\n");
        let changed = qrels("q 0 a 0\nq 0 b 1\nq 0 c 0\nq 0 d -1\nq 0 f 1\n");
        let documents = no_longer_relevant(&original, &changed);
        assert_eq!(documents, qrels("q 0 a 0\nq 0 d 0\nq 0 e 0\n"));
        assert_eq!(p_mrr(&documents, &Run::new(), &Run::new()), QueryValues::default());
    }

    #[test]
    fn confidence_interval_has_the_mean_in_its_middle() {
        // The mean is 0.5, and the standard error √(1/12).
        let spread = differences(&[0.0, 1.0, 0.5]);
        let (low, high) = spread.confidence_interval(0.95).expect("a spread");
        assert!((low - (0.5 - 4.302_652_7 / 12f64.sqrt())).abs() < 1e-6, "{low}");
        assert!((high - (0.5 + 4.302_652_7 / 12f64.sqrt())).abs() < 1e-6, "{high}");
        assert_eq!(differences(&[0.5; 3]).confidence_interval(0.95), None);
        for confidence in [0.0, 1.0, f64::NAN] {
            assert_eq!(spread.confidence_interval(confidence), None);
        }
    }

    #[test]
    fn t_test_without_variance_is_none() {
        for none in [&[][..], &[0.5], &[0.0; 9], &[0.1; 7]] {
            assert_eq!(differences(none).t_test(), None, "{none:?}");
        }
        let even = differences(&[0.25, -0.25]).t_test().expect("a spread");
        assert_eq!((even.t, even.degrees_of_freedom, even.p_value), (0.0, 1, 1.0));
    }

    #[test]
    fn randomisation_test_approximates_the_exact_p_value() {
        // Of the 2^8 assignments, only all gains and all losses are as extreme.
        let gains = differences(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]);
        let p = gains.randomisation_test(100_000, 7).expect("queries");
        assert!((p - 2.0 / 256.0).abs() < 0.001, "{p}");
        assert_eq!(gains.randomisation_test(100_000, 7), Some(p));
        assert_ne!(gains.randomisation_test(100_000, 8), Some(p));
        // Every assignment's sum is at least as far from 0 as the observed one. Rounding makes some
        // sums appear closer.
        let losses = differences(&[-0.2, -0.2, -0.2, 0.2, 0.2]);
        assert_eq!(losses.randomisation_test(1000, 7), Some(1.0));
        assert_eq!(differences(&[0.0; 3]).randomisation_test(1000, 7), Some(1.0));
        assert_eq!(gains.randomisation_test(0, 7), Some(1.0));
        assert_eq!(differences(&[]).randomisation_test(1000, 7), None);
        // More queries than a random number has bits.
        let many: Vec<f64> = (0..150).map(|i| f64::from(i % 7) - 2.6).collect();
        let many = differences(&many);
        let by_t = many.t_test().expect("a spread").p_value;
        let p = many.randomisation_test(20_000, 7).expect("queries");
        assert!((p - by_t).abs() < 0.01, "{p} {by_t}");
    }

    #[test]
    fn comparison_rejects_different_queries() {
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
