//! The text and log-probabilities that a backend generates for one document.

use std::ops::{AddAssign, Range};

use crate::distribution::AnswerDistribution;

/// A backend's result for one document, or for one sample of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// The text of the assistant's turn, both generated and forced. If the chat template itself opens
    /// the reasoning at the end of the prompt, the text begins with that `<think>`.
    pub text: String,
    /// The byte of [`text`](Self::text) after the `</think>` that ends the reasoning, if the backend
    /// knows it from the token. The parser then ignores every `</think>` before it, such as one that the
    /// reasoning quotes from a document. `None` if there is no reasoning or if the backend sees only
    /// text; the first `</think>` then ends the reasoning.
    pub thought_end: Option<usize>,
    /// The generated tokens in order, if the backend has them. Forced text has no tokens here, except
    /// for a forced answer.
    pub tokens: Vec<GeneratedToken>,
    /// The log-probabilities of all allowed answers at the position of the answer, if the backend can
    /// compute them.
    pub answer_distribution: Option<AnswerDistribution>,
    /// The reason that generation ended.
    pub finish_reason: FinishReason,
    /// The numbers of tokens processed.
    pub usage: TokenCounts,
    /// Whether the query was truncated to its limit.
    pub query_truncated: bool,
    /// Whether the document was truncated to its limit.
    pub document_truncated: bool,
    /// The index of the sample among the document's samples, from 0.
    pub sample: usize,
}

impl Completion {
    /// Creates a completion with this text and no log-probabilities. Set the other fields as needed.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            thought_end: None,
            tokens: Vec::new(),
            answer_distribution: None,
            finish_reason: FinishReason::EndOfTurn,
            usage: TokenCounts::default(),
            query_truncated: false,
            document_truncated: false,
            sample: 0,
        }
    }

    /// Appends a generated token with its text and natural log-probability.
    pub fn push(&mut self, text: &str, log_prob: f32) {
        let start = self.text.len();
        self.text.push_str(text);
        self.tokens.push(GeneratedToken { bytes: start..self.text.len(), log_prob });
    }
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GeneratedToken {
    /// The token's byte range in [`Completion::text`]. Empty for a token that holds only the first
    /// bytes of a character.
    pub bytes: Range<usize>,
    /// The token's natural log-probability when it was chosen.
    pub log_prob: f32,
}

/// The reason that generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum FinishReason {
    /// The model wrote its answer.
    Answered,
    /// The model ended its turn.
    EndOfTurn,
    /// The token budget was spent and the answer was forced.
    Forced,
}

/// Numbers of prompt tokens and generated tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TokenCounts {
    /// The number of prompt tokens, including forced text.
    pub prompt: usize,
    /// The number of generated tokens.
    pub generated: usize,
}

impl TokenCounts {
    /// Creates the counts.
    pub fn new(prompt: usize, generated: usize) -> Self {
        Self { prompt, generated }
    }
}

impl AddAssign for TokenCounts {
    /// Adds up to the largest number, because the counts of a server may be of any size.
    fn add_assign(&mut self, other: Self) {
        self.prompt = self.prompt.saturating_add(other.prompt);
        self.generated = self.generated.saturating_add(other.generated);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_token_counts_stops_at_the_largest_number() {
        let mut counts = TokenCounts::new(usize::MAX, 2);
        counts += TokenCounts::new(usize::MAX, 3);
        assert_eq!(counts, TokenCounts::new(usize::MAX, 5));
    }
}
