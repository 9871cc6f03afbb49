//! The interface between ranking and models. Implement [`ScoringBackend`] to add a backend.
//!
//! A backend receives a [`Job`], one query with its documents. It passes each result, a [`Completion`] or a
//! [`DocumentError`], to a [`Sink`], with the document's index, as soon as it is ready. The order does not
//! matter. A backend returns text and log-probabilities; this crate parses answers and computes scores, in
//! the same way for every backend. The trait is made for three kinds of backends: a local model
//! (`erank-candle`), a remote engine with an HTTP API (`erank-openai`), and a script for tests
//! ([`testing`](crate::testing)).

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

use crate::cancellation::CancellationToken;
use crate::completion::{Completion, TokenCounts};
use crate::error::AnswerError;
use crate::options::{Mode, ScoringOptions};
use crate::prompt::BoundPrompt;

/// A model that generates completions. Any number of threads may call it at the same time.
///
/// ```
/// use erank_core::{BackendError, Completion, DocumentError, Job, Sink};
/// use erank_core::{Request, Reranker, ScoreKind, ScoringBackend};
///
/// /// Rates a document by its length.
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
/// // Without log-probabilities, only the integer is available for ranking.
/// let reranker = Reranker::builder(Length).score(ScoreKind::Integer).build()?;
/// let ranking = reranker.rerank(&Request::new("q", ["short", "as long as it gets"]))?;
/// assert_eq!(ranking.documents[0].index, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait ScoringBackend: Send + Sync {
    /// Returns a short name for logs and reports, such as the model's name.
    fn name(&self) -> &str;

    /// Generates a completion for every document of `job`.
    ///
    /// Reports every index of `job.documents` to `sink` exactly once for each of the
    /// [`samples`](ScoringOptions::samples), unless it returns an error. Checks [`Job::cancellation`] at
    /// every decoding step or network read. Once the job is cancelled, reports the remaining documents
    /// as [`DocumentError::Cancelled`] and returns `Ok`.
    ///
    /// # Errors
    /// Returns a [`BackendError`] if the job as a whole cannot continue. An error of a single document
    /// goes to the sink and does not affect the other documents.
    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError>;

    /// Returns the ends of the first `max_tokens` tokens of `text`, as byte offsets in ascending order. Only
    /// [`Windows`](crate::Windows) need this method.
    ///
    /// The text is tokenized alone and as data, as a document is for
    /// [`max_document_tokens`](ScoringOptions::max_document_tokens). Each end is a character boundary: a token that
    /// ends within a character ends before it. If the text has fewer than `max_tokens` tokens, the last end is the
    /// length of the text. A backend without a tokenizer may estimate, if it truncates documents by the same
    /// estimate. A backend that wraps another one passes the call on.
    ///
    /// # Errors
    /// Returns [`BackendError::Unsupported`] if the backend cannot count tokens, as the default does. Returns
    /// [`BackendError::Failed`] if it cannot tokenize this text; then only this document has no score.
    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        let _ = (text, max_tokens);
        let problem = format!(
            "the backend {:?} does not count tokens, which windows need; implement \
             ScoringBackend::token_ends, or remove the windows",
            self.name()
        );
        Err(BackendError::Unsupported(problem.into()))
    }
}

/// Implements [`ScoringBackend`] for a pointer by calling the backend that it points to.
macro_rules! impl_for_pointers {
    ($($pointer:ty),*) => {$(
        impl<B: ScoringBackend + ?Sized> ScoringBackend for $pointer {
            fn name(&self) -> &str {
                (**self).name()
            }

            fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
                (**self).score(job, sink)
            }

            fn token_ends(
                &self,
                text: &str,
                max_tokens: usize,
            ) -> Result<Vec<usize>, BackendError> {
                (**self).token_ends(text, max_tokens)
            }
        }
    )*};
}
impl_for_pointers!(&B, Box<B>, Arc<B>);

/// One query with its documents and options.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Job<'a> {
    /// The prompt without the document, which all documents share. It is either a user message for the model's
    /// chat template or a [whole](BoundPrompt::is_whole) prompt.
    pub prompt: BoundPrompt<'a>,
    /// The documents' texts. Results refer to them by index.
    pub documents: &'a [&'a str],
    /// The mode, sampling settings and limits.
    pub options: ScoringOptions,
    /// Cancelled when the caller no longer needs the results.
    pub cancellation: CancellationToken,
}

