//! Measures of a ranked list against relevance grades, and the correlation of two rankings.
//!
//! A [`Measure`] has the notation of [ir-measures](https://ir-measur.es), such as `nDCG@10` or
//! `AP(rel=2)`, and the values of trec_eval. [`Measure::evaluate`] evaluates a whole run, and
//! [`Measure::of`] a single ranked list.
//!
//! The measures are implemented here because each takes a few lines, and their values must equal those
//! of trec_eval, cutoffs and unjudged documents included.
//!
//! [`kendall_tau`] compares the scores that two models give to the same documents, and [`rank_change`] the ranks of one
//! document in two rankings.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A measure of a ranked list, from 0 to 1. Higher is better.
///
/// All measures follow trec_eval:
/// - A document counts as not relevant if it is unjudged or has a negative grade.
/// - A list shorter than the cutoff is treated as if padded with irrelevant documents.
/// - A query without relevant documents has the value 0, and a mean includes it.
/// - `relevance_level` is the lowest grade that counts as relevant (`trec_eval -l`). It is 1 for most
///   collections, and 2 for the passages of TREC Deep Learning. Grades below 1 are never relevant, so a
///   lower level has the effect of 1.
/// - `cutoff` is the number of documents evaluated, `None` for the whole list. With a cutoff of 0 the
///   value is 0.
///
/// ```
/// use erank_core::metrics::{Gain, Measure};
///
/// let measure: Measure = "nDCG@10".parse()?;
/// assert_eq!(measure, Measure::Ndcg { cutoff: Some(10), gain: Gain::Linear });
/// assert_eq!("MAP".parse::<Measure>()?.to_string(), "AP");
/// assert_eq!("RR(rel=2)@10".parse::<Measure>()?.to_string(), "RR(rel=2)@10");
/// # Ok::<(), erank_core::metrics::ParseMeasureError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Measure {
    /// Normalised discounted cumulative gain (Järvelin and Kekäläinen, TOIS 2002), trec_eval's
    /// `ndcg_cut` and `ndcg`. It is the sum of `gain / log₂(rank + 1)`, divided by the same sum for the
    /// ideal order of all judged documents.
    Ndcg {
        /// The number of documents evaluated, in the list and in the ideal order.
        cutoff: Option<usize>,
        /// The gain of a grade.
        gain: Gain,
    },
    /// Average precision, trec_eval's `map` and `map_cut`. It is the sum of the precisions at the ranks
    /// of the relevant documents in the list, divided by the number of relevant documents judged. MAP is
    /// its mean over queries.
    AveragePrecision {
        /// The number of documents evaluated.
        cutoff: Option<usize>,
        /// The lowest relevant grade.
        relevance_level: i32,
    },
    /// `1 / rank` of the first relevant document, or 0 without one; trec_eval's `recip_rank`. MRR is its
    /// mean over queries.
    ReciprocalRank {
        /// The number of documents evaluated.
        cutoff: Option<usize>,
        /// The lowest relevant grade.
        relevance_level: i32,
    },
    /// The fraction of relevant documents among the first `cutoff`, trec_eval's `P`. The divisor is the
    /// cutoff even if the list is shorter.
    Precision {
        /// The number of documents evaluated.
        cutoff: usize,
        /// The lowest relevant grade.
        relevance_level: i32,
    },
    /// The fraction of all relevant documents that is among the first `cutoff`, trec_eval's `recall`.
    Recall {
        /// The number of documents evaluated.
        cutoff: usize,
        /// The lowest relevant grade.
        relevance_level: i32,
    },
}

/// The gain of a grade in [`Measure::Ndcg`]. Negative grades have no gain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Gain {
    /// The grade itself, as in trec_eval and in the figures for BEIR and TREC Deep Learning.
    #[default]
    Linear,
    /// `2^grade − 1` (Burges et al., ICML 2005); written `nDCG(dcg='exp-log2')`.
    Exponential,
}

impl Measure {
    /// Returns `nDCG@cutoff` with linear gain.
    pub fn ndcg(cutoff: usize) -> Self {
        Self::Ndcg { cutoff: Some(cutoff), gain: Gain::Linear }
    }

