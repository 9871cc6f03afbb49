//! Calibration: the probability that a document is relevant, as a function of its score.

use thiserror::Error;

use crate::answer_format::AnswerFormat;
use crate::options::{ConfigError, Mode};
use crate::score::ScoreKind;

/// The probability that a document is relevant, as a function of its score.
///
/// The function is fitted on judged documents by isotonic regression (Zadrozny and Elkan, KDD 2002): of all functions
/// that never fall with the score, it has the least squared error. Between two points, it is linear, and beyond the
/// first and the last point, it is constant, as in scikit-learn's `IsotonicRegression` with `out_of_bounds="clip"`.
///
/// A calibration holds for scores like those that it was fitted on. It refuses another [`ScoreKind`], another kind of
/// [`Mode`] and another range of answers. It cannot see another model, prompt, instruction or collection of documents;
/// fit it again for these. Isotonic regression needs many documents. With a few hundred of them, measure its
/// [`Reliability`] on queries that it was not fitted on.
///
/// ```
/// use erank_core::testing::{ScriptedBackend, answered};
/// use erank_core::{AnswerFormat, Calibration, Mode, Request, Reranker, ScoreKind, ScoringOptions};
///
/// // Scores of judged documents, and whether the documents are relevant.
/// let judged = [(0.0, false), (1.0, false), (2.0, true), (4.0, false), (7.5, true), (9.0, true)];
/// let mode = ScoringOptions::default().mode;
/// let answers = AnswerFormat::zero_to_ten();
/// let calibration = Calibration::fit(ScoreKind::Integer, mode, &answers, judged)?;
/// assert_eq!(calibration.points(), [(0.0, 0.0), (1.0, 0.0), (2.0, 0.5), (4.0, 0.5), (7.5, 1.0), (9.0, 1.0)]);
/// assert_eq!(calibration.probability(1.5), 0.25);
///
/// let backend = ScriptedBackend::new([answered(3, 0.9), answered(8, 0.7)]);
/// let reranker = Reranker::builder(backend)
///     .score(ScoreKind::Integer)
///     .calibration(calibration)
///     .min_score(0.8)
///     .build()?;
/// let ranking = reranker.rerank(&Request::new("q", ["a", "b"]))?;
/// assert_eq!(ranking.documents[0].relevance_probability, Some(1.0));
/// assert_eq!(ranking.below_min_score[0].relevance_probability, Some(0.5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Unchecked"))]
pub struct Calibration {
    score: ScoreKind,
    mode: Mode,
    answer_range: (u32, u32),
    /// Scores with their probabilities. The scores rise, and the probabilities do not fall.
    points: Vec<(f64, f64)>,
}

/// The fields of a [`Calibration`] before they are checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Unchecked {
    score: ScoreKind,
    mode: Mode,
    answer_range: (u32, u32),
    points: Vec<(f64, f64)>,
}

#[cfg(feature = "serde")]
impl TryFrom<Unchecked> for Calibration {
    type Error = CalibrationError;

    fn try_from(unchecked: Unchecked) -> Result<Self, CalibrationError> {
        let Unchecked { score, mode, answer_range, points } = unchecked;
        let calibration = Self { score, mode, answer_range, points };
        calibration.check_points()?;
        Ok(calibration)
    }
}

impl Calibration {
    /// Fits a calibration on judged documents: the score of each document before fusion, and whether the document is
    /// relevant. The scores are of the kind `score`, by a reranker in `mode` with these `answers`. The order of the
    /// documents does not matter.
    ///
    /// # Errors
    /// Returns [`CalibrationError::OneClass`] unless there are relevant and irrelevant documents, and
    /// [`CalibrationError::Score`] if a score is not a number from 0 to the largest value of an answer.
    pub fn fit(
        score: ScoreKind,
        mode: Mode,
        answers: &AnswerFormat,
        judged: impl IntoIterator<Item = (f64, bool)>,
    ) -> Result<Self, CalibrationError> {
        let answer_range = answers.value_range();
        let mut judged: Vec<(f64, bool)> = judged.into_iter().collect();
        for (score, _) in &judged {
            check_score(*score, answer_range.1)?;
        }
        let (documents, relevant) =
            (judged.len(), judged.iter().filter(|(_, relevant)| *relevant).count());
        if relevant == 0 || relevant == documents {
            return Err(CalibrationError::OneClass { documents, relevant });
        }
        judged.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let mut points = Vec::new();
        for Block { first, last, relevant, documents } in pool(&judged) {
            let probability = relevant as f64 / documents as f64;
            points.push((first, probability));
            if last > first {
                points.push((last, probability));
            }
        }
        Ok(Self { score, mode, answer_range, points })
    }

