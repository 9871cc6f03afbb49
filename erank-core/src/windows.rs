//! Windows: overlapping parts of a long document that are scored one by one.

use std::ops::{Range, RangeInclusive};

use crate::options::{ConfigError, ScoringOptions};
use crate::request::is_blank;

/// Scores a long document by overlapping windows of its text. Without windows, a long document is truncated to
/// [`max_document_tokens`](ScoringOptions::max_document_tokens).
///
/// Each window is scored like a document of its own, with a prompt of its own. All prompts of a query begin with
/// the same text, which a backend with a prefix cache computes once. The budget of reasoning tokens applies to each
/// window. [`RankedDocument::windows`](crate::RankedDocument::windows) names the windows that the score comes from,
/// with their byte ranges. The answer, the reasoning and the samples are those of the best window, and the token
/// counts are sums over all windows.
///
/// - A document of at most [`tokens`](Self::tokens) tokens is one window, and its score has the same bits as without
///   windows.
/// - If a window has no score, the document has none, because the missing window might be the best one. The error
///   is [`DocumentError::Window`](crate::DocumentError::Window), or the window's own error if that is
///   [`Cancelled`](crate::DocumentError::Cancelled) or [`NotReached`](crate::DocumentError::NotReached).
/// - A document of more than [`max_windows`](Self::max_windows) windows is scored by its first ones, and
///   [`RankedDocument::truncated`](crate::RankedDocument::truncated) is true.
/// - In a [`Cascade`](crate::Cascade), the first pass scores all windows, and the second pass thinks only about
///   those that gave the first score: the best one, or the best `k`. [`Cascade::uncertain`](crate::Cascade::uncertain)
///   compares the answers for the best windows.
/// - [Blank](crate::Document::is_blank) windows are left out.
///
/// The backend counts the tokens ([`ScoringBackend::token_ends`](crate::ScoringBackend::token_ends)). In a cascade
/// with a [`FirstPass`](crate::FirstPass), it is the backend of the first pass.
///
/// ```
/// use erank_core::testing::{ScriptedBackend, answered};
/// use erank_core::{Request, Reranker, Windows};
///
/// // The tokens of this backend are words, and it has an answer for each of three windows.
/// let backend = ScriptedBackend::new([answered(2, 1.0), answered(9, 1.0), answered(4, 1.0)]);
/// let mut windows = Windows::with_tokens(5);
/// windows.overlap = 0;
/// let reranker = Reranker::builder(backend).windows(windows).build()?;
/// let text = "Bees live in hives. Honey is made from nectar. Wasps make paper nests.";
/// let ranking = reranker.rerank(&Request::new("what is honey made of", [text]))?;
/// let document = &ranking.documents[0];
/// assert_eq!(document.score, 9.0);
/// assert_eq!(text[document.windows[0].bytes.clone()], *"Honey is made from nectar.");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Windows {
    /// The maximum number of tokens of a window, at most
    /// [`max_document_tokens`](ScoringOptions::max_document_tokens). A window ends up to a quarter earlier if a
    /// sentence or a word ends there.
    pub tokens: usize,
    /// The number of tokens that a window shares with the one before it, at most half of [`tokens`](Self::tokens).
    /// A window begins up to an eighth of `tokens` earlier if a sentence or a word begins there. With 0, windows do
    /// not overlap.
    pub overlap: usize,
    /// The maximum number of windows of a document. It limits the work and the memory for a huge document.
    pub max_windows: usize,
    /// The way to compute a document's score from those of its windows.
    pub aggregation: Aggregation,
}

/// The way to compute a document's score from those of its windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Aggregation {
    /// The score of the best window (MaxP, Dai and Callan, SIGIR 2019). The first one wins a tie.
    #[default]
    Best,
    /// The mean score of this number of best windows, or of all windows if there are fewer.
    MeanOfBest(usize),
}

impl Windows {
    /// Returns windows of `tokens` tokens that overlap by an eighth, at most 32 for a document, with the score of
    /// the best one.
    pub fn with_tokens(tokens: usize) -> Self {
        let aggregation = Aggregation::default();
        Self { tokens, overlap: tokens / 8, max_windows: 32, aggregation }
    }

