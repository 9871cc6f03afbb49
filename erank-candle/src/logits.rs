//! Conversion of logits to tokens and log-probabilities.

use crate::kernels::InstructionSet;
use crate::kernels::exp::exp;

/// The number of partial maxima and sums. The compiler computes them in vector registers.
const LANES: usize = 16;

/// A token with its natural log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TokenLogProb {
    /// The token's id.
    pub id: u32,
    /// Its natural log-probability.
    pub log_prob: f32,
}

/// The error of a model that computed NaN or infinite logits.
#[derive(Debug, thiserror::Error)]
#[error(
    "the model's numbers are NaN or infinite: its weights are damaged or do not belong to its config.json; download \
     its files again, and check the model with `erank inspect --logprobs 1`"
)]
pub(crate) struct NotNumbers;

/// The logits of one position, with the constants that convert them to log-probabilities.
pub(crate) struct Logits<'a> {
    logits: &'a [f32],
    max: f32,
    /// `ln Σ exp(logit − max)`.
    log_sum: f64,
}

impl<'a> Logits<'a> {
    pub(crate) fn new(logits: &'a [f32]) -> Self {
        let (max, sum) = InstructionSet::best().run(
            #[inline(always)]
            || {
                let max = max(logits);
                (max, sum_of_exponentials(logits, max))
            },
        );
        Self { logits, max, log_sum: sum.ln() }
    }

    /// Checks that the logits have a softmax. Impossible tokens, −∞, are allowed.
    ///
    /// # Errors
    /// Returns [`NotNumbers`] if a logit is NaN or +∞, or if all tokens are impossible.
    pub(crate) fn check(&self) -> Result<(), NotNumbers> {
        if self.log_sum.is_finite() && self.max.is_finite() { Ok(()) } else { Err(NotNumbers) }
    }

    /// Returns the log-probability of `id`, or −∞ for an id outside the vocabulary.
    pub(crate) fn log_prob(&self, id: u32) -> f64 {
        let logit = self.logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        f64::from(logit) - f64::from(self.max) - self.log_sum
    }

    /// Returns the most probable token. Ties take the lowest id.
    pub(crate) fn greedy(&self) -> TokenLogProb {
        let best = self.logits.iter().position(|logit| *logit == self.max);
        self.token(best.unwrap_or(0) as u32)
    }

    /// Returns the `k` most probable tokens, best first. Ties are in the order of their ids.
    pub(crate) fn most_probable(&self, k: usize) -> Vec<TokenLogProb> {
        let mut ids: Vec<u32> = (0..self.logits.len() as u32).collect();
        let logit = |id: &u32| self.logits[*id as usize];
        let best_first = |a: &u32, b: &u32| logit(b).total_cmp(&logit(a)).then(a.cmp(b));
        if k < ids.len() {
            ids.select_nth_unstable_by(k, best_first);
            ids.truncate(k);
        }
        ids.sort_unstable_by(best_first);
        ids.into_iter().map(|id| self.token(id)).collect()
    }

    /// Returns the logits by token id.
    pub(crate) fn values(&self) -> &[f32] {
        self.logits
    }

    /// Returns a token with its log-probability.
    pub(crate) fn token(&self, id: u32) -> TokenLogProb {
        TokenLogProb { id, log_prob: self.log_prob(id) as f32 }
    }
}

/// Returns the maximum of the numbers that are not NaN, or −∞ if there are no such numbers.
#[inline(always)]
fn max(numbers: &[f32]) -> f32 {
    let mut max = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = numbers.as_chunks::<LANES>();
    for numbers in whole {
        for (max, number) in max.iter_mut().zip(numbers) {
            *max = if number > max { *number } else { *max };
        }
    }
    max.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Computes `Σ exp(number − max)` in `LANES` partial sums.
#[inline(always)]
fn sum_of_exponentials(numbers: &[f32], max: f32) -> f64 {
    let mut sums = [0.0; LANES];
    let (whole, rest) = numbers.as_chunks::<LANES>();
    for numbers in whole {
        for (sum, number) in sums.iter_mut().zip(numbers) {
            *sum += f64::from(exp(number - max));
        }
    }
    for (sum, number) in sums.iter_mut().zip(rest) {
        *sum += f64::from(exp(number - max));
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_sum_to_one_and_ties_take_the_lowest_id() {
        let numbers = [1.0, 3.0, 3.0, -1.0, 1000f32.ln()];
        let logits = Logits::new(&numbers);
        let total: f64 = (0..5).map(|id| logits.log_prob(id).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        let ids: Vec<u32> = logits.most_probable(3).iter().map(|token| token.id).collect();
        assert_eq!(ids, [4, 1, 2]);
        assert_eq!(Logits::new(&[3.0, 3.0]).greedy().id, 0);
        assert_eq!(logits.log_prob(77), f64::NEG_INFINITY);
        assert_eq!(logits.most_probable(77).len(), 5);
    }

    #[test]
    fn log_prob_agrees_with_f64_for_a_whole_vocabulary() {
        let numbers: Vec<f32> =
            (0..151_936).map(|i| (i * 7919 % 4001) as f32 / 97.0 - 25.0).collect();
        let largest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = numbers.iter().map(|x| f64::from(*x - largest).exp()).sum();
        let logits = Logits::new(&numbers);
        for id in [0, 1, 4000, 151_935] {
            let exact = f64::from(numbers[id as usize] - largest) - sum.ln();
            assert!((logits.log_prob(id) - exact).abs() < 1e-6, "{id}");
        }
        assert_eq!(numbers[logits.greedy().id as usize], largest);
        assert!(Logits::new(&[f32::NAN, 1.0]).greedy().id == 1);
        assert!(logits.check().is_ok() && Logits::new(&[f32::NEG_INFINITY, 1.0]).check().is_ok());
        for wrong in [[f32::NAN, 1.0], [f32::INFINITY, 1.0], [f32::NEG_INFINITY; 2]] {
            assert!(Logits::new(&wrong).check().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn log_prob_is_finite_for_large_logits() {
        let logits = Logits::new(&[1e30, 1e30]);
        assert!((logits.log_prob(0) - 0.5f64.ln()).abs() < 1e-6);
    }
}