    /// Returns the probability that a document with this score is relevant, from 0 to 1. The score is that of the
    /// [kind](Self::score_kind) that the calibration was fitted on, before fusion, and must not be NaN.
    pub fn probability(&self, score: f64) -> f64 {
        let after = self.points.partition_point(|(other, _)| *other < score);
        match (self.points[..after].last(), self.points.get(after)) {
            (Some((x, low)), Some((next, high))) => {
                (low + (high - low) * ((score - x) / (next - x))).clamp(*low, *high)
            }
            (Some((_, probability)), None) | (None, Some((_, probability))) => *probability,
            // There is at least one point.
            (None, None) => 0.0,
        }
    }

    /// Returns the kind of the scores.
    pub fn score_kind(&self) -> ScoreKind {
        self.score
    }

    /// Returns the mode of the reranker that gave the scores.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the scores between which the function is linear, with their probabilities. The scores rise, and the
    /// probabilities do not fall.
    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// Checks that a reranker's scores are like those that the calibration was fitted on. The budget for reasoning may
    /// differ.
    pub(crate) fn check(
        &self,
        score: ScoreKind,
        mode: Mode,
        answers: &AnswerFormat,
    ) -> Result<(), ConfigError> {
        let mode_name =
            |mode: Mode| if mode.is_reason() { "with reasoning" } else { "without reasoning" };
        let range = |(low, high): (u32, u32)| format!("from {low} to {high}");
        let facts = [
            ("the score", self.score.name().to_owned(), score.name().to_owned()),
            ("answers", mode_name(self.mode).to_owned(), mode_name(mode).to_owned()),
            ("answers", range(self.answer_range), range(answers.value_range())),
        ];
        match facts.into_iter().find(|(_, fitted, now)| fitted != now) {
            Some((what, fitted, now)) => Err(ConfigError::OtherCalibration { what, fitted, now }),
            None => Ok(()),
        }
    }

    /// Checks points that were read.
    #[cfg(feature = "serde")]
    fn check_points(&self) -> Result<(), CalibrationError> {
        if self.points.is_empty() {
            return Err(CalibrationError::NoPoints);
        }
        for (score, probability) in &self.points {
            check_score(*score, self.answer_range.1)?;
            if !(0.0..=1.0).contains(probability) {
                return Err(CalibrationError::Probability(*probability));
            }
        }
        let falls = |pair: &[(f64, f64)]| pair[1].0 <= pair[0].0 || pair[1].1 < pair[0].1;
        match self.points.windows(2).position(falls) {
            Some(before) => Err(CalibrationError::Order { index: before + 1 }),
            None => Ok(()),
        }
    }
}

fn check_score(score: f64, largest: u32) -> Result<(), CalibrationError> {
    // Rounding can put an expected value slightly above the largest value.
    match (0.0..=f64::from(largest) * (1.0 + 1e-9)).contains(&score) {
        true => Ok(()),
        false => Err(CalibrationError::Score { score, largest }),
    }
}

/// Neighbouring documents with the same probability.
struct Block {
    /// The lowest score, and the highest.
    first: f64,
    last: f64,
    relevant: u64,
    documents: u64,
}

/// Returns the blocks of the isotonic regression of documents that are sorted by score, by pooling adjacent violators
/// (Ayer et al., Annals of Mathematical Statistics 1955). Documents with equal scores are in the same block.
///
/// The algorithm is implemented here because it takes a few lines. Its results are compared with scikit-learn's.
fn pool(judged: &[(f64, bool)]) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for equal in judged.chunk_by(|(a, _), (b, _)| a == b) {
        let relevant = equal.iter().filter(|(_, relevant)| *relevant).count() as u64;
        let score = equal[0].0;
        let mut block =
            Block { first: score, last: score, relevant, documents: equal.len() as u64 };
        // Fractions are compared by their products, which are exact.
        while let Some(previous) = blocks.pop_if(|previous| {
            previous.relevant * block.documents >= block.relevant * previous.documents
        }) {
            block.first = previous.first;
            block.relevant += previous.relevant;
            block.documents += previous.documents;
        }
        blocks.push(block);
    }
    blocks
}