    /// Returns `AP` over the whole list, with grades from 1 relevant.
    pub fn average_precision() -> Self {
        Self::AveragePrecision { cutoff: None, relevance_level: 1 }
    }

    /// Returns `RR@cutoff`, with grades from 1 relevant.
    pub fn reciprocal_rank(cutoff: usize) -> Self {
        Self::ReciprocalRank { cutoff: Some(cutoff), relevance_level: 1 }
    }

    /// Returns `P@cutoff`, with grades from 1 relevant.
    pub fn precision(cutoff: usize) -> Self {
        Self::Precision { cutoff, relevance_level: 1 }
    }

    /// Returns `R@cutoff`, with grades from 1 relevant.
    pub fn recall(cutoff: usize) -> Self {
        Self::Recall { cutoff, relevance_level: 1 }
    }

    /// Returns the value for one query.
    ///
    /// `ranked` holds the grades of the ranked documents, best first, with 0 for unjudged documents.
    /// `judged` holds all grades of the query in any order, including those of ranked documents.
    ///
    /// ```
    /// use erank_core::metrics::Measure;
    ///
    /// let judged = [3, 2, 0, 1];
    /// assert_eq!(Measure::ndcg(2).of(&[3, 2, 1], &judged), 1.0);
    /// assert_eq!(Measure::reciprocal_rank(10).of(&[0, 2], &judged), 0.5);
    /// assert_eq!(Measure::precision(10).of(&[0, 2], &judged), 0.1);
    /// ```
    pub fn of(self, ranked: &[i32], judged: &[i32]) -> f64 {
        let level = self.relevance_level();
        let is_relevant = |grade: i32| grade >= level;
        let all_relevant = judged.iter().filter(|grade| is_relevant(**grade)).count();
        let cutoff = self.cutoff().unwrap_or(usize::MAX);
        // The ranks, from 1, of the relevant documents within the cutoff.
        let mut ranks = (1..)
            .zip(ranked)
            .take(cutoff)
            .filter(|(_, grade)| is_relevant(**grade))
            .map(|(r, _)| r);
        match self {
            Self::Ndcg { gain, .. } => ndcg(cutoff, gain, ranked, judged),
            Self::AveragePrecision { .. } => {
                let precisions = (1..).zip(ranks).map(|(found, rank)| ratio(found, rank));
                divided(precisions.sum(), all_relevant as f64)
            }
            Self::ReciprocalRank { .. } => ranks.next().map_or(0.0, |rank| ratio(1, rank)),
            Self::Precision { .. } => ratio(ranks.count(), cutoff),
            Self::Recall { .. } => ratio(ranks.count(), all_relevant),
        }
    }

    fn cutoff(self) -> Option<usize> {
        match self {
            Self::Ndcg { cutoff, .. }
            | Self::AveragePrecision { cutoff, .. }
            | Self::ReciprocalRank { cutoff, .. } => cutoff,
            Self::Precision { cutoff, .. } | Self::Recall { cutoff, .. } => Some(cutoff),
        }
    }

    /// Returns the lowest relevant grade, at least 1.
    fn relevance_level(self) -> i32 {
        match self {
            Self::Ndcg { .. } => 1,
            Self::AveragePrecision { relevance_level, .. }
            | Self::ReciprocalRank { relevance_level, .. }
            | Self::Precision { relevance_level, .. }
            | Self::Recall { relevance_level, .. } => relevance_level.max(1),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ndcg { .. } => "nDCG",
            Self::AveragePrecision { .. } => "AP",
            Self::ReciprocalRank { .. } => "RR",
            Self::Precision { .. } => "P",
            Self::Recall { .. } => "R",
        }
    }
}

