//! What a backend generates for one document.

use std::ops::{AddAssign, Range};

use crate::answer::AnswerDistribution;

/// What was generated for one document.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// The assistant's turn so far as text: what was generated and what was forced. If the rendered
    /// prompt itself opens the thought, the text begins with that `<think>`.
    pub text: String,
    /// Where the thought ends: the byte of the text behind its `</think>`, where the backend knows it
    /// from the token. Then a `</think>` before it is a quotation. `None` if there was no thought, or
    /// the backend knows only text, which ends the thought with the first `</think>` in it.
    pub thought_end: Option<usize>,
    /// The generated tokens in order, where the backend has them. Forced text that is not an
    /// answer has none.
    pub tokens: Vec<GeneratedToken>,
    /// The log-probabilities of all allowed answers at the place of the answer, where the backend
    /// can give them.
    pub answer_distribution: Option<AnswerDistribution>,
    /// Why generation ended.
    pub finish_reason: FinishReason,
    /// What it took.
    pub usage: TokenCounts,
    /// Whether the query was cut to its limit.
    pub query_truncated: bool,
    /// Whether the document was cut to its limit.
    pub document_truncated: bool,
    /// Which of the document's samples this is, from 0.
    pub sample: usize,
}

impl Completion {
    /// A completion of this text without log-probabilities; set the other fields as known.
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

    /// Appends a generated token: its text and its natural log-probability.
    pub fn push(&mut self, text: &str, log_prob: f32) {
        let start = self.text.len();
        self.text.push_str(text);
        self.tokens.push(GeneratedToken { bytes: start..self.text.len(), log_prob });
    }
}

/// One generated token's place in [`Completion::text`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GeneratedToken {
    /// Its bytes in the text. Empty for a token that only completes a character with the next.
    pub bytes: Range<usize>,
    /// Its natural log-probability when it was chosen.
    pub log_prob: f32,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum FinishReason {
    /// The answer was known.
    Answered,
    /// The model ended its turn.
    EndOfTurn,
    /// The token budget was spent, and the answer was forced.
    Forced,
}

/// Tokens read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TokenCounts {
    /// Tokens of prompts, with what was forced.
    pub prompt: usize,
    /// Tokens generated.
    pub generated: usize,
}

impl TokenCounts {
    /// So many tokens of prompts, and so many generated.
    pub fn new(prompt: usize, generated: usize) -> Self {
        Self { prompt, generated }
    }
}

impl AddAssign for TokenCounts {
    fn add_assign(&mut self, other: Self) {
        self.prompt += other.prompt;
        self.generated += other.generated;
    }
}
