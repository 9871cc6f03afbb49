//! The tags that enclose a model's reasoning and its answer.
//!
//! ERank writes `<think>…</think><answer>N</answer>`. Backends, tests and commands take the tags from
//! here, so that each text is defined once.

/// Expands to the literal of a tag, so that `concat!` can join tags.
macro_rules! tag {
    (think_open) => {
        "<think>"
    };
    (think_close) => {
        "</think>"
    };
    (answer_open) => {
        "<answer>"
    };
    (answer_close) => {
        "</answer>"
    };
}

/// Opens the reasoning.
pub const THINK_OPEN: &str = tag!(think_open);
/// Closes the reasoning.
pub const THINK_CLOSE: &str = tag!(think_close);
/// Opens the answer.
pub const ANSWER_OPEN: &str = tag!(answer_open);
/// Closes the answer.
pub const ANSWER_CLOSE: &str = tag!(answer_close);

/// Begins the assistant's turn in answer-only mode: empty reasoning, as Qwen3's chat template writes
/// it without thinking, and the tag that opens the answer.
pub const ANSWER_ONLY_PREFIX: &str =
    concat!(tag!(think_open), "\n\n", tag!(think_close), "\n\n", tag!(answer_open));

/// Closes the reasoning and opens the answer. It is the longest text that
/// [`AnswerFormat::forced_answer_prefix`](crate::AnswerFormat::forced_answer_prefix) returns.
pub const FORCED_ANSWER_PREFIX: &str = concat!(tag!(think_close), tag!(answer_open));
