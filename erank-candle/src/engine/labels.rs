//! The allowed answers as tokens, and their exact joint probabilities.
//!
//! An answer may take several tokens, and one may begin another: with Qwen's tokenizer "10" is the
//! tokens of "1" and "0". The tokens of all answers make a tree. Reading the distribution takes the
//! logits at its root, where the answer begins, and at every inner node, here after "1":
//!
//! ```text
//! P(10) = P("1") · P("0" | "1")
//! P(1)  = P("1") · (1 − P("0" | "1"))      an answer that begins another: what does not go on
//! P(7)  = P("7")
//! ```

use erank_core::{AnswerDistribution, AnswerError};

use crate::logits::Logits;

/// Token sequences of the allowed answers, in the order of the answer format.
#[derive(Debug)]
pub(crate) struct Labels {
    tokens: Vec<Vec<u32>>,
    /// The inner nodes of the tree but its root, each as the tokens that lead there.
    inner: Vec<Vec<u32>>,
}

impl Labels {
    pub(crate) fn new(tokens: Vec<Vec<u32>>) -> Self {
        let mut inner: Vec<Vec<u32>> = tokens
            .iter()
            .flat_map(|label| (1..label.len()).map(|length| label[..length].to_vec()))
            .collect();
        inner.sort_unstable();
        inner.dedup();
        Self { tokens, inner }
    }

    /// The tokens of the answer at `index`.
    pub(crate) fn tokens(&self, index: usize) -> &[u32] {
        &self.tokens[index]
    }

    /// Tokens of the longest answer.
    pub(crate) fn longest(&self) -> usize {
        self.tokens.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// The first inner node, as the tokens that lead there; empty if every answer is one token.
    pub(crate) fn first_probe(&self) -> &[u32] {
        self.inner.first().map_or(&[], Vec::as_slice)
    }

    /// The longest answer that `tokens` begin with.
    pub(crate) fn beginning(&self, tokens: &[u32]) -> Option<usize> {
        let labels = 0..self.tokens.len();
        let begun = labels.filter(|label| tokens.starts_with(&self.tokens[*label]));
        begun.max_by_key(|label| self.tokens[*label].len())
    }
}

/// The distribution over the answers while its tree is walked.
#[derive(Debug, Clone)]
pub(crate) struct Walk {
    /// By answer and token: the log-probability given the tokens before.
    log_probs: Vec<Vec<f64>>,
    /// By answer: the log-probability that it ends where it does.
    ends: Vec<f64>,
    /// The inner nodes seen.
    seen: usize,
}

impl Walk {
    /// Begins with the logits where the answer begins.
    pub(crate) fn begin(labels: &Labels, logits: &Logits<'_>) -> Self {
        let log_probs = labels.tokens.iter().map(|_| Vec::new()).collect();
        let mut walk = Self { log_probs, ends: vec![0.0; labels.tokens.len()], seen: 0 };
        walk.read(labels, &[], logits);
        walk
    }

    /// The tokens after which logits are wanted next; `None` when all is known.
    pub(crate) fn next<'a>(&self, labels: &'a Labels) -> Option<&'a [u32]> {
        labels.inner.get(self.seen).map(Vec::as_slice)
    }

    /// Goes on with the logits after the tokens that [`next`](Self::next) named.
    pub(crate) fn go_on(&mut self, labels: &Labels, logits: &Logits<'_>) {
        if let Some(prefix) = labels.inner.get(self.seen) {
            self.read(labels, prefix, logits);
            self.seen += 1;
        }
    }

    /// The log-probability of each token of the answer at `index`, given those before.
    pub(crate) fn token_log_probs(&self, index: usize) -> &[f64] {
        &self.log_probs[index]
    }

    /// The distribution, once all is known.
    pub(crate) fn distribution(&self) -> Result<AnswerDistribution, AnswerError> {
        let joint = |(tokens, end): (&Vec<f64>, &f64)| tokens.iter().sum::<f64>() + end;
        AnswerDistribution::new(self.log_probs.iter().zip(&self.ends).map(joint))
    }

    fn read(&mut self, labels: &Labels, prefix: &[u32], logits: &Logits<'_>) {
        let mut children = Vec::new();
        for (label, log_probs) in labels.tokens.iter().zip(&mut self.log_probs) {
            if let Some(id) = label.strip_prefix(prefix).and_then(|rest| rest.first()) {
                log_probs.push(logits.log_prob(*id));
                children.push(*id);
            }
        }
        children.sort_unstable();
        children.dedup();
        let goes_on: f64 = children.iter().map(|id| logits.log_prob(*id).exp()).sum();
        for (label, end) in labels.tokens.iter().zip(&mut self.ends) {
            if label == prefix {
                *end = (1.0 - goes_on).max(0.0).ln();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of the digits 0 to 9 and one token that ends the answer.
    fn zero_to_ten() -> Labels {
        let mut tokens: Vec<Vec<u32>> = (0..10).map(|digit| vec![digit]).collect();
        tokens.push(vec![1, 0]);
        Labels::new(tokens)
    }

    fn logits(probabilities: &[f64; 11]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() as f32).collect()
    }

    #[test]
    fn ten_takes_its_share_of_one() {
        let labels = zero_to_ten();
        assert_eq!(labels.beginning(&[7]), Some(7));
        assert_eq!(labels.beginning(&[1, 0]), Some(10));
        assert_eq!(labels.beginning(&[1, 7]), Some(1));
        assert_eq!((labels.beginning(&[10]), labels.beginning(&[])), (None, None));
        assert_eq!(labels.longest(), 2);
        let root = logits(&[0.05, 0.4, 0.05, 0.05, 0.05, 0.05, 0.05, 0.1, 0.05, 0.05, 0.1]);
        let after_one = logits(&[0.75, 0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2]);

        let mut walk = Walk::begin(&labels, &Logits::new(&root));
        assert_eq!(walk.next(&labels), Some(&[1][..]));
        walk.go_on(&labels, &Logits::new(&after_one));
        assert_eq!(walk.next(&labels), None);

        let distribution = walk.distribution().expect("probabilities");
        let near = |index, expected: f64| {
            let probability = distribution.probability(index);
            assert!((probability - expected).abs() < 1e-6, "{index}: {probability}");
        };
        near(10, 0.4 * 0.75);
        near(1, 0.4 * 0.25);
        near(7, 0.1);
        assert_eq!(distribution.most_probable(), 10);
        assert_eq!(walk.token_log_probs(10).len(), 2);
    }

    #[test]
    fn logits_that_are_none_give_an_error() {
        let labels = zero_to_ten();
        let nan = [f32::NAN; 11];
        let mut walk = Walk::begin(&labels, &Logits::new(&nan));
        walk.go_on(&labels, &Logits::new(&nan));
        assert_eq!(walk.distribution(), Err(AnswerError::InvalidProbability));
    }
}
