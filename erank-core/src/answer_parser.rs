//! The parser that reads an [`Answer`] from a [`Completion`].
//!
//! ERank writes `<think>…</think><answer>N</answer>`. The parser needs no tokenizer, because the completion
//! gives each token's byte range. So the way in which a tokenizer splits an integer or a tag does not matter.
//!
//! The reasoning may quote its document, tags included. If the backend knows the token that ended the
//! reasoning, it sets [`Completion::thought_end`], and the parser ignores every tag before that byte.
//!
//! A [bare](AnswerFormat::bare) label is the whole text, without reasoning and tags.

use std::ops::Range;

use crate::answer::{Answer, AnswerProbability};
use crate::answer_format::AnswerFormat;
use crate::completion::{Completion, GeneratedToken};
use crate::distribution::{AnswerDistribution, check_log_prob};
use crate::error::AnswerError;
use crate::tags::{
    ANSWER_CLOSE, ANSWER_ONLY_PREFIX, ANSWER_OPEN, FORCED_ANSWER_PREFIX, THINK_CLOSE, THINK_OPEN,
};

impl AnswerFormat {
    /// Returns the text that begins the assistant's turn in answer-only mode: [`ANSWER_ONLY_PREFIX`], or
    /// nothing before a bare label. The next token is the answer's first.
    pub fn answer_only_prefix(&self) -> &'static str {
        if self.is_bare() { "" } else { ANSWER_ONLY_PREFIX }
    }

    /// Returns the text that follows the label in a complete answer: [`ANSWER_CLOSE`], or nothing after a
    /// bare label.
    pub fn answer_suffix(&self) -> &'static str {
        if self.is_bare() { "" } else { ANSWER_CLOSE }
    }

    /// Returns the text to append to `text` when the token budget is spent, so that the next token is
    /// the answer's first. It closes the reasoning if that is open, and opens the answer if that is not open.
    /// A bare label needs no such text.
    ///
    /// `text` is the assistant's turn. A backend that knows the
    /// [end of the reasoning](Completion::thought_end) passes only the text after that byte.
    pub fn forced_answer_prefix(&self, text: &str) -> &'static str {
        if self.is_bare() {
            ""
        } else if is_thinking(text) {
            FORCED_ANSWER_PREFIX
        } else if text.trim_end().ends_with(ANSWER_OPEN) {
            ""
        } else {
            ANSWER_OPEN
        }
    }

    /// Returns whether `text` contains a complete answer, so that generation can end.
    ///
    /// `text` is the assistant's turn. A backend that knows the
    /// [end of the reasoning](Completion::thought_end) passes only the text after that byte.
    pub fn is_answered(&self, text: &str) -> bool {
        if self.is_bare() {
            return self.index_of(text.trim()).is_some();
        }
        !is_thinking(text) && last_complete_answer(text, reasoning_end(text)).is_some()
    }

    /// Parses the answer of a completion.
    ///
    /// The answer is the last complete `<answer>N<` after the reasoning. The first character of the
    /// closing tag suffices, so a backend may stop there. A bare label is the whole text. White space around the
    /// answer is ignored.
    ///
    /// # Errors
    /// Returns an [`AnswerError`] if the text has no answer of this format, or if a log-probability is
    /// invalid.
    pub fn parse(
        &self,
        completion: &Completion,
        probability: AnswerProbability,
    ) -> Result<Answer, AnswerError> {
        let text = completion.text.as_str();
        let (reasoning, label) = match self.is_bare() {
            true => ("", trimmed(text, 0..text.len())),
            false => tagged_label(text, completion.thought_end)?,
        };
        let found = &text[label.clone()];
        let index = self.index_of(found).ok_or_else(|| unknown_answer(found))?;

        let distribution = completion.answer_distribution.as_ref();
        if distribution.is_some_and(|given| given.log_probs().len() != self.answers().len()) {
            return Err(AnswerError::InvalidProbability);
        }
        let probability = match (probability, distribution) {
            (AnswerProbability::Joint, Some(given)) if !given.is_bound(index) => {
                Some(given.probability(index))
            }
            _ => tokens_probability(&completion.tokens, &label, probability)?,
        };
        Ok(Answer {
            integer: self.value(index),
            probability,
            expected_value: distribution.map(|given| given.expected_value(self)),
            variance: distribution.map(|given| given.variance(self)),
            entropy: distribution.map(AnswerDistribution::entropy),
            distribution: distribution.cloned(),
            reasoning: reasoning.to_owned(),
        })
    }
}

