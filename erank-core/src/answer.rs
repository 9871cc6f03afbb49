//! A model's answer with its probability and reasoning.

use crate::distribution::AnswerDistribution;

/// The way to compute an answer's probability from token probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum AnswerProbability {
    /// The product over all tokens of the answer. With Qwen's tokenizer, "10" is two tokens, and the first
    /// token, `1`, is the same for the answers 1 and 10. If the backend returns an [`AnswerDistribution`]
    /// with an exact value for the answer, that value is used.
    #[default]
    Joint,
    /// The probability of the answer's first token alone, the literal reading of `P(token = N)` in the
    /// paper.
    FirstToken,
}

/// A model's answer for one document.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Answer {
    /// The value of the answer's label in the [`AnswerFormat`](crate::AnswerFormat).
    pub integer: u32,
    /// The probability of the label, in `[0, 1]`. `None` if the backend returned no log-probabilities.
    pub probability: Option<f64>,
    /// `Σ i·P(i) / Σ P(i)` over the allowed answers. `None` if the backend returned no distribution.
    pub expected_value: Option<f64>,
    /// The variance of the value over the allowed answers. `None` without a distribution.
    pub variance: Option<f64>,
    /// `−Σ P(i)·ln P(i)` over the allowed answers, in nats; 0 if one answer is certain. `None` without
    /// a distribution.
    pub entropy: Option<f64>,
    /// The log-probability of every allowed answer, if the backend returned them.
    pub distribution: Option<AnswerDistribution>,
    /// The reasoning, without its tags.
    pub reasoning: String,
}

impl Answer {
    /// Returns ERank's score, `N × P(N)` (arXiv 2509.00520, §3.2). `None` without a probability.
    pub fn probability_weighted(&self) -> Option<f64> {
        self.probability.map(|probability| f64::from(self.integer) * probability)
    }

    /// Returns the expected value, or the closest substitute that the backend's data allow.
    pub(crate) fn best_estimate(&self) -> f64 {
        self.expected_value.or(self.probability_weighted()).unwrap_or(f64::from(self.integer))
    }
}
