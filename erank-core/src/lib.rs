//! Reranking with ERank, a reasoning language model. The input is text, and the output is a ranking with
//! scores, probabilities and reasons.
//!
//! This crate has no tensors and no network. It builds prompts from a query and its documents, passes
//! them to a [`ScoringBackend`], parses the integer answer and its probability from the generated text,
//! and ranks the documents. The modules follow the path of the data:
//!
//! | step | module |
//! |---|---|
//! | query and documents | [`request`] |
//! | prompt | [`prompt`] |
//! | allowed answers | [`answer_format`] |
//! | backend trait | [`backend`] |
//! | options of a job | [`options`] |
//! | generated text and log-probabilities | [`completion`], [`distribution`] |
//! | answer | [`answer`], [`answer_parser`] |
//! | score | [`score`] |
//! | probability of relevance | [`calibration`] |
//! | fusion with the first stage | [`fusion`] |
//! | ranked list | [`ranking`] |
//! | all these steps in order | [`reranker`], [`reranker_builder`] |
//! | reasoning about some documents only | [`cascade`] |
//! | long documents | [`windows`] |
//! | measures of one ranked list | [`metrics`] |
//! | TREC runs and qrels | [`trec`] |
//! | evaluation and comparison of runs | [`evaluation`] |
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
//! No feature is on by default.
//!
//! - `async`: `AsyncReranker`, which reranks on its own threads and returns futures for any executor.
//! - `testing`: the module of that name, with a scripted backend and the conformance checks for
//!   backends.
//! - `serde`: `Serialize` and `Deserialize` for requests, options and results, and `LossyString` for strings of JSON.
//!
//! # JSON
//!
//! With feature `serde`, the names in JSON are those of the fields, and those of the variants in snake
//! case. Examples are a [`Request`], [`ScoringOptions`] and a [`Fusion`]:
//!
//! ```json
//! {"query": "jet noise", "documents": [{"text": "…", "id": "a", "first_stage_score": 9.1}]}
//! {"mode": {"reason": {"max_tokens": 512}}, "max_document_tokens": 1024}
//! {"z_score": {"first_stage_weight": 0.2}}
//! ```
//!
//! - Missing options have their defaults, and unknown options are errors. Unknown fields of requests
//!   and results are ignored.
//! - `null` or a missing field stands for an absent value, such as a probability, an id, or a
//!   first-stage score that is not a finite number. It never stands for 0.
//! - An [`AnswerDistribution`] is an array with an entry for each answer: a number for an exact
//!   log-probability, `null` for minus infinity, and `{"at_most": -3.2}` for an upper bound (with `null`
//!   for minus infinity).
//! - A [`DocumentError`] is an object with its `code`, such as `no_answer` or `cancelled`, the fields of
//!   that code, and a `message` for people.
//! - `serde_json` reads numbers exactly only with its feature `float_roundtrip`.

pub mod answer;
pub mod answer_format;
pub mod answer_parser;
#[cfg(feature = "async")]
pub mod asynchronous;
pub mod backend;
pub mod calibration;
pub mod cancellation;
pub mod cascade;
pub mod completion;
pub mod distribution;
pub mod error;
pub mod evaluation;
pub mod fusion;
#[cfg(feature = "serde")]
pub mod lossy_string;
pub mod metrics;
pub mod options;
mod pass;
pub mod progress;
pub mod prompt;
pub mod ranking;
pub mod request;
pub mod reranker;
pub mod reranker_builder;
pub mod score;
#[cfg(feature = "serde")]
mod serde_impls;
mod student_t;
pub mod tags;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trec;
pub mod windows;

pub use answer::{Answer, AnswerProbability};
pub use answer_format::{AnswerFormat, AnswerFormatError};
#[cfg(feature = "async")]
pub use asynchronous::{AsyncReranker, AsyncSettings, QueueFull};
pub use backend::{BackendError, Cause, DocumentError, Job, ScoringBackend, Sink};
pub use calibration::{Calibration, CalibrationError, Reliability, ReliabilityBin};
pub use cancellation::CancellationToken;
pub use cascade::{Cascade, FirstPass};
pub use completion::{Completion, FinishReason, GeneratedToken, TokenCounts};
pub use distribution::{AnswerDistribution, AnswerLogProb};
pub use error::AnswerError;
pub use fusion::Fusion;
#[cfg(feature = "serde")]
pub use lossy_string::LossyString;
pub use options::{ConfigError, Mode, Sampling, ScoringOptions};
pub use progress::Progress;
pub use prompt::{BoundPrompt, PromptFamily, PromptTemplate, TemplateError};
pub use ranking::{DocumentFailure, RankedDocument, Ranking, Sample, ScoredWindow};
pub use request::{Document, Request};
pub use reranker::{RerankError, Reranker};
pub use reranker_builder::RerankerBuilder;
pub use score::ScoreKind;
pub use windows::{Aggregation, Windows};
