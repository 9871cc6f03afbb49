//! Reranking with ERank, a reasoning language model: text in, a ranking with scores, probabilities
//! and reasons out.
//!
//! This crate knows no tensors and no network. It turns a query and its documents into prompts,
//! hands them to a [`ScoringBackend`], reads the integer answer and its probability from what the
//! backend generated, and orders the documents. The data's path is the list of modules:
//!
//! | step | module |
//! |---|---|
//! | query and documents | [`request`] |
//! | the prompt | [`prompt`] |
//! | the model behind a trait | [`backend`] |
//! | text and log-probabilities → answer | [`answer`] |
//! | with the first stage's scores | [`fusion`] |
//! | the ranked list | [`ranking`] |
//! | all of it, in this order | [`reranker`] |
//! | thinking only where it matters | [`cascade`] |
//! | how good one order is | [`metrics`] |
//! | runs and people's grades in TREC's files | [`trec`] |
//! | how good a run is, and whether another is better | [`evaluation`] |
//!
//! ```
//! use erank_core::testing::ScriptedBackend;
//! use erank_core::{Request, Reranker};
//!
//! // Any `ScoringBackend` goes here; `erank-candle` has the one that runs the model.
//! let backend = ScriptedBackend::texts([
//!     "<think>off topic</think><answer>1</answer>",
//!     "<think>answers it</think><answer>9</answer>",
//! ]);
//! let reranker = Reranker::builder(backend).build()?;
//! let ranking = reranker.rerank(&Request::new("capital of France", ["a cat", "Paris is …"]))?;
//! assert_eq!(ranking.documents[0].index, 1);
//! assert_eq!(ranking.documents[0].answer.integer, 9);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! None is on by default.
//!
//! - `async`: `AsyncReranker`, which reranks on threads of its own and gives futures that any executor
//!   can wait for.
//! - `testing`: the module of that name, with a scripted backend and the checks that a backend of your
//!   own should pass.
//! - `serde`: `Serialize` and `Deserialize` for requests, options and results. Names in JSON are
//!   those of the fields, and of the variants in snake case:
//!
//!   ```json
//!   {"query": "jet noise", "documents": [{"text": "…", "id": "a", "first_stage_score": 9.1}]}
//!   {"mode": {"reason": {"max_tokens": 512}}, "max_document_tokens": 1024}
//!   {"z_score": {"first_stage_weight": 0.2}}
//!   ```
//!
//!   They are a [`Request`], [`ScoringOptions`] and a [`Fusion`]. Options that are left out have
//!   their defaults, and unknown ones are errors; unknown fields of requests and results are passed
//!   over. `null`, or a field left out, is a value that is not there, such as a probability, an id
//!   or a first-stage score that is no number; it is never 0. `serde_json` reads a number to its last
//!   bit only with its feature `float_roundtrip`. An [`AnswerDistribution`] is the
//!   array of its log-probabilities, with `null` for that of an impossible answer, minus infinity.
//!   A [`DocumentError`] is an object with its `code`, such as `no_answer` or `stopped`, and a
//!   `message` for people; fields of the code stand beside it.

pub mod answer;
#[cfg(feature = "async")]
pub mod asynchronous;
pub mod backend;
pub mod cancellation;
pub mod cascade;
pub mod completion;
pub mod evaluation;
pub mod fusion;
pub mod metrics;
pub mod options;
mod outcomes;
pub mod progress;
pub mod prompt;
pub mod ranking;
pub mod request;
pub mod reranker;
#[cfg(feature = "serde")]
mod serialisation;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trec;

pub use answer::{
    Answer, AnswerDistribution, AnswerError, AnswerFormat, AnswerLogProb, AnswerProbability,
};
#[cfg(feature = "async")]
pub use asynchronous::{AsyncReranker, QueueFull, Workers};
pub use backend::{BackendError, Cause, DocumentError, Job, ScoringBackend, Sink};
pub use cancellation::CancellationToken;
pub use cascade::Cascade;
pub use completion::{Completion, FinishReason, GeneratedToken, TokenCounts};
pub use fusion::Fusion;
pub use options::{Mode, Sampling, ScoringOptions};
pub use progress::Progress;
pub use prompt::{BoundPrompt, PromptTemplate, TemplateError};
pub use ranking::{DocumentFailure, RankedDocument, Ranking, Sample};
pub use request::{Document, Request};
pub use reranker::{ConfigError, RerankError, Reranker, RerankerBuilder, ScoreKind};
