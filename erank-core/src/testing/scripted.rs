//! A backend with scripted completions.

use crate::backend::{BackendError, DocumentError, Job, ScoringBackend, Sink};
use crate::completion::{Completion, FinishReason, TokenCounts};
use crate::tags::{ANSWER_CLOSE, ANSWER_ONLY_PREFIX};

/// A backend that returns completions from a script.
///
/// Document `i` of every job gets the completion `i` of the script. With `k` samples for each document,
/// it gets the completions `i·k` to `i·k + k − 1`. The tokens of this backend are words, each with the white space
/// before it.
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
    /// Creates a backend from completions.
    pub fn new(script: impl IntoIterator<Item = Completion>) -> Self {
        Self { script: script.into_iter().collect() }
    }

    /// Creates a backend from texts. Each text is one token with probability 1.
    pub fn texts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::new(texts.into_iter().map(|text| {
            let mut completion = Completion::new("");
            completion.push(text.as_ref(), 0.0);
            completion
        }))
    }
}

/// Returns a completion with empty reasoning and the answer `integer`, which is one token with this
/// probability.
pub fn answered(integer: u32, probability: f32) -> Completion {
    let mut completion = Completion::new(ANSWER_ONLY_PREFIX);
    completion.push(&integer.to_string(), probability.ln());
    completion.push(ANSWER_CLOSE, 0.0);
    completion.finish_reason = FinishReason::Answered;
    completion
}

impl ScoringBackend for ScriptedBackend {
    fn name(&self) -> &str {
        "scripted"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let samples = job.options.samples.max(1);
        for position in 0..job.documents.len() * samples {
            let outcome = if job.cancellation.is_cancelled() {
                Err(DocumentError::Cancelled)
            } else {
                let beyond = || DocumentError::Backend("beyond the end of the script".into());
                let numbered = |completion: &Completion| Completion {
                    sample: position % samples,
                    ..completion.clone()
                };
                self.script.get(position).map(numbered).ok_or_else(beyond)
            };
            if let Ok(completion) = &outcome {
                sink.tokens_processed(TokenCounts::new(0, completion.tokens.len()));
            }
            sink.completed(position / samples, outcome);
        }
        Ok(())
    }
    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        let (mut ends, mut rest) = (Vec::new(), text);
        while !rest.is_empty() && ends.len() < max_tokens {
            let word = rest.trim_start();
            rest = &word[word.find(char::is_whitespace).unwrap_or(word.len())..];
            ends.push(text.len() - rest.len());
        }
        Ok(ends)
    }
}
