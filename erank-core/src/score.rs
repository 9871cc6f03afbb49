//! The score of an answer.

use crate::answer::Answer;
use crate::answer_format::AnswerFormat;
use crate::error::AnswerError;

/// The number that documents are ranked by, before fusion.
///
/// `N` is the value of the answer's label in the [`AnswerFormat`], and `P(N)` is
/// the label's probability. Every score is finite, at least 0, and at most the format's largest value.
///
/// The default depends on the answers that the prompt allows; see [`default_for`](Self::default_for).
///
/// With a format other than ERank's 0 to 10, mind that `N × P(N)` depends on the distance of the values
/// from 0. On a scale of 1 to 5, a 5 with probability 0.2 ties with a certain 1. A label with value 0 scores
/// 0, no matter how probable it is. A ranking by [`ExpectedValue`](Self::ExpectedValue) does not depend on
/// the distance from 0, and gives a label with value 0 no special role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ScoreKind {
    /// `N × P(N)`, as ERank's authors rank (arXiv 2509.00520, §3.2). Needs log-probabilities.
    ProbabilityWeighted,
    /// `Σ i·P(i) / Σ P(i)` over the allowed answers. Needs their distribution. With the answers `no` (0) and `yes`
    /// (1), it is the softmax over both, `P(yes) / (P(yes) + P(no))`.
    ExpectedValue,
    /// `N` alone. Needs no log-probabilities.
    Integer,
}

impl ScoreKind {
    /// Returns the score to rank by unless another one is chosen. It is [`ExpectedValue`](Self::ExpectedValue)
    /// for two answers, because `N × P(N)` would be 0 for every `no`, and else
    /// [`ProbabilityWeighted`](Self::ProbabilityWeighted), as ERank's authors rank.
    pub fn default_for(answers: &AnswerFormat) -> Self {
        match answers.answers().len() {
            2 => Self::ExpectedValue,
            _ => Self::ProbabilityWeighted,
        }
    }

    /// Returns the name, as in JSON: `probability_weighted`, `expected_value` or `integer`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProbabilityWeighted => "probability_weighted",
            Self::ExpectedValue => "expected_value",
            Self::Integer => "integer",
        }
    }

    /// Returns the relevance of `answer` on a scale from 0 to 1, which
    /// [`min_score`](crate::RerankerBuilder::min_score) compares.
    ///
    /// | kind | relevance, with the [scale](AnswerFormat::relevance) of `answers` |
    /// |---|---|
    /// | [`Integer`](Self::Integer) | the integer, for ERank's answers `N / 10` |
    /// | [`ExpectedValue`](Self::ExpectedValue) | the expected value, for `no` and `yes` the probability of `yes` |
    /// | [`ProbabilityWeighted`](Self::ProbabilityWeighted) | the expected value, too |
    ///
    /// A limit on `N × P(N)` itself would remove relevant documents and keep less relevant ones: a 9 with probability
    /// 0.5 has 4.5, and a certain 5 has 5.
    ///
    /// Returns `None` if the answer lacks the distribution that the expected value needs, or if all answers have the
    /// same value.
    pub fn relevance(self, answer: &Answer, answers: &AnswerFormat) -> Option<f64> {
        answers.relevance(self.relevance_kind().score(answer).ok()?)
    }

    /// Returns the kind whose value is the [relevance](Self::relevance) for this kind, once it is brought to the scale
    /// from 0 to 1: [`Integer`](Self::Integer) for itself, and else [`ExpectedValue`](Self::ExpectedValue).
    pub fn relevance_kind(self) -> Self {
        match self {
            Self::ProbabilityWeighted | Self::ExpectedValue => Self::ExpectedValue,
            Self::Integer => Self::Integer,
        }
    }

    /// Returns the score of `answer`.
    ///
    /// ```
    /// use erank_core::{AnswerFormat, AnswerProbability, Completion, ScoreKind};
    ///
    /// let mut completion = Completion::new("<answer>");
    /// completion.push("8", 0.5_f32.ln());
    /// completion.push("</answer>", 0.0);
    /// let format = AnswerFormat::zero_to_ten();
    /// let answer = format.parse(&completion, AnswerProbability::Joint)?;
    /// assert_eq!(ScoreKind::Integer.score(&answer)?, 8.0);
    /// assert!((ScoreKind::ProbabilityWeighted.score(&answer)? - 4.0).abs() < 1e-6);
    /// assert!(ScoreKind::ExpectedValue.score(&answer).is_err());
    /// # Ok::<(), erank_core::AnswerError>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`AnswerError::NoProbability`] if the answer lacks the probability or the distribution
    /// that this score needs.
    pub fn score(self, answer: &Answer) -> Result<f64, AnswerError> {
        match self {
            Self::ProbabilityWeighted => {
                answer.probability_weighted().ok_or(AnswerError::NoProbability("log-probabilities"))
            }
            Self::ExpectedValue => answer
                .expected_value
                .ok_or(AnswerError::NoProbability("distribution over the answers")),
            Self::Integer => Ok(f64::from(answer.integer)),
        }
    }
}