fn ndcg(cutoff: usize, gain: Gain, ranked: &[i32], judged: &[i32]) -> f64 {
    let mut ideal = judged.to_vec();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    // Dividing the gains by a power of two, which cancels out, keeps them finite for any grade.
    let highest = ranked.iter().chain(judged).copied().fold(0, i32::max);
    let gain = |grade: i32| match gain {
        _ if grade <= 0 => 0.0,
        Gain::Linear => f64::from(grade),
        Gain::Exponential => {
            (f64::from(grade) - f64::from(highest)).exp2() - f64::from(-highest).exp2()
        }
    };
    let dcg = |grades: &[i32]| {
        let discounted = |(rank, grade): (usize, &i32)| gain(*grade) / (rank as f64 + 2.0).log2();
        grades.iter().take(cutoff).enumerate().map(discounted).sum::<f64>()
    };
    divided(dcg(ranked), dcg(&ideal))
}

fn ratio(part: usize, whole: usize) -> f64 {
    divided(part as f64, whole as f64)
}

/// Returns the quotient, or 0 if either number is not positive. An empty sum is −0.
fn divided(part: f64, whole: f64) -> f64 {
    if part > 0.0 && whole > 0.0 { part / whole } else { 0.0 }
}

/// Returns Kendall's rank correlation of two lists of scores of the same documents, from −1 to 1, in the
/// variant tau-b (Kendall, The treatment of ties in ranking problems, Biometrika 1945), as scipy's
/// `kendalltau` does.
///
/// `(C − D) / √((C + D + A)·(C + D + B))`, where `C` pairs of documents have the same order in both lists, `D`
/// pairs have opposite orders, `A` pairs are tied in the first list alone, and `B` pairs in the second list
/// alone. The number of operations grows with the square of the number of documents.
///
/// Returns `None` if tau is undefined: the lists have different lengths, there are fewer than two documents, all
/// scores of a list are equal, or a score is NaN.
///
/// ```
/// use erank_core::metrics::kendall_tau;
///
/// assert_eq!(kendall_tau(&[9.0, 5.0, 1.0], &[3.0, 2.0, 1.0]), Some(1.0));
/// assert_eq!(kendall_tau(&[9.0, 5.0, 1.0], &[1.0, 2.0, 3.0]), Some(-1.0));
/// assert_eq!(kendall_tau(&[9.0], &[3.0]), None);
/// ```
pub fn kendall_tau(first: &[f64], second: &[f64]) -> Option<f64> {
    let has_nan = first.iter().chain(second).any(|score| score.is_nan());
    if first.len() != second.len() || has_nan {
        return None;
    }
    // Counts of pairs: same minus opposite order, and pairs without a tie in each list.
    let (mut balance, mut untied_first, mut untied_second) = (0_i64, 0_u64, 0_u64);
    for (index, (a, b)) in first.iter().zip(second).enumerate() {
        for (other_a, other_b) in first.iter().zip(second).take(index) {
            let (in_first, in_second) = (a.partial_cmp(other_a)?, b.partial_cmp(other_b)?);
            balance += in_first as i64 * in_second as i64;
            untied_first += u64::from(in_first.is_ne());
            untied_second += u64::from(in_second.is_ne());
        }
    }
    // Two roots, so that the product of equal counts is exact.
    let pairs = (untied_first as f64).sqrt() * (untied_second as f64).sqrt();
    (pairs > 0.0).then(|| (balance as f64 / pairs).clamp(-1.0, 1.0))
}

/// Returns how far a document moved down between two rankings, from −1 to 1: the term of one document in
/// [p-MRR](crate::evaluation::p_mrr). Ranks count from 1; a rank of 0 is taken as 1.
///
/// The value is `1 − original / changed` if the document moved down, and `changed / original − 1` if it moved up, where
/// `original` and `changed` are the ranks. So it is positive for a document that moved down, and it depends on the
/// ratio of the ranks: a move from 1 to 2 counts as much as one from 50 to 100.
///
/// ```
/// use erank_core::metrics::rank_change;
///
/// assert_eq!(rank_change(1, 2), 0.5);
/// assert_eq!(rank_change(100, 50), -0.5);
/// assert_eq!(rank_change(7, 7), 0.0);
/// ```
pub fn rank_change(original: usize, changed: usize) -> f64 {
    let (original, changed) = (original.max(1) as f64, changed.max(1) as f64);
    if changed > original { 1.0 - original / changed } else { changed / original - 1.0 }
}

