//! The seam between ranking and models: implement [`ScoringBackend`] to plug in your own.
//!
//! A backend gets a [`Job`], one query with its documents, and hands a [`Completion`] or a
//! [`DocumentError`] per document to a [`Sink`], by index, in any order, as they finish. It says
//! nothing of integers or scores: reading the answer is this crate's work, the same for every
//! backend. Three kinds of implementor are in mind: a local model (`erank-candle`), a remote engine
//! behind an HTTP API, and a script for tests ([`testing`](crate::testing)).

use std::ops::{AddAssign, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use thiserror::Error;

use crate::answer::{AnswerDistribution, AnswerError};
use crate::prompt::BoundPrompt;
use crate::sampling::Sampling;

/// A source of completions: one model, called from any number of threads.
///
/// ```
/// use erank_core::backend::{BackendError, Completion, DocumentError, Job, Sink};
/// use erank_core::{Request, Reranker, ScoreKind, ScoringBackend};
///
/// /// Finds long documents relevant.
/// struct Length;
///
/// impl ScoringBackend for Length {
///     fn name(&self) -> &str {
///         "length"
///     }
///
///     fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
///         for (index, document) in job.documents.iter().enumerate() {
///             if job.stop.is_set() {
///                 sink.completed(index, Err(DocumentError::Stopped));
///                 continue;
///             }
///             let answer = document.len().min(10);
///             let text = format!("<think>it is long</think><answer>{answer}</answer>");
///             sink.completed(index, Ok(Completion::new(text)));
///         }
///         Ok(())
///     }
/// }
///
/// // Without log-probabilities, the integer is all that there is to rank by.
/// let reranker = Reranker::builder(Length).score(ScoreKind::Integer).build()?;
/// let ranking = reranker.rerank(&Request::new("q", ["short", "as long as it gets"]))?;
/// assert_eq!(ranking.documents[0].index, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait ScoringBackend: Send + Sync {
    /// A short name for logs and reports, such as the model's.
    fn name(&self) -> &str;

    /// Generates a completion for every document of `job`.
    ///
    /// Every index of `job.documents` reaches `sink` exactly once, or
    /// [`samples`](ScoringOptions::samples) times if several are asked for, unless an error is
    /// returned.
    /// [`Job::stop`] is looked at on every step of decoding or read of the network; once it is set,
    /// the documents still open are reported as [`DocumentError::Stopped`].
    ///
    /// # Errors
    /// [`BackendError`] when the job as a whole cannot go on. What went wrong with a single
    /// document goes to the sink and leaves the others alone.
    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError>;
}

/// Passes a trait's two calls on to what a pointer points to.
macro_rules! forward_to_inner {
    ($($pointer:ty),*) => {$(
        impl<B: ScoringBackend + ?Sized> ScoringBackend for $pointer {
            fn name(&self) -> &str {
                (**self).name()
            }

            fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
                (**self).score(job, sink)
            }
        }
    )*};
}
forward_to_inner!(&B, Box<B>, Arc<B>);

/// One query, its documents, and how to answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Job<'a> {
    /// The prompt but for the document: what all documents share.
    pub prompt: BoundPrompt<'a>,
    /// The documents' texts; results name them by index.
    pub documents: &'a [&'a str],
    /// How to answer, and the limits.
    pub options: ScoringOptions,
    /// Set, or past its deadline, when the caller wants no more.
    pub stop: Stop,
}

impl<'a> Job<'a> {
    /// A job with the default options, and a stop of its own.
    pub fn new(prompt: BoundPrompt<'a>, documents: &'a [&'a str]) -> Self {
        Self { prompt, documents, options: ScoringOptions::default(), stop: Stop::new() }
    }

    /// Says how to answer.
    #[must_use]
    pub fn with_options(mut self, options: ScoringOptions) -> Self {
        self.options = options;
        self
    }

    /// Gives the handle that ends the job.
    #[must_use]
    pub fn with_stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }
}

/// How to answer, and how much.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct ScoringOptions {
    /// Whether to think before answering.
    pub mode: Mode,
    /// How the tokens of the thought are chosen.
    pub sampling: Sampling,
    /// Completions wanted of every document, each [numbered](Completion::sample).
    pub samples: usize,
    /// The query is cut to this many tokens.
    pub max_query_tokens: usize,
    /// A document is cut to this many tokens.
    pub max_document_tokens: usize,
}

impl Default for ScoringOptions {
    /// Thinking within 4,096 tokens, greedily, once; query and document cut to 2,048 tokens each, as
    /// in ERank's own evaluation.
    fn default() -> Self {
        Self {
            mode: Mode::Reason { max_tokens: 4096 },
            sampling: Sampling::default(),
            samples: 1,
            max_query_tokens: 2048,
            max_document_tokens: 2048,
        }
    }
}

