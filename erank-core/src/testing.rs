//! For tests (feature `testing`): a backend that answers from a script, for code that uses a reranker,
//! and [`conformance`], for backends.

pub mod conformance;

use crate::backend::{BackendError, DocumentError, Job, ScoringBackend, Sink};
use crate::completion::{Completion, FinishReason, TokenCounts};

/// Answers document `i` of every job with the `i`-th completion of its script; of `k` samples, the
/// document's are those from `i·k`.
///
/// ```
/// use erank_core::testing::{ScriptedBackend, answered};
/// use erank_core::{Request, Reranker};
///
/// let backend = ScriptedBackend::new([answered(3, 0.9), answered(8, 0.7)]);
/// let ranking = Reranker::builder(backend).build()?.rerank(&Request::new("q", ["a", "b"]))?;
/// assert_eq!(ranking.documents[0].index, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ScriptedBackend {
    script: Vec<Completion>,
}

impl ScriptedBackend {
    /// From whole completions.
    pub fn new(script: impl IntoIterator<Item = Completion>) -> Self {
        Self { script: script.into_iter().collect() }
    }

    /// From texts, each generated as one token of probability 1.
    pub fn texts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::new(texts.into_iter().map(|text| {
            let mut completion = Completion::new("");
            completion.push(text.as_ref(), 0.0);
            completion
        }))
    }
}

/// A completion that thinks nothing and answers `integer`, one token of this probability.
pub fn answered(integer: u32, probability: f32) -> Completion {
    let mut completion = Completion::new("<think>\n\n</think>\n\n<answer>");
    completion.push(&integer.to_string(), probability.ln());
    completion.push("</answer>", 0.0);
    completion.finish_reason = FinishReason::Answered;
    completion
}

impl ScoringBackend for ScriptedBackend {
    fn name(&self) -> &str {
        "scripted"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let samples = job.options.samples.max(1);
        for place in 0..job.documents.len() * samples {
            let outcome = if job.cancellation.is_cancelled() {
                Err(DocumentError::Cancelled)
            } else {
                let beyond = || DocumentError::Backend("beyond the end of the script".into());
                let numbered = |completion: &Completion| Completion {
                    sample: place % samples,
                    ..completion.clone()
                };
                self.script.get(place).map(numbered).ok_or_else(beyond)
            };
            if let Ok(completion) = &outcome {
                sink.advanced(TokenCounts::new(0, completion.tokens.len()));
            }
            sink.completed(place / samples, outcome);
        }
        Ok(())
    }
}
