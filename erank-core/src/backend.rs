//! The seam between ranking and models: implement [`ScoringBackend`] to plug in your own.
//!
//! A backend gets a [`Job`], one query with its documents, and hands a [`Completion`] or a
//! [`DocumentError`] per document to a [`Sink`], by index, in any order, as they finish. It says
//! nothing of integers or scores: reading the answer is this crate's work, the same for every
//! backend. Three kinds of implementor are in mind: a local model (`erank-candle`), a remote engine
//! behind an HTTP API, and a script for tests ([`testing`](crate::testing)).

use std::sync::Arc;

use thiserror::Error;

use crate::answer::AnswerError;
use crate::cancellation::CancellationToken;
use crate::completion::{Completion, TokenCounts};
use crate::options::ScoringOptions;
use crate::prompt::BoundPrompt;

/// A source of completions: one model, called from any number of threads.
///
/// ```
/// use erank_core::{BackendError, Completion, DocumentError, Job, Sink};
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
///             if job.cancellation.is_cancelled() {
///                 sink.completed(index, Err(DocumentError::Cancelled));
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
    /// [`Job::cancellation`] is looked at on every step of decoding or read of the network; once it is set,
    /// the documents still open are reported as [`DocumentError::Cancelled`].
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
    pub cancellation: CancellationToken,
}

impl<'a> Job<'a> {
    /// A job with the default options, and a stop of its own.
    pub fn new(prompt: BoundPrompt<'a>, documents: &'a [&'a str]) -> Self {
        Self {
            prompt,
            documents,
            options: ScoringOptions::default(),
            cancellation: CancellationToken::new(),
        }
    }

    /// Says how to answer.
    #[must_use]
    pub fn with_options(mut self, options: ScoringOptions) -> Self {
        self.options = options;
        self
    }

    /// Gives the handle that ends the job.
    #[must_use]
    pub fn with_cancellation(mut self, cancellation: CancellationToken) -> Self {
        self.cancellation = cancellation;
        self
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
    Cancelled,
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

    #[test]
    fn the_trait_is_object_safe_and_implemented_for_pointers() {
        fn assert_backend<B: ScoringBackend + ?Sized>() {}
        assert_backend::<dyn ScoringBackend>();
        assert_backend::<&dyn ScoringBackend>();
        assert_backend::<Box<dyn ScoringBackend>>();
        assert_backend::<Arc<dyn ScoringBackend>>();
    }
}