/// Writes the notation of ir-measures, such as `nDCG@10`, `nDCG(dcg='exp-log2')@10`, `AP`, `RR(rel=2)@10`.
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if let Self::Ndcg { gain: Gain::Exponential, .. } = self {
            f.write_str("(dcg='exp-log2')")?;
        }
        if self.relevance_level() > 1 {
            write!(f, "(rel={})", self.relevance_level())?;
        }
        self.cutoff().map_or(Ok(()), |cutoff| write!(f, "@{cutoff}"))
    }
}

/// Parses the notation of ir-measures. The names, in any case, are `nDCG`, `AP` or `MAP`, `RR` or `MRR`,
/// `P` or `Precision`, and `R` or `Recall`. A parameter in parentheses may follow: `rel=` with the
/// relevance level, or `dcg='exp-log2'` or `dcg='log2'` for nDCG. The cutoff comes last, after `@`; `P`
/// and `R` need it.
impl FromStr for Measure {
    type Err = ParseMeasureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (head, cutoff) = match text.split_once('@') {
            Some((head, cutoff)) => (head, Some(parse_cutoff(cutoff)?)),
            None => (text, None),
        };
        let (name, parameter) = match head.split_once('(') {
            Some((name, rest)) => match rest.trim_end().strip_suffix(')') {
                Some(parameter) => (name, Some(parameter.trim())),
                None => return Err(ParseMeasureError::Unknown(text.to_owned())),
            },
            None => (head, None),
        };
        let name = name.trim();
        let level = || parameter.map_or(Ok(1), parse_relevance_level);
        let needed = || cutoff.ok_or_else(|| ParseMeasureError::NoCutoff(name.to_owned()));
        Ok(match name.to_ascii_lowercase().as_str() {
            "ndcg" => Self::Ndcg { cutoff, gain: parameter.map_or(Ok(Gain::Linear), parse_gain)? },
            "ap" | "map" => Self::AveragePrecision { cutoff, relevance_level: level()? },
            "rr" | "mrr" => Self::ReciprocalRank { cutoff, relevance_level: level()? },
            "p" | "precision" => Self::Precision { cutoff: needed()?, relevance_level: level()? },
            "r" | "recall" => Self::Recall { cutoff: needed()?, relevance_level: level()? },
            _ => return Err(ParseMeasureError::Unknown(text.to_owned())),
        })
    }
}

fn parse_cutoff(text: &str) -> Result<usize, ParseMeasureError> {
    let cutoff = text.trim().parse().ok().filter(|cutoff| *cutoff > 0);
    cutoff.ok_or_else(|| ParseMeasureError::Cutoff(text.to_owned()))
}

fn parse_relevance_level(parameter: &str) -> Result<i32, ParseMeasureError> {
    let value = value_of("rel", parameter);
    let level = value.and_then(|value| value.parse().ok()).filter(|level| *level > 0);
    level.ok_or_else(|| ParseMeasureError::Parameter(parameter.to_owned()))
}

fn parse_gain(parameter: &str) -> Result<Gain, ParseMeasureError> {
    match value_of("dcg", parameter).map(|value| value.trim_matches(['\'', '"'])) {
        Some("log2") => Ok(Gain::Linear),
        Some("exp-log2") => Ok(Gain::Exponential),
        _ => Err(ParseMeasureError::Parameter(parameter.to_owned())),
    }
}

/// Returns the value of `key=value` if the key matches.
fn value_of<'a>(key: &str, parameter: &'a str) -> Option<&'a str> {
    let (found, value) = parameter.split_once('=')?;
    (found.trim() == key).then_some(value.trim())
}

