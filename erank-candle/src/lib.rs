//! The local backend of erank: ERank's model on candle, in your own process.
//!
//! A [`Checkpoint`] is the model's files, from a folder, the model hub or the binary. Loaded with
//! [`CandleSettings`] it is a [`CandleBackend`], which a [`Reranker`](erank_core::Reranker) asks.
//!
//! ```
//! use std::num::NonZeroUsize;
//!
//! use erank_candle::{CandleBackend, Checkpoint, CandleSettings};
//! use erank_core::{Request, Reranker};
//!
//! // Or `Checkpoint::open("models/ERank-4B")`, or `Checkpoint::from_hub` with a name.
//! let checkpoint = Checkpoint::tiny();
//! let mut settings = CandleSettings::default();
//! settings.kv_cache_memory_bytes = Some(64 << 20); // for keys and values, of all callers together
//! settings.threads = NonZeroUsize::new(2);
//! let backend = CandleBackend::load(&checkpoint, &settings)?;
//!
//! let reranker = Reranker::builder(&backend).build()?;
//! let request = Request::new("jet noise", ["Jet noise was measured.", "A recipe for bread."]);
//! assert_eq!(reranker.rerank(&request)?.documents[0].index, 0);
//!
//! let statistics = backend.statistics(); // as of the last step that has ended
//! assert!(statistics.steps > 0 && statistics.generated_tokens > 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The engine
//!
//! A backend has a thread that runs one batch for all callers, step by step. A step computes the next
//! token of every document that thinks, and a part of the prompts of those that come, within
//! [`CandleSettings::max_num_batched_tokens`]. What prompts have in common is computed once, and kept as long as
//! [`CandleSettings::kv_cache_memory_bytes`] has room for it. Who has fewer documents running goes first. A document's
//! result has the same bits whatever else runs, on the CPU. When the backend is dropped, its thread ends.
//!
//! What the engine does can be watched: [`Statistics`] are its counters, and the `tracing` crate gets a
//! span `score` for each job (level debug, `documents`) and a span `step` for each step (level trace,
//! `rows` and `tokens`).
//!
//! # Features
//!
//! The first two are on by default.
//!
//! - `hub`: `CandleBackend::from_hub` and `Checkpoint::from_hub`.
//! - `tiny-model`: `CandleBackend::tiny` and `Checkpoint::tiny`, a model of 2.4 million parameters for
//!   tests and demonstrations, about 5 MB in the binary.
//! - `cuda`, `metal`: NVIDIA's and Apple's GPUs for [`CandleSettings::device`], through candle's own operations.
//!   On no GPU has this been run; on the CPU the same operations are tested. `cuda` takes the CUDA toolkit
//!   to build and the driver to start, `metal` takes macOS.

mod backend;
mod candle_ops;
mod chat_template;
mod checkpoint;
mod config;
mod engine;
mod error;
#[cfg(feature = "hub")]
mod hub;
mod kernels;
pub mod kv_cache;
mod logits;
mod memory;
pub mod model;
mod ops;
mod tokenizer;
mod weights;

/// The README's example, compiled and run.
#[cfg(all(doctest, feature = "tiny-model"))]
#[doc = include_str!("../README.md")]
pub struct Readme;

pub use backend::{CandleBackend, CandleSettings};
/// The types of [`CandleSettings::dtype`] and [`CandleSettings::device`].
pub use candle_core::{DType, DeviceLocation};
pub use checkpoint::Checkpoint;
pub use config::Config;
pub use engine::Statistics;
pub use error::LoadError;
#[doc(hidden)]
pub use kernels::measure;
pub use logits::TokenLogProb;
pub use tokenizer::{EncodedPrompt, PromptError, PromptFrame, PromptTokenizer, TokenDecoder};