    /// Checks the numbers, and that windows fit the limit of `options`.
    ///
    /// # Errors
    /// Returns a [`ConfigError`] for the first invalid number.
    pub(crate) fn check(&self, options: &ScoringOptions) -> Result<(), ConfigError> {
        let numbers = [
            ("the number of tokens of a window", self.tokens),
            ("max_windows", self.max_windows),
            ("the number of best windows", self.aggregation.count()),
        ];
        if let Some((name, _)) = numbers.into_iter().find(|(_, number)| *number == 0) {
            return Err(ConfigError::Zero(name));
        }
        let (tokens, overlap, limit) = (self.tokens, self.overlap, options.max_document_tokens);
        if overlap > tokens / 2 {
            return Err(ConfigError::WindowOverlap { overlap, tokens });
        }
        if tokens > limit {
            return Err(ConfigError::WindowTokens { tokens, limit });
        }
        Ok(())
    }

    /// Splits `text` into windows. `token_ends` returns the ends of the first tokens of a text, at most as many as
    /// its second argument says ([`ScoringBackend::token_ends`](crate::ScoringBackend::token_ends)).
    ///
    /// A text of at most [`tokens`](Self::tokens) tokens is one window. Each window is measured from its own
    /// beginning, because the backend will tokenize it alone.
    ///
    /// # Errors
    /// Returns the errors of `token_ends`.
    pub(crate) fn split<E>(
        &self,
        text: &str,
        mut token_ends: impl FnMut(&str, usize) -> Result<Vec<usize>, E>,
    ) -> Result<Split, E> {
        let mut windows = Vec::new();
        let (mut start, mut covered) = (0, 0);
        while windows.len() < self.max_windows {
            let rest = &text[start..];
            let Some(ends) = self.first_tokens(rest, &mut token_ends)? else {
                windows.push(start..text.len());
                return Ok(Split { windows, is_complete: true });
            };
            // Even if a character has more tokens than a window, the window has the character.
            let one_char = rest.chars().next().map_or(0, char::len_utf8);
            let end = self.window_end(rest, &ends).max(one_char);
            if start + end <= covered {
                // Characters of many tokens fill the window with text of the one before it.
                start = covered;
                continue;
            }
            covered = start + end;
            windows.push(start..covered);
            if covered == text.len() {
                return Ok(Split { windows, is_complete: true });
            }
            start += self.next_start(rest, &ends, end).clamp(one_char, end);
        }
        Ok(Split { windows, is_complete: false })
    }

    /// Returns the ends of the first [`tokens`](Self::tokens) tokens of `text`, or `None` if it has no more tokens.
    ///
    /// Reads only a part of a long text. The part has more tokens than a window, so that its end does not matter.
    fn first_tokens<E>(
        &self,
        text: &str,
        token_ends: &mut impl FnMut(&str, usize) -> Result<Vec<usize>, E>,
    ) -> Result<Option<Vec<usize>>, E> {
        /// An estimate of the bytes in a token. Most texts have fewer.
        const TOKEN_BYTES: usize = 8;
        let count = self.tokens.saturating_add(1);
        let mut size = count.saturating_mul(TOKEN_BYTES);
        loop {
            let part = &text[..text.floor_char_boundary(size)];
            let mut ends = token_ends(part, count)?;
            if ends.len() > self.tokens {
                ends.truncate(self.tokens);
                // A faulty backend may return any numbers.
                ends.iter_mut().for_each(|end| *end = part.floor_char_boundary(*end));
                return Ok(Some(ends));
            }
            if part.len() == text.len() {
                return Ok(None);
            }
            size = size.saturating_mul(2);
        }
    }

    /// Returns the end of the window at the beginning of `text`, whose tokens end at `ends`.
    fn window_end(&self, text: &str, ends: &[usize]) -> usize {
        let last = ends.len() - 1;
        let (earliest, latest) = (ends[last - self.tokens / 4], ends[last]);
        border(text, earliest..=latest).unwrap_or(latest)
    }