impl<'a> Job<'a> {
    /// Creates a job with the default options and a new cancellation token.
    pub fn new(prompt: BoundPrompt<'a>, documents: &'a [&'a str]) -> Self {
        let (options, cancellation) = (ScoringOptions::default(), CancellationToken::new());
        Self { prompt, documents, options, cancellation }.with_options(options)
    }

    /// Sets the options. A prompt with a [bare](crate::AnswerFormat::bare) answer sets the mode
    /// [`AnswerOnly`](Mode::AnswerOnly).
    #[must_use]
    pub fn with_options(mut self, options: ScoringOptions) -> Self {
        self.options = options;
        if self.prompt.answers().is_bare() {
            self.options.mode = Mode::AnswerOnly;
        }
        self
    }

    /// Sets the token that cancels the job.
    #[must_use]
    pub fn with_cancellation(mut self, cancellation: CancellationToken) -> Self {
        self.cancellation = cancellation;
        self
    }
}

/// A receiver of results, which gets each as soon as it is available.
pub trait Sink {
    /// Receives the outcome of document `index`, or of one of its samples.
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>);

    /// Receives the number of tokens processed since the last call, for progress reports. The default
    /// does nothing.
    fn tokens_processed(&mut self, tokens: TokenCounts) {
        let _ = tokens;
    }

    /// Returns whether [`text_generated`](Self::text_generated) does anything. A backend may ask once for each job, and
    /// then leaves out work for each token. A sink that wraps another one passes the call on. The default is `false`.
    fn wants_text(&self) -> bool {
        false
    }

    /// Receives the next piece of the text of a document's sample, while it is generated. The pieces, joined, are a
    /// beginning of [`Completion::text`]. A backend need not call this method. The default does nothing.
    fn text_generated(&mut self, index: usize, sample: usize, piece: &str) {
        let _ = (index, sample, piece);
    }
}

/// The error of a backend or of a library that it uses.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The reason that a job as a whole failed. Each variant calls for another reaction of the caller.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend is temporarily unavailable. The same call may succeed later.
    #[error("the backend is unavailable for now; try again")]
    Unavailable(#[source] Cause),
    /// The backend does not support the options or the prompt.
    #[error("the backend cannot serve this request; change the configuration")]
    Unsupported(#[source] Cause),
    /// The backend has an internal fault.
    #[error("the backend failed; see the cause")]
    Failed(#[source] Cause),
}

/// The reason that one document has no score. Other documents are not affected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The document has nothing to judge ([`Document::is_blank`](crate::Document::is_blank)).
    #[error("the document is empty; leave it out or give its text")]
    Empty,
    /// The document has no finite first-stage score, which fusion needs.
    #[error(
        "the document has no finite first-stage score, which fusion needs; give one or disable fusion"
    )]
    NoFirstStageScore,
    /// The prompt does not fit the model even after truncation.
    #[error("the prompt has {tokens} tokens, more than the {limit} that fit; lower the limits")]
    PromptTooLong {
        /// The number of tokens of the prompt and of the longest answer.
        tokens: usize,
        /// The number of tokens that fit.
        limit: usize,
    },
    /// The model's text has no usable answer.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The job was cancelled before this document was finished.
    #[error("cancelled before the document was finished; allow more time")]
    Cancelled,
    /// The backend returned `Ok` without reporting this document.
    #[error(
        "the backend returned without a result for the document; check it with testing::conformance"
    )]
    NotReported,
    /// The backend failed as a whole before it reported this document.
    #[error("the backend failed before it reached the document; see the backend's error")]
    NotReached,
    /// The backend failed on this document alone.
    #[error("the backend failed on the document; see the cause")]
    Backend(#[source] Cause),
    /// One of the document's [`Windows`](crate::Windows) has no score, or lacks samples.
    #[error("the window from byte {} to byte {} failed", bytes.start, bytes.end)]
    Window {
        /// The window's byte range in the document's text.
        bytes: Range<usize>,
        /// The error of the window, the first one in the order of the text.
        source: Box<DocumentError>,
    },
}

impl DocumentError {
    /// Returns the error of the window if this is a [`Window`](Self::Window), and otherwise the error itself.
    pub fn without_window(&self) -> &Self {
        match self {
            Self::Window { source, .. } => source.without_window(),
            error => error,
        }
    }

    /// Returns the error of a document of several windows, of which the one at `bytes` has this error.
    pub(crate) fn in_window(self, bytes: &Range<usize>) -> Self {
        match self {
            // The window is not at fault.
            Self::Cancelled | Self::NotReached => self,
            error => Self::Window { bytes: bytes.clone(), source: Box::new(error) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scoring_backend_is_object_safe_and_implemented_for_pointers() {
        fn assert_backend<B: ScoringBackend + ?Sized>() {}
        assert_backend::<dyn ScoringBackend>();
        assert_backend::<&dyn ScoringBackend>();
        assert_backend::<Box<dyn ScoringBackend>>();
        assert_backend::<Arc<dyn ScoringBackend>>();
    }
}
