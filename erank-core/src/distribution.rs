//! The log-probabilities of all allowed answers.

use crate::answer_format::AnswerFormat;
use crate::error::AnswerError;

/// A backend's knowledge of one answer's natural log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AnswerLogProb {
    /// The log-probability.
    Exact(f64),
    /// An upper bound of the log-probability. A server that returns only its most probable tokens
    /// gives no more than a bound for the other answers.
    UpperBound(f64),
}

/// The log-probability of every allowed answer at the position of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerDistribution {
    log_probs: Vec<f64>,
    /// For each answer, whether its log-probability is an upper bound.
    bounds: Vec<bool>,
}

impl AnswerDistribution {
    /// Creates a distribution from natural logarithms, in the order of [`AnswerFormat::answers`].
    ///
    /// The probabilities need not add up to one. The rest belongs to texts that are not answers.
    ///
    /// # Errors
    /// Returns [`AnswerError::InvalidProbability`] if a logarithm is NaN or above 0, or if all
    /// log-probabilities are minus infinity.
    pub fn new(log_probs: impl IntoIterator<Item = f64>) -> Result<Self, AnswerError> {
        Self::with_bounds(log_probs.into_iter().map(AnswerLogProb::Exact))
    }

    /// Creates a distribution in which some answers have only an upper bound.
    ///
    /// The most probable answer and all moments are computed from the exact log-probabilities alone.
    ///
    /// # Errors
    /// Returns [`AnswerError::InvalidProbability`] if a logarithm is NaN or above 0, or if all exact
    /// log-probabilities are minus infinity.
    pub fn with_bounds(
        log_probs: impl IntoIterator<Item = AnswerLogProb>,
    ) -> Result<Self, AnswerError> {
        let (mut values, mut bounds) = (Vec::new(), Vec::new());
        for log_prob in log_probs {
            let (value, is_bound) = match log_prob {
                AnswerLogProb::Exact(value) => (value, false),
                AnswerLogProb::UpperBound(bound) => (bound, true),
            };
            values.push(check_log_prob(value)?);
            bounds.push(is_bound);
        }
        let distribution = Self { log_probs: values, bounds };
        let some_is_possible = distribution.exact().any(|(_, value)| value > f64::NEG_INFINITY);
        if some_is_possible { Ok(distribution) } else { Err(AnswerError::InvalidProbability) }
    }

    /// Returns whether the log-probability of the answer at `index` is an upper bound.
    pub fn is_bound(&self, index: usize) -> bool {
        self.bounds.get(index).is_some_and(|is_bound| *is_bound)
    }

    /// Returns the indices and values of the exact log-probabilities.
    fn exact(&self) -> impl Iterator<Item = (usize, f64)> {
        let log_probs = self.log_probs.iter().copied().enumerate();
        log_probs.filter(|(index, _)| !self.bounds[*index])
    }

    /// Returns the log-probabilities, or [upper bounds](Self::is_bound) of them, in the order of
    /// [`AnswerFormat::answers`].
    pub fn log_probs(&self) -> &[f64] {
        &self.log_probs
    }

    /// Returns the index of the answer with the largest exact log-probability. The first one wins a
    /// tie.
    pub fn most_probable(&self) -> usize {
        let mut best = (0, f64::NEG_INFINITY);
        for (index, log_prob) in self.exact() {
            if log_prob > best.1 {
                best = (index, log_prob);
            }
        }
        best.0
    }

    /// Returns the probability of the answer at `index`, or an [upper bound](Self::is_bound) of it.
    /// Returns 0 if `index` is out of range.
    pub fn probability(&self, index: usize) -> f64 {
        self.log_probs.get(index).map_or(0.0, |log_prob| log_prob.exp())
    }

    /// Returns `Σ i·P(i) / Σ P(i)` over the allowed answers.
    pub fn expected_value(&self, format: &AnswerFormat) -> f64 {
        let values = format.answers().map(|(_, value)| f64::from(value));
        self.normalized().zip(values).map(|(probability, value)| probability * value).sum()
    }