    /// Returns the start of the window after the one that ends at `end`.
    fn next_start(&self, text: &str, ends: &[usize], end: usize) -> usize {
        if self.overlap == 0 {
            return end;
        }
        let tokens = ends.partition_point(|token_end| *token_end <= end);
        let start_of = |token: usize| token.checked_sub(1).map_or(0, |before| ends[before]);
        let token = tokens.saturating_sub(self.overlap);
        let (earliest, latest) = (start_of(token.saturating_sub(self.tokens / 8)), start_of(token));
        // The white space before a word is mostly a part of its token.
        let shared = text.get(latest..end).unwrap_or_default();
        let latest = latest + shared.len() - shared.trim_ascii_start().len();
        border(text, earliest..=latest).unwrap_or(latest)
    }
}

impl Default for Windows {
    /// Returns windows of 2,048 tokens, which is the default of
    /// [`max_document_tokens`](ScoringOptions::max_document_tokens), with an overlap of 256 tokens, at most 32 for a
    /// document, and the score of the best one. 32 such windows cover at most 57,600 tokens.
    fn default() -> Self {
        Self::with_tokens(ScoringOptions::default().max_document_tokens)
    }
}

impl Aggregation {
    /// Returns the maximum number of windows that the score comes from.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Best => 1,
            Self::MeanOfBest(count) => count,
        }
    }
}

/// A text split into windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split {
    /// The windows' byte ranges, in the order of the text. There is at least one.
    pub(crate) windows: Vec<Range<usize>>,
    /// Whether the windows reach the end of the text.
    pub(crate) is_complete: bool,
}

impl Split {
    /// Returns the whole text as one window.
    pub(crate) fn whole(text: &str) -> Self {
        Self { windows: std::iter::once(0..text.len()).collect(), is_complete: true }
    }

    /// Removes the [blank](crate::Document::is_blank) windows of `text`. Keeps the first one if all are blank.
    pub(crate) fn without_blank(mut self, text: &str) -> Self {
        let first = self.windows.first().cloned();
        self.windows.retain(|bytes| !is_blank(&text[bytes.clone()]));
        if self.windows.is_empty() {
            self.windows.extend(first);
        }
        self
    }
}

/// Returns the last end of a sentence of `text` in `range`, or else the last border of a word. Both may be before or
/// after white space.
fn border(text: &str, range: RangeInclusive<usize>) -> Option<usize> {
    let mut of_word = None;
    for position in range.rev().filter(|position| text.is_char_boundary(*position)) {
        let (before, after) = text.split_at(position);
        let is_after_space = before.ends_with(|last: char| last.is_ascii_whitespace());
        let is_before_space = after.starts_with(|first: char| first.is_ascii_whitespace());
        if (is_after_space && is_before_space) || after.starts_with(is_closer) {
            continue;
        }
        if is_sentence_border(before, after, is_after_space || is_before_space) {
            return Some(position);
        }
        if is_after_space || is_before_space {
            of_word.get_or_insert(position);
        }
    }
    of_word
}

/// Returns whether a sentence, a line or a paragraph ends between two parts of a text. `is_spaced` says whether there
/// is white space between them.
fn is_sentence_border(before: &str, after: &str, is_spaced: bool) -> bool {
    let trimmed = before.trim_end_matches(|last: char| last.is_ascii_whitespace());
    let sentence = trimmed.trim_end_matches(is_closer);
    // Chinese and Japanese have no spaces between sentences.
    sentence.ends_with(['。', '！', '？'])
        || (is_spaced && sentence.ends_with(['.', '!', '?', '…', '।', '؟', '۔']))
        || before[trimmed.len()..].contains('\n')
        || after.starts_with(['\n', '\r'])
}

/// Returns whether a character can follow the end of a sentence and belong to it.
fn is_closer(character: char) -> bool {
    matches!(character, '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '»' | '」' | '』' | '）')
}

#[cfg(test)]
mod tests;
