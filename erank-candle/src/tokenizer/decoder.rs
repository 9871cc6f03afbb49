//! Streaming decoder from token ids to text.

use std::sync::Arc;

use super::vocabulary::Vocabulary;

/// A streaming decoder from token ids to text.
///
/// The texts that [`push`](Self::push) and [`finish`](Self::finish) return form together the text
/// that decoding all ids at once returns, without special tokens. A character whose bytes are
/// spread over several tokens is returned with the last of them. Bytes that are not valid UTF-8
/// become U+FFFD. Added tokens that are not special, such as `<think>`, are part of the text.
///
/// A clone has the same state and continues independently. Cloning copies a few bytes.
#[derive(Clone)]
pub struct TokenDecoder {
    vocabulary: Arc<Vocabulary>,
    /// The first bytes of an incomplete character: at most three between calls.
    incomplete: Vec<u8>,
}

impl TokenDecoder {
    pub(super) fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self { vocabulary, incomplete: Vec::new() }
    }

    /// Decodes the next token and returns the text that it completes.
    ///
    /// The text is empty for special tokens, for ids outside the vocabulary, and for tokens that
    /// end within a character.
    pub fn push(&mut self, id: u32) -> String {
        // The supported decoders are checked when the file is loaded and do not fail afterwards.
        self.incomplete.extend(self.vocabulary.decode(id).unwrap_or_default());
        take_complete(&mut self.incomplete)
    }

    /// Ends the sequence. Returns U+FFFD if it ended within a character, and otherwise an empty text.
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

/// Removes the complete characters from `bytes` and returns them. An incomplete character at the end
/// stays in `bytes`. Invalid bytes become U+FFFD, as in [`String::from_utf8_lossy`].
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut kept = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        kept = chunk.invalid().len();
        // Invalid bytes before the end are wrong. At the end they may be an incomplete character.
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
