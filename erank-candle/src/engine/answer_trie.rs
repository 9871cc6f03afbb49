//! A trie of the allowed answers' tokens, which gives their exact joint probabilities.
//!
//! An answer may have several tokens, and one answer may be a prefix of another: Qwen's tokenizer splits "10" into
//! "1" and "0". The distribution needs the logits at the trie's root, where the answer begins, and at every inner
//! node, here after "1":
//!
//! ```text
//! P(10) = P("1") · P("0" | "1")
//! P(1)  = P("1") · (1 − P("0" | "1"))      "1" is a prefix of "10": the probability of ending
//! P(7)  = P("7")
//! ```

use erank_core::{AnswerDistribution, AnswerError};

use crate::logits::Logits;

/// The token sequences of the allowed answers, in the order of the answer format.
#[derive(Debug)]
pub(crate) struct AnswerTrie {
    tokens: Vec<Vec<u32>>,
    /// The inner nodes except the root, each as the tokens from the root.
    inner: Vec<Vec<u32>>,
}

impl AnswerTrie {
    pub(crate) fn new(tokens: Vec<Vec<u32>>) -> Self {
        let mut inner: Vec<Vec<u32>> = tokens
            .iter()
            .flat_map(|label| (1..label.len()).map(|length| label[..length].to_vec()))
            .collect();
        inner.sort_unstable();
        inner.dedup();
        Self { tokens, inner }
    }

    /// Returns the tokens of the answer at `index`.
    pub(crate) fn tokens(&self, index: usize) -> &[u32] {
        &self.tokens[index]
    }

    /// Returns the number of tokens of the longest answer.
    pub(crate) fn longest(&self) -> usize {
        self.tokens.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Returns the first inner node as the tokens from the root; empty if every answer is one token.
    pub(crate) fn first_probe(&self) -> &[u32] {
        self.inner.first().map_or(&[], Vec::as_slice)
    }

    /// Returns the longest answer that is a prefix of `tokens`.
    pub(crate) fn longest_prefix(&self, tokens: &[u32]) -> Option<usize> {
        let labels = 0..self.tokens.len();
        let prefixes = labels.filter(|label| tokens.starts_with(&self.tokens[*label]));
        prefixes.max_by_key(|label| self.tokens[*label].len())
    }
}

/// A walk over the trie's inner nodes, which collects the log-probabilities.
#[derive(Debug, Clone)]
pub(crate) struct TrieWalk {
    /// The log-probabilities of each answer's tokens, given the tokens before.
    log_probs: Vec<Vec<f64>>,
    /// Each answer's log-probability of ending after its last token.
    ends: Vec<f64>,
    /// Number of visited inner nodes.
    visited: usize,
}

impl TrieWalk {
    /// Starts at the root with the logits where the answer begins.
    pub(crate) fn begin(trie: &AnswerTrie, logits: &Logits<'_>) -> Self {
        let log_probs = trie.tokens.iter().map(|_| Vec::new()).collect();
        let mut walk = Self { log_probs, ends: vec![0.0; trie.tokens.len()], visited: 0 };
        walk.read(trie, &[], logits);
        walk
    }

    /// Returns the next inner node as the tokens from the root; `None` after the last one.
    pub(crate) fn next<'a>(&self, trie: &'a AnswerTrie) -> Option<&'a [u32]> {
        trie.inner.get(self.visited).map(Vec::as_slice)
    }

    /// Visits the node that [`next`](Self::next) returned, with the logits after its tokens.
    pub(crate) fn advance(&mut self, trie: &AnswerTrie, logits: &Logits<'_>) {
        if let Some(prefix) = trie.inner.get(self.visited) {
            self.read(trie, prefix, logits);
            self.visited += 1;
        }
    }

    /// Returns the log-probability of each token of the answer at `index`, given the tokens before.
    pub(crate) fn token_log_probs(&self, index: usize) -> &[f64] {
        &self.log_probs[index]
    }

    /// Returns the distribution, after the last node.
    ///
    /// # Errors
    /// Returns [`AnswerError::InvalidProbability`] if the logits are no numbers.
    pub(crate) fn distribution(&self) -> Result<AnswerDistribution, AnswerError> {
        let joint = |(tokens, end): (&Vec<f64>, &f64)| tokens.iter().sum::<f64>() + end;
        AnswerDistribution::new(self.log_probs.iter().zip(&self.ends).map(joint))
    }

    fn read(&mut self, trie: &AnswerTrie, prefix: &[u32], logits: &Logits<'_>) {
        let mut children = Vec::new();
        for (label, log_probs) in trie.tokens.iter().zip(&mut self.log_probs) {
            if let Some(id) = label.strip_prefix(prefix).and_then(|rest| rest.first()) {
                log_probs.push(logits.log_prob(*id));
                children.push(*id);
            }
        }
        children.sort_unstable();
        children.dedup();
        let continues: f64 = children.iter().map(|id| logits.log_prob(*id).exp()).sum();
        for (label, end) in trie.tokens.iter().zip(&mut self.ends) {
            if label == prefix {
                *end = (1.0 - continues).max(0.0).ln();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the trie of the answers 0 to 10, over a vocabulary of ten digits and a token that ends the
    /// answer.
    fn zero_to_ten() -> AnswerTrie {
        let mut tokens: Vec<Vec<u32>> = (0..10).map(|digit| vec![digit]).collect();
        tokens.push(vec![1, 0]);
        AnswerTrie::new(tokens)
    }

    fn logits(probabilities: &[f64; 11]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() as f32).collect()
    }

    #[test]
    fn distribution_splits_a_prefix_from_the_longer_answer() {
        let labels = zero_to_ten();
        assert_eq!(labels.longest_prefix(&[7]), Some(7));
        assert_eq!(labels.longest_prefix(&[1, 0]), Some(10));
        assert_eq!(labels.longest_prefix(&[1, 7]), Some(1));
        assert_eq!((labels.longest_prefix(&[10]), labels.longest_prefix(&[])), (None, None));
        assert_eq!(labels.longest(), 2);
        let root = logits(&[0.05, 0.4, 0.05, 0.05, 0.05, 0.05, 0.05, 0.1, 0.05, 0.05, 0.1]);
        let after_one = logits(&[0.75, 0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2]);

        let mut walk = TrieWalk::begin(&labels, &Logits::new(&root));
        assert_eq!(walk.next(&labels), Some(&[1][..]));
        walk.advance(&labels, &Logits::new(&after_one));
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
    fn distribution_rejects_nan() {
        let labels = zero_to_ten();
        let nan = [f32::NAN; 11];
        let mut walk = TrieWalk::begin(&labels, &Logits::new(&nan));
        walk.advance(&labels, &Logits::new(&nan));
        assert_eq!(walk.distribution(), Err(AnswerError::InvalidProbability));
    }
}