/// The error of fitting or reading a [`Calibration`].
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// There are no documents, or all are relevant, or none is.
    #[error(
        "{relevant} of {documents} judged documents are relevant; a calibration needs relevant and irrelevant \
         ones, so judge more documents"
    )]
    OneClass {
        /// The number of documents.
        documents: usize,
        /// The number of relevant documents.
        relevant: usize,
    },
    /// A score is outside the range of scores.
    #[error(
        "the score {score} is not a number from 0 to {largest}, the largest value of an answer"
    )]
    Score {
        /// The score.
        score: f64,
        /// The largest value of an answer.
        largest: u32,
    },
    /// There are no points.
    #[error("the calibration has no points; fit it again")]
    NoPoints,
    /// A probability is outside `[0, 1]`.
    #[error(
        "the probability {0} of a point is not a number from 0 to 1; fit the calibration again"
    )]
    Probability(f64),
    /// A score does not rise, or a probability falls.
    #[error(
        "point {index} (from 0) has a score that is not above the previous one, or a smaller probability; fit the \
         calibration again"
    )]
    Order {
        /// The index of the point.
        index: usize,
    },
}

/// The agreement of probabilities with judgements, as a reliability diagram shows it.
///
/// ```
/// use erank_core::Reliability;
///
/// // A probability of relevance, and whether the document is relevant.
/// let judged = [(0.05, false), (0.08, false), (0.75, true), (0.77, false), (0.95, true)];
/// let reliability = Reliability::measure(judged).expect("probabilities");
/// let last = &reliability.bins[9];
/// assert_eq!((last.documents, last.mean_probability, last.relevant_fraction), (1, Some(0.95), Some(1.0)));
/// let squares = 0.05_f64.powi(2) * 2.0 + 0.08_f64.powi(2) + 0.25_f64.powi(2) + 0.77_f64.powi(2);
/// assert!((reliability.brier_score - squares / 5.0).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Reliability {
    /// The number of documents.
    pub documents: usize,
    /// The expected calibration error, from 0 to 1: the mean distance of a bin's relevant fraction from its mean
    /// probability, weighted by the documents of the bins (Guo et al., ICML 2017).
    pub expected_calibration_error: f64,
    /// The mean squared distance of a document's probability from 1 if it is relevant, and from 0 otherwise (Brier,
    /// Monthly Weather Review 1950).
    pub brier_score: f64,
    /// Ten bins of equal width. A probability on the border of two bins is in the lower one.
    pub bins: Vec<ReliabilityBin>,
}

/// The documents whose probability is in one range.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ReliabilityBin {
    /// The number of documents.
    pub documents: usize,
    /// The mean of their probabilities. `None` without documents.
    pub mean_probability: Option<f64>,
    /// The fraction of them that is relevant. `None` without documents.
    pub relevant_fraction: Option<f64>,
}

impl Reliability {
    /// The number of bins.
    pub const BINS: usize = 10;