    /// Returns the variance of the answer's value, with the probabilities normalized as in
    /// [`expected_value`](Self::expected_value).
    pub fn variance(&self, format: &AnswerFormat) -> f64 {
        let mean = self.expected_value(format);
        let squares = format.answers().map(|(_, value)| (f64::from(value) - mean).powi(2));
        self.normalized().zip(squares).map(|(probability, square)| probability * square).sum()
    }

    /// Returns `−Σ P(i)·ln P(i)` in nats, with the probabilities normalized. It is 0 if one answer is
    /// certain, and at most the logarithm of the number of answers.
    pub fn entropy(&self) -> f64 {
        let probabilities = self.normalized().filter(|probability| *probability > 0.0);
        let terms = probabilities.map(|probability| -probability * probability.ln());
        terms.sum::<f64>().max(0.0)
    }

    /// Returns the Kullback–Leibler divergence of `other` from this distribution, `Σ P(i)·ln(P(i) / Q(i))` in
    /// nats, with the probabilities `P` of this distribution and `Q` of `other` normalized. It is 0 if the
    /// distributions are equal, and infinite if `other` excludes an answer that this distribution allows.
    ///
    /// Returns `None` if the numbers of answers differ or an answer has only an
    /// [upper bound](Self::is_bound).
    pub fn kl_divergence(&self, other: &Self) -> Option<f64> {
        let is_comparable = self.log_probs.len() == other.log_probs.len()
            && !self.bounds.iter().chain(&other.bounds).any(|is_bound| *is_bound);
        if !is_comparable {
            return None;
        }
        // Differences of logarithms do not underflow, as quotients of probabilities would.
        let log_total = |(largest, total): (f64, f64)| largest + total.ln();
        let totals = log_total(self.scale()) - log_total(other.scale());
        let terms = self.normalized().zip(self.log_probs.iter().zip(&other.log_probs));
        let terms = terms.filter(|(probability, _)| *probability > 0.0);
        let terms =
            terms.map(|(probability, (log_p, log_q))| probability * (log_p - log_q - totals));
        Some(terms.sum::<f64>().max(0.0))
    }

    /// Returns the largest exact log-probability, and the sum of the exact probabilities divided by the largest
    /// one. Dividing first keeps the sum from underflowing.
    fn scale(&self) -> (f64, f64) {
        let largest = self.log_probs[self.most_probable()];
        (largest, self.exact().map(|(_, log_prob)| (log_prob - largest).exp()).sum())
    }

    /// Returns the exact probabilities, scaled so that they add up to one, with 0 for each upper
    /// bound.
    fn normalized(&self) -> impl Iterator<Item = f64> {
        let (largest, total) = self.scale();
        self.log_probs.iter().zip(&self.bounds).map(move |(log_prob, is_bound)| match is_bound {
            true => 0.0,
            false => (log_prob - largest).exp() / total,
        })
    }
}

