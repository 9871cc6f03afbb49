//! Errors that several modules share, and the text of error chains and panics.

use std::any::Any;
use std::error::Error;

/// The reason that a completion has no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The text ended inside the reasoning.
    #[error("the model was still thinking when the text ended; raise the token budget")]
    ThoughtNotClosed,
    /// The text after the reasoning has no `<answer>`.
    #[error("the model wrote no <answer>; use a model that was trained to, such as ERank")]
    NoAnswer,
    /// The text ended inside the answer.
    #[error("the text ended inside the <answer>; raise the token budget")]
    CutOff,
    /// The answer is an integer that the format does not allow.
    #[error(
        "the model answered {found}, which is not among the allowed answers; ask for \
         them in the prompt"
    )]
    OutOfRange {
        /// The text of the answer, shortened.
        found: String,
    },
    /// The answer is neither an integer nor a label of the format.
    #[error(
        "the model answered {found:?} instead of one of the allowed answers; ask \
         for them in the prompt"
    )]
    NotAnAnswer {
        /// The text of the answer, shortened.
        found: String,
    },
    /// A log-probability is NaN or above zero, every answer is impossible, or the number of
    /// log-probabilities differs from the number of answers.
    #[error(
        "the backend returned invalid log-probabilities: each must be at most 0, with one for each \
         answer, and not all minus infinity; correct the backend"
    )]
    InvalidProbability,
    /// The chosen score, or the minimum score, needs a probability that the backend did not return.
    #[error(
        "the backend gave no {0}, which the chosen score or its minimum needs; rank by the integer, or \
         have the backend give it"
    )]
    NoProbability(&'static str),
}

/// Returns an error's message followed by the messages of all its sources, as `a: b: c`.
///
/// Leaves out the message of a source that the text already contains, because some libraries repeat
/// their source's message in their own.
///
/// ```
/// use erank_core::{BackendError, error};
///
/// let error = BackendError::Unavailable("connection reset".into());
/// assert_eq!(
///     error::chain(&error),
///     "the backend is unavailable for now; try again: connection reset"
/// );
/// ```
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for source in std::iter::successors(error.source(), |&source| source.source()) {
        let message = source.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
    }
    text
}

/// Returns the message of a panic, from the payload that
/// [`catch_unwind`](std::panic::catch_unwind) or [`join`](std::thread::JoinHandle::join) returned.
///
/// A payload that is neither `&str` nor `String` has the message `without a message`.
///
/// ```
/// let panic = std::panic::catch_unwind(|| panic!("out of {}", "tokens")).unwrap_err();
/// assert_eq!(erank_core::error::panic_message(&*panic), "out of tokens");
/// ```
pub fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error with a message and an optional source.
    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Link {
        message: &'static str,
        source: Option<Box<Link>>,
    }

    fn link(message: &'static str, source: Option<Link>) -> Link {
        Link { message, source: source.map(Box::new) }
    }

    #[test]
    fn chain_joins_all_sources() {
        let error = link("a", Some(link("b", Some(link("c", None)))));
        assert_eq!(chain(&error), "a: b: c");
        assert_eq!(chain(&link("a", None)), "a");
    }

    #[test]
    fn chain_omits_repeated_messages() {
        let error = link("reading failed: end of file", Some(link("end of file", None)));
        assert_eq!(chain(&error), "reading failed: end of file");
    }

    #[test]
    fn panic_message_handles_every_payload() {
        assert_eq!(panic_message(&"text"), "text");
        assert_eq!(panic_message(&String::from("text")), "text");
        assert_eq!(panic_message(&7), "without a message");
    }
}