    /// Measures the reliability of documents' probabilities, each with whether the document is relevant.
    ///
    /// Returns `None` if there are no documents, or if a probability is not a number from 0 to 1.
    pub fn measure(judged: impl IntoIterator<Item = (f64, bool)>) -> Option<Self> {
        // The number of documents of each bin, the sum of their probabilities, and the number of relevant ones.
        let mut sums = [(0_usize, 0.0, 0_usize); Self::BINS];
        let mut squares = 0.0;
        for (probability, relevant) in judged {
            if !(0.0..=1.0).contains(&probability) {
                return None;
            }
            let is_below = |bin: &usize| probability <= (bin + 1) as f64 / Self::BINS as f64;
            let bin = (0..Self::BINS).find(is_below).unwrap_or(Self::BINS - 1);
            let target = f64::from(u8::from(relevant));
            sums[bin].0 += 1;
            sums[bin].1 += probability;
            sums[bin].2 += usize::from(relevant);
            squares += (probability - target).powi(2);
        }
        let documents: usize = sums.iter().map(|(count, ..)| count).sum();
        if documents == 0 {
            return None;
        }
        let errors = sums.iter().map(|(_, sum, relevant)| (sum - *relevant as f64).abs());
        let bins = sums.iter().map(|&(count, sum, relevant)| {
            let mean = |total: f64| (count > 0).then(|| total / count as f64);
            ReliabilityBin {
                documents: count,
                mean_probability: mean(sum),
                relevant_fraction: mean(relevant as f64),
            }
        });
        Some(Self {
            documents,
            expected_calibration_error: errors.sum::<f64>() / documents as f64,
            brier_score: squares / documents as f64,
            bins: bins.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fit(judged: &[(f64, bool)]) -> Result<Calibration, CalibrationError> {
        let answers = AnswerFormat::zero_to_ten();
        Calibration::fit(ScoreKind::Integer, Mode::AnswerOnly, &answers, judged.iter().copied())
    }

    #[test]
    fn fit_pools_equal_scores_before_violators() {
        // The first document with score 2 alone would be pooled with the documents before it.
        let judged = [(1.0, true), (1.0, false), (2.0, false), (2.0, true), (2.0, true)];
        let calibration = fit(&judged).expect("two classes");
        assert_eq!(calibration.points(), [(1.0, 0.5), (2.0, 2.0 / 3.0)]);
        let zeros = fit(&[(-0.0, true), (0.0, false)]).expect("two classes");
        assert_eq!(zeros.points(), [(0.0, 0.5)]);
        assert_eq!(zeros.probability(7.0), 0.5);
    }

    #[test]
    fn fit_of_falling_relevance_is_constant() {
        let calibration = fit(&[(1.0, true), (2.0, true), (3.0, false)]).expect("two classes");
        assert_eq!(calibration.points(), [(1.0, 2.0 / 3.0), (3.0, 2.0 / 3.0)]);
    }

    #[test]
    fn fit_rejects_one_class_and_scores_out_of_range() {
        let one_class =
            |documents, relevant| Err(CalibrationError::OneClass { documents, relevant });
        assert_eq!(fit(&[]), one_class(0, 0));
        assert_eq!(fit(&[(1.0, true), (2.0, true)]), one_class(2, 2));
        assert_eq!(fit(&[(1.0, false)]), one_class(1, 0));
        for score in [f64::NAN, f64::INFINITY, -0.5, 10.5] {
            let error = fit(&[(1.0, false), (score, true)]);
            assert!(matches!(error, Err(CalibrationError::Score { largest: 10, .. })), "{error:?}");
        }
    }

    #[test]
    fn check_names_what_differs() {
        let calibration = fit(&[(1.0, false), (2.0, true)]).expect("two classes");
        let ten = AnswerFormat::zero_to_ten();
        let check = |score, mode, answers: &AnswerFormat| {
            calibration.check(score, mode, answers).map_err(|error| error.to_string())
        };
        assert_eq!(check(ScoreKind::Integer, Mode::AnswerOnly, &ten), Ok(()));
        let reason = Mode::Reason { max_tokens: 9 };
        for (result, said) in [
            (check(ScoreKind::ExpectedValue, Mode::AnswerOnly, &ten), "the score integer"),
            (check(ScoreKind::Integer, reason, &ten), "answers without reasoning"),
            (
                check(ScoreKind::Integer, Mode::AnswerOnly, &AnswerFormat::yes_no()),
                "answers from 0 to 10",
            ),
        ] {
            assert!(result.as_ref().is_err_and(|error| error.contains(said)), "{result:?}");
        }
    }

    #[test]
    fn reliability_without_probabilities_is_none() {
        assert_eq!(Reliability::measure([]), None);
        for probability in [f64::NAN, -0.1, 1.1] {
            assert_eq!(Reliability::measure([(0.5, true), (probability, true)]), None);
        }
    }

    proptest! {
        /// For any judged documents, probabilities lie in [0, 1] and never fall, and the mean probability of the
        /// documents is the fraction of relevant ones.
        #[test]
        fn probabilities_never_fall(
            judged in proptest::collection::vec((0..40_u32, any::<bool>()), 2..60),
        ) {
            let judged: Vec<(f64, bool)> =
                judged.into_iter().map(|(score, relevant)| (f64::from(score) / 4.0, relevant)).collect();
            let Ok(calibration) = fit(&judged) else { return Ok(()) };
            let all: Vec<f64> =
                (-8..100).map(|eighth| calibration.probability(f64::from(eighth) / 8.0)).collect();
            prop_assert!(all.is_sorted());
            prop_assert!(all.iter().all(|probability| (0.0..=1.0).contains(probability)));
            let relevant = judged.iter().filter(|(_, relevant)| *relevant).count() as f64;
            let sum: f64 = judged.iter().map(|(score, _)| calibration.probability(*score)).sum();
            prop_assert!((sum - relevant).abs() < 1e-9, "{} {}", sum, relevant);
        }
    }
}