/// Whether the model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Mode {
    /// Think, then answer. When `max_tokens` are spent without an answer, the thought is closed
    /// and the answer forced ([`FinishReason::Forced`]): a well-formed prompt always gets one.
    Reason {
        /// Most tokens to generate for one document before the answer is forced.
        max_tokens: usize,
    },
    /// Answer at once, after an empty thought: one pass over the prompt, no decoding. The
    /// completion carries an [`AnswerDistribution`].
    AnswerOnly,
}

impl Mode {
    /// Whether the model thinks.
    pub fn is_reason(self) -> bool {
        matches!(self, Self::Reason { .. })
    }
}

/// Receives results as they finish.
pub trait Sink {
    /// Document `index` is done, or one of its samples.
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>);

    /// Work went on by `tokens` since the last call. Called between steps; may do nothing.
    fn advanced(&mut self, tokens: TokenCounts) {
        let _ = tokens;
    }
}

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
    pub answers: Option<AnswerDistribution>,
    /// Why generation ended.
    pub finish: FinishReason,
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
            answers: None,
            finish: FinishReason::EndOfText,
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
    EndOfText,
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

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Progress {
    /// Documents done, with or without an answer.
    pub documents_done: usize,
    /// Documents in all.
    pub documents: usize,
    /// Tokens so far, over all documents.
    pub tokens: TokenCounts,
}

/// Tells running work to end: by hand, from any thread, or at a deadline.
///
/// ```
/// use std::time::{Duration, Instant};
/// use erank_core::Stop;
///
/// let stop = Stop::at(Instant::now() + Duration::from_secs(60));
/// let one_of_several = stop.child();
/// one_of_several.stop();
/// assert!(one_of_several.is_set() && !stop.is_set());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Stop {
    stopped: Arc<AtomicBool>,
    deadline: Option<Instant>,
    parent: Option<Arc<Stop>>,
}

impl Stop {
    /// A handle that ends nothing until [`stop`](Self::stop) is called on it or a clone.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle that is also set from `deadline` on.
    pub fn at(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::default() }
    }

    /// A handle that is set when this one is, and can be set without it: for one of several pieces
    /// of work that end together.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { parent: Some(Arc::new(self.clone())), ..Self::default() }
    }

    /// Ends the work that this handle or a clone was given to.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether the work should end.
    pub fn is_set(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
            || self.parent.as_ref().is_some_and(|parent| parent.is_set())
    }
}

/// A cause from the backend's own world.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a job as a whole failed; the variants are what the caller can do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Nothing is wrong with the request: the same call may succeed later.
    #[error("the backend is unavailable for now; try again")]
    Unavailable(#[source] Cause),
    /// The backend cannot do what the options or the prompt ask for, now or later.
    #[error("the backend cannot serve this request; change the configuration")]
    Unsupported(#[source] Cause),
    /// A fault inside the backend.
    #[error("the backend failed; its cause says why")]
    Failed(#[source] Cause),
}

/// Why one document has no score. The others are not affected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The document is empty or blank: there is nothing to judge.
    #[error("the document is empty; leave it out or give its text")]
    Empty,
    /// Fusion needs a finite first-stage score that the document does not have.
    #[error(
        "the document has no finite first-stage score, which fusion needs; give one or fuse nothing"
    )]
    NoFirstStageScore,
    /// The prompt does not fit the model even after truncation.
    #[error("the prompt has {tokens} tokens, more than the {limit} that fit; lower the limits")]
    PromptTooLong {
        /// Tokens of the prompt with the room to answer.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// The model's text holds no usable answer.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The work was stopped before this document was done.
    #[error("stopped before the document was done; allow more time")]
    Stopped,
    /// The backend ended without a word on this document.
    #[error(
        "the backend returned without a result for the document; check it with testing::conformance"
    )]
    NotReported,
    /// The backend failed as a whole before it came to this document.
    #[error("not reached before the backend failed, whose own error says why")]
    NotReached,
    /// The backend failed on this document alone.
    #[error("the backend failed on the document; its cause says why")]
    Backend(#[source] Cause),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_trait_is_object_safe_and_implemented_for_pointers() {
        fn assert_backend<B: ScoringBackend + ?Sized>() {}
        assert_backend::<dyn ScoringBackend>();
        assert_backend::<&dyn ScoringBackend>();
        assert_backend::<Box<dyn ScoringBackend>>();
        assert_backend::<Arc<dyn ScoringBackend>>();
    }

    #[test]
    fn stop_is_seen_by_clones_and_at_the_deadline() {
        let stop = Stop::new();
        let clone = stop.clone();
        assert!(!clone.is_set());
        stop.stop();
        assert!(clone.is_set());
        assert!(Stop::at(Instant::now()).is_set());
        assert!(!Stop::at(Instant::now() + Duration::from_secs(600)).is_set());
    }

    #[test]
    fn a_child_stops_with_its_parent_but_not_the_other_way_round() {
        let parent = Stop::new();
        let (child, sibling) = (parent.child(), parent.child());
        child.stop();
        assert!(child.is_set() && !parent.is_set() && !sibling.is_set());
        parent.stop();
        assert!(sibling.is_set());
        assert!(Stop::at(Instant::now()).child().is_set());
    }
}
