//! Generated ids to text, one by one.

use std::sync::Arc;

use super::vocabulary::Vocabulary;

/// Decodes a sequence of ids as they come.
///
/// The texts of all [`push`](Self::push)es and of [`finish`](Self::finish) together are what
/// decoding all ids at once gives, special tokens skipped: a character whose bytes are spread over
/// several tokens comes with the last of them, and bytes that are no UTF-8 become U+FFFD. Added
/// tokens that are not special, such as `<think>`, are text.
///
/// A clone goes on from the same state on its own; it costs a few bytes.
#[derive(Clone)]
pub struct TokenDecoder {
    vocabulary: Arc<Vocabulary>,
    /// The beginning of a character that is not complete: at most three bytes between calls.
    incomplete: Vec<u8>,
}

impl TokenDecoder {
    pub(super) fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self { vocabulary, incomplete: Vec::new() }
    }

    /// The text that this token completes. Empty for special tokens, for ids that are not in the
    /// vocabulary, and for a token that only begins a character.
    pub fn push(&mut self, id: u32) -> String {
        // A decoder can only fail to load: what is applied here has no failing case.
        self.incomplete.extend(self.vocabulary.decode(id).unwrap_or_default());
        take_complete(&mut self.incomplete)
    }

    /// Ends the sequence: U+FFFD if it ended within a character, else nothing.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.incomplete).into_owned();
        self.incomplete.clear();
        text
    }
}

impl std::fmt::Debug for TokenDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenDecoder").field("incomplete", &self.incomplete).finish_non_exhaustive()
    }
}

/// Takes the text out of `bytes`, up to a character that more bytes could complete. What is not
/// UTF-8 becomes U+FFFD as in [`String::from_utf8_lossy`].
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut kept = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        kept = chunk.invalid().len();
        // Only at the end can bytes be incomplete rather than wrong.
        if kept > 0 {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    let incomplete = kept > 0
        && str::from_utf8(&bytes[bytes.len() - kept..])
            .is_err_and(|error| error.error_len().is_none());
    if incomplete {
        text.pop();
        bytes.drain(..bytes.len() - kept);
    } else {
        bytes.clear();
    }
    text
}