/// The error of parsing a [`Measure`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseMeasureError {
    /// The name is unknown, or the text does not have the form `name(parameter)@k`.
    #[error("{0:?} is not a measure; write one such as nDCG@10, AP, RR@10, P@10 or R@100")]
    Unknown(String),
    /// The cutoff is not a positive integer.
    #[error("the cutoff {0:?} is not a positive integer")]
    Cutoff(String),
    /// The measure needs a cutoff.
    #[error("{0} needs a cutoff, as in {0}@10")]
    NoCutoff(String),
    /// The measure does not have the parameter, or the parameter's value is invalid.
    #[error(
        "{0:?} is not a parameter of this measure; nDCG takes dcg='exp-log2', the others rel=2 or \
         another positive grade"
    )]
    Parameter(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [&str; 9] = [
        "nDCG",
        "nDCG@10",
        "nDCG(dcg='exp-log2')@10",
        "AP",
        "AP(rel=2)@100",
        "RR",
        "RR(rel=3)@10",
        "P(rel=2)@5",
        "R@1000",
    ];

    fn measure(text: &str) -> Measure {
        text.parse().expect("a measure")
    }

    /// The expected values are pytrec_eval-terrier 0.5.11's `ndcg_cut_3`.
    #[test]
    fn ndcg_equals_trec_eval() {
        for (ranked, judged, expected) in [
            (vec![0, 1, 2, 3], vec![3, 2, 1, 0], 0.342_499),
            (vec![2, 0, 3], vec![3, 2, 1, 0, 0], 0.735_007),
            (vec![-1, 1], vec![1, -1, 1], 0.386_853),
        ] {
            let value = Measure::ndcg(3).of(&ranked, &judged);
            assert!((value - expected).abs() < 1e-6, "{ranked:?}: {value}");
        }
    }

    #[test]
    fn measures_equal_values_computed_by_hand() {
        let (ranked, judged) = ([0, 2, -1, 1], [1, 2, 3, -1, 0]);
        for (text, expected) in [
            ("AP", (1.0 / 2.0 + 2.0 / 4.0) / 3.0),
            ("AP@3", (1.0 / 2.0) / 3.0),
            ("AP(rel=2)", (1.0 / 2.0) / 2.0),
            ("RR", 1.0 / 2.0),
            ("RR@1", 0.0),
            ("RR(rel=3)", 0.0),
            ("P@1", 0.0),
            ("P@10", 2.0 / 10.0),
            ("R@3", 1.0 / 3.0),
            ("R(rel=2)@3", 1.0 / 2.0),
        ] {
            assert_eq!(measure(text).of(&ranked, &judged), expected, "{text}");
        }
        let exponential = measure("nDCG(dcg='exp-log2')@2").of(&ranked, &judged);
        let log3 = 3f64.log2();
        assert!((exponential - (3.0 / log3) / (7.0 + 3.0 / log3)).abs() < 1e-15);
    }

    #[test]
    fn measures_without_relevant_documents_are_zero() {
        for text in ALL {
            for (ranked, judged) in
                [(&[0, 0][..], &[0, -1][..]), (&[0], &[2]), (&[], &[2]), (&[], &[])]
            {
                assert_eq!(format!("{:.1}", measure(text).of(ranked, judged)), "0.0", "{text}");
            }
        }
        for nothing in [Measure::ndcg(0), Measure::precision(0), Measure::recall(0)] {
            assert_eq!(nothing.of(&[1, 1], &[1, 1]), 0.0);
        }
        let level_zero = Measure::Precision { cutoff: 2, relevance_level: 0 };
        assert_eq!(level_zero.of(&[0, 1], &[0, 1]), 0.5);
    }

    #[test]
    fn display_round_trips_through_parse() {
        for text in ALL {
            assert_eq!(measure(text).to_string(), text);
        }
        for (text, same) in [
            ("ndcg@10", "nDCG@10"),
            ("nDCG(dcg=\"log2\")@10", "nDCG@10"),
            (" MRR ( rel = 1 ) @ 10 ", "RR@10"),
            ("map", "AP"),
            ("Precision@5", "P@5"),
            ("recall@5", "R@5"),
        ] {
            assert_eq!(measure(text), measure(same), "{text}");
        }
    }

    #[test]
    fn parse_rejects_invalid_measures() {
        type Error = ParseMeasureError;
        let refused = |text: &str| text.parse::<Measure>().expect_err(text);
        for text in ["", "ERR@10", "P(rel=2@10", "@10", "P@10)", "ndcg_cut_10"] {
            assert!(matches!(refused(text), Error::Unknown(_) | Error::Cutoff(_)), "{text}");
        }
        for text in ["P@0", "P@", "P@-1", "P@1.5", "P@10@10", "P@99999999999999999999"] {
            assert!(matches!(refused(text), Error::Cutoff(_)), "{text}");
        }
        for text in ["P", "recall(rel=2)"] {
            assert!(matches!(refused(text), Error::NoCutoff(_)), "{text}");
        }
        for text in ["P(rel=0)@5", "P(rel=x)@5", "P()@5", "P(k=5)@5", "nDCG(rel=2)", "nDCG(dcg=3)"]
        {
            assert!(matches!(refused(text), Error::Parameter(_)), "{text}");
        }
        assert_eq!(refused("P").to_string(), "P needs a cutoff, as in P@10");
    }

    /// The expected values are scipy's (`tests/trec/make.py`), with ties, infinities and lists of any length.
    #[test]
    fn kendall_tau_equals_scipy() {
        let mut lines = 0;
        for line in include_str!("../tests/trec/kendall.tsv").lines() {
            let [first, second, expected] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("three fields: {line}")
            };
            let scores = |text: &str| -> Vec<f64> {
                text.split(' ').map(|score| score.parse().expect("a number")).collect()
            };
            let expected: Option<f64> = expected.parse().ok().filter(|tau: &f64| !tau.is_nan());
            let (first, second) = (scores(first), scores(second));
            for tau in [kendall_tau(&first, &second), kendall_tau(&second, &first)] {
                assert_eq!(tau.is_some(), expected.is_some(), "{line}");
                let difference = tau.zip(expected).map_or(0.0, |(tau, expected)| tau - expected);
                assert!(difference.abs() < 1e-12, "{line}: {tau:?}");
            }
            lines += 1;
        }
        assert_eq!(lines, 40);
    }

    #[test]
    fn kendall_tau_without_comparable_pairs_is_undefined() {
        assert_eq!(kendall_tau(&[], &[]), None);
        assert_eq!(kendall_tau(&[1.0], &[1.0]), None);
        assert_eq!(kendall_tau(&[1.0, 2.0], &[1.0, 2.0, 3.0]), None);
        assert_eq!(kendall_tau(&[0.0, -0.0, 0.0], &[1.0, 2.0, 3.0]), None);
        assert_eq!(kendall_tau(&[1.0, f64::NAN], &[1.0, 2.0]), None);
    }

    proptest! {
        /// For any grades, a value lies in [0, 1], and the ideal order has nDCG 1.
        #[test]
        fn values_lie_between_0_and_1(
            judged in proptest::collection::vec(
                prop_oneof![-2..5i32, Just(i32::MIN), Just(i32::MAX), Just(2000)], 0..12),
            length in 0..15usize,
            index in 0..ALL.len(),
        ) {
            let mut ranked = judged.clone();
            ranked.rotate_left(judged.len() / 3);
            ranked.resize(length.max(judged.len()), 0);
            let value = measure(ALL[index]).of(&ranked[..length], &judged);
            prop_assert!((0.0..=1.0 + 1e-12).contains(&value), "{}", value);

            ranked.sort_unstable_by(|a, b| b.cmp(a));
            for gain in [Gain::Linear, Gain::Exponential] {
                let best = Measure::Ndcg { cutoff: None, gain }.of(&ranked, &judged);
                let found = judged.iter().any(|grade| *grade > 0);
                prop_assert!((best - f64::from(u8::from(found))).abs() < 1e-12);
            }
        }

        /// No text causes a panic, and every parsed measure round-trips.
        #[test]
        fn parse_handles_any_text(
            text in "(nDCG|AP|rr|P|R|\\PC)?(\\((rel|dcg|\\PC)?=?['a-z0-9-]{0,8}\\)?)?(@[0-9]{0,3})?"
        ) {
            if let Ok(measure) = text.parse::<Measure>() {
                prop_assert_eq!(measure.to_string().parse(), Ok(measure));
            }
        }
    }
}