/// Returns a log-probability. A value that rounding put slightly above 0 becomes 0.
///
/// # Errors
/// Returns [`AnswerError::InvalidProbability`] for NaN and for larger values.
pub(crate) fn check_log_prob(log_prob: f64) -> Result<f64, AnswerError> {
    const ROUNDING: f64 = 1e-3;
    if log_prob <= ROUNDING { Ok(log_prob.min(0.0)) } else { Err(AnswerError::InvalidProbability) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_ignore_upper_bounds() {
        use AnswerLogProb::{Exact, UpperBound};
        let format = AnswerFormat::zero_to_three();
        let bounded = AnswerDistribution::with_bounds([
            UpperBound(0.9_f64.ln()),
            Exact(0.2_f64.ln()),
            Exact(f64::NEG_INFINITY),
            Exact(0.6_f64.ln()),
        ]);
        let bounded = bounded.expect("probabilities");
        assert_eq!(
            (bounded.is_bound(0), bounded.is_bound(3), bounded.is_bound(9)),
            (true, false, false)
        );
        assert_eq!(bounded.most_probable(), 3);
        assert!((bounded.probability(0) - 0.9).abs() < 1e-12, "the bound");
        assert!((bounded.expected_value(&format) - 2.5).abs() < 1e-12, "(1·0.2 + 3·0.6) / 0.8");
        assert!((bounded.variance(&format) - 0.75).abs() < 1e-12);
        assert!(bounded.entropy().is_finite());
    }

    #[test]
    fn constructors_reject_invalid_log_probabilities() {
        use AnswerLogProb::{Exact, UpperBound};
        for unusable in [[UpperBound(-1.0); 2], [UpperBound(f64::NAN), Exact(-1.0)]] {
            let distribution = AnswerDistribution::with_bounds(unusable);
            assert_eq!(distribution, Err(AnswerError::InvalidProbability));
        }
        for unusable in [&[f64::NEG_INFINITY; 11][..], &[f64::NAN], &[0.5], &[]] {
            let distribution = AnswerDistribution::new(unusable.iter().copied());
            assert_eq!(distribution, Err(AnswerError::InvalidProbability));
        }
    }

    #[test]
    fn expected_value_handles_tiny_probabilities() {
        let tiny = AnswerDistribution::new([-5000.0; 11]).expect("probabilities");
        assert!((tiny.expected_value(&AnswerFormat::zero_to_ten()) - 5.0).abs() < 1e-12);
    }

    #[test]
    fn kl_divergence_is_that_of_normalized_distributions() {
        let of = |probabilities: [f64; 3]| {
            AnswerDistribution::new(probabilities.map(f64::ln)).expect("probabilities")
        };
        // Half of each distribution belongs to other texts.
        let (p, q) = (of([0.25, 0.125, 0.125]), of([0.125, 0.125, 0.25]));
        let divergence = p.kl_divergence(&q).expect("comparable");
        assert!((divergence - 0.25 * 2_f64.ln()).abs() < 1e-12, "0.5·ln 2 − 0.25·ln 2");
        assert_eq!(p.kl_divergence(&p), Some(0.0));
        let excluding = of([0.5, 0.5, 0.0]);
        assert_eq!(p.kl_divergence(&excluding), Some(f64::INFINITY));
        assert!(excluding.kl_divergence(&p).is_some_and(f64::is_finite));
    }

    #[test]
    fn kl_divergence_handles_tiny_probabilities_and_incomparable_distributions() {
        let of = |log_probs: &[f64]| {
            AnswerDistribution::new(log_probs.iter().copied()).expect("probabilities")
        };
        let divergence = of(&[-5000.0, -9000.0]).kl_divergence(&of(&[-8000.0, -7000.0]));
        assert!(divergence.is_some_and(|divergence| (divergence - 1000.0).abs() < 1e-9));
        assert_eq!(of(&[-1.0]).kl_divergence(&of(&[-1.0, -2.0])), None);
        let bounded = AnswerDistribution::with_bounds([
            AnswerLogProb::Exact(-1.0),
            AnswerLogProb::UpperBound(-2.0),
        ]);
        let bounded = bounded.expect("probabilities");
        assert_eq!(bounded.kl_divergence(&bounded), None);
    }

    #[test]
    fn moments_handle_any_values() {
        let halves = AnswerDistribution::new([0.5_f64.ln(); 2]).expect("probabilities");
        let large = AnswerFormat::labels([("low", 0), ("high", u32::MAX)]).expect("valid");
        let half = f64::from(u32::MAX) / 2.0;
        assert_eq!(halves.expected_value(&large), half);
        assert_eq!(halves.variance(&large), half * half);
        // Labels with the same value leave no variance, whichever is chosen.
        let equal = AnswerFormat::labels([("fits", 2), ("suits", 2)]).expect("valid");
        assert_eq!((halves.expected_value(&equal), halves.variance(&equal)), (2.0, 0.0));
        assert!((halves.entropy() - 2_f64.ln()).abs() < 1e-12);
    }
}
