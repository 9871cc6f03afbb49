//! The interface to a tokenizer on the client side.

use erank_core::prompt::BoundPrompt;
use erank_core::{Cause, ScoringOptions};

/// The model's tokenizer and chat template on the client side, for
/// [`PromptFormat::TokenIds`](crate::PromptFormat::TokenIds).
///
/// An implementation on the tokenizer of `erank-candle` takes a few lines. `tests/remote/main.rs` in the
/// workspace has one.
pub trait ClientTokenizer: Send + Sync {
    /// Returns the prompt for `document`, chat template included, with query and document truncated to
    /// the token limits of `options`. Control tokens inside the query and the document must be encoded
    /// as plain text.
    ///
    /// # Errors
    /// Any error leaves this document without a score.
    fn encode(
        &self,
        prompt: &BoundPrompt<'_>,
        document: &str,
        options: &ScoringOptions,
    ) -> Result<TokenizedPrompt, Cause>;

    /// Returns the ends of the first `max_tokens` tokens of a document, as
    /// [`ScoringBackend::token_ends`](erank_core::ScoringBackend::token_ends) specifies. Only
    /// [`Windows`](erank_core::Windows) call it.
    ///
    /// # Errors
    /// Any error leaves this document without a score.
    fn token_ends(&self, document: &str, max_tokens: usize) -> Result<Vec<usize>, Cause>;

    /// Returns the ids of text in the assistant turn, such as `</think><answer>`. Control tokens in the text
    /// count as such.
    ///
    /// # Errors
    /// Any error leaves the current document without a score.
    fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, Cause>;

    /// Returns the text of generated ids. A token that ends the turn has no text.
    fn decode(&self, ids: &[u32]) -> String;
}

/// A prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TokenizedPrompt {
    /// The token ids.
    pub ids: Vec<u32>,
    /// Whether the chat template ends the prompt with `<think>`.
    pub opens_thought: bool,
    /// Whether the query was truncated to its limit.
    pub query_truncated: bool,
    /// Whether the document was truncated to its limit.
    pub document_truncated: bool,
}

impl TokenizedPrompt {
    /// Creates a prompt that is not truncated and opens no thought. Set the other fields if they differ.
    pub fn new(ids: Vec<u32>) -> Self {
        Self { ids, ..Self::default() }
    }
}