/// Returns the reasoning, and the byte range of the label between tags.
fn tagged_label(
    text: &str,
    thought_end: Option<usize>,
) -> Result<(&str, Range<usize>), AnswerError> {
    // Ignores `thought_end` if it is not a char boundary of the text.
    let thought_end = thought_end.filter(|end| text.is_char_boundary(*end));
    let known_end = thought_end.unwrap_or(0);
    if is_thinking(&text[known_end..]) {
        return Err(AnswerError::ThoughtNotClosed);
    }
    let body = known_end + reasoning_end(&text[known_end..]);
    let label = last_complete_answer(text, body).ok_or({
        if text[body..].contains(ANSWER_OPEN) { AnswerError::CutOff } else { AnswerError::NoAnswer }
    })?;
    Ok((reasoning(text, thought_end), label))
}

/// Returns the error for an answer that is not a label of the format.
fn unknown_answer(found: &str) -> AnswerError {
    let is_integer = found.parse::<i128>().is_ok();
    let found = shortened(found);
    if is_integer { AnswerError::OutOfRange { found } } else { AnswerError::NotAnAnswer { found } }
}

/// Returns whether `text` begins with reasoning that is not closed.
fn is_thinking(text: &str) -> bool {
    text.trim_start().starts_with(THINK_OPEN) && !text.contains(THINK_CLOSE)
}

/// Returns the index of the byte after the first tag that closes the reasoning, or 0 if there is no such tag.
fn reasoning_end(text: &str) -> usize {
    text.find(THINK_CLOSE).map_or(0, |start| start + THINK_CLOSE.len())
}

/// Returns the byte range, without outer white space, of the last answer after `body` that is followed
/// by `<`.
fn last_complete_answer(text: &str, body: usize) -> Option<Range<usize>> {
    text[body..].rmatch_indices(ANSWER_OPEN).find_map(|(open, tag)| {
        let start = body + open + tag.len();
        let length = text[start..].find('<')?;
        Some(trimmed(text, start..start + length))
    })
}

/// Returns `range` without outer white space.
fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let inner = &text[range.clone()];
    let start = range.start + (inner.len() - inner.trim_start().len());
    start..start + inner.trim().len()
}

/// Returns the model's reasoning, without its tags.
fn reasoning(text: &str, thought_end: Option<usize>) -> &str {
    let end = thought_end.unwrap_or_else(|| {
        text.find(THINK_CLOSE).or_else(|| text.find(ANSWER_OPEN)).unwrap_or(text.len())
    });
    let reasoning = text[..end].trim();
    let reasoning = reasoning.strip_suffix(THINK_CLOSE).unwrap_or(reasoning);
    reasoning.strip_prefix(THINK_OPEN).unwrap_or(reasoning).trim()
}

/// Returns the probability of the tokens that overlap the bytes of `label`. Returns `None` if no token does.
fn tokens_probability(
    tokens: &[GeneratedToken],
    label: &Range<usize>,
    probability: AnswerProbability,
) -> Result<Option<f64>, AnswerError> {
    let mut log_probs = tokens
        .iter()
        .filter(|token| token.bytes.start < label.end && label.start < token.bytes.end)
        .map(|token| f64::from(token.log_prob))
        .peekable();
    if log_probs.peek().is_none() {
        return Ok(None);
    }
    let log_prob: f64 = match probability {
        AnswerProbability::Joint => log_probs.sum(),
        AnswerProbability::FirstToken => log_probs.take(1).sum(),
    };
    check_log_prob(log_prob).map(|log_prob| Some(log_prob.exp()))
}

/// Returns at most the first 40 characters, so that an error message stays readable.
fn shortened(found: &str) -> String {
    const MAX_CHARS: usize = 40;
    match found.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &found[..end]),
        None => found.to_owned(),
    }
}

#[cfg(test)]
mod tests;
