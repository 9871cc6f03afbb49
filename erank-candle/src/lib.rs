//! The local backend of erank: ERank's model on candle, in your own process.
//!
//! A [`Checkpoint`] holds the model's files. They come from a folder or from the model hub, or are bundled
//! with the binary. [`CandleBackend::load`] loads the checkpoint with [`CandleSettings`] into a backend for a
//! [`Reranker`](erank_core::Reranker).
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
//! settings.kv_cache_memory_bytes = Some(64 << 20); // for the keys and values of all callers
//! settings.threads = NonZeroUsize::new(2);
//! let backend = CandleBackend::load(&checkpoint, &settings)?;
//!
//! let reranker = Reranker::builder(&backend).build()?;
//! let request = Request::new("jet noise", ["Jet noise was measured.", "A recipe for bread."]);
//! assert_eq!(reranker.rerank(&request)?.documents[0].index, 0);
//!
//! let statistics = backend.statistics(); // as of the last finished step
//! assert!(statistics.steps > 0 && statistics.generated_tokens > 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The engine
//!
//! A backend has a thread that runs one batch for all callers, step by step. A step computes at most
//! [`CandleSettings::max_num_batched_tokens`] tokens. These are the next token of every running document,
//! then chunks of waiting prompts. Common prefixes of prompts are computed once and cached while
//! [`CandleSettings::kv_cache_memory_bytes`] has space for them. Callers with fewer running documents are
//! scheduled first. On the CPU, a document's result has the same bits, no matter what else runs.
//!
//! Two interfaces observe the engine: [`Statistics`] holds its counters, and the `tracing` crate gets a span `score`
//! for each job (level debug, field `documents`) and a span `step` for each step (level trace, fields `rows` and
//! `tokens`).
//!
//! # Features
//!
//! The first two are on by default.
//!
//! - `hub`: `CandleBackend::from_hub` and `Checkpoint::from_hub`.
//! - `tiny-model`: `CandleBackend::tiny` and `Checkpoint::tiny`, a model of 2.4 million parameters for tests and
//!   demonstrations. It adds about 5 MB to the binary.
//! - `cuda`, `metal`: NVIDIA's and Apple's GPUs as [`CandleSettings::device`], through candle's own operations. No
//!   GPU has run them yet; tests run the same operations on the CPU. `cuda` needs the CUDA toolkit to build and the
//!   driver to run, `metal` needs macOS.

mod backend;
mod checkpoint;
mod cost;
mod engine;
mod error;
mod kernels;
mod logits;
mod memory;
mod model;
mod settings;
mod tokenizer;

/// The README's example, compiled and run.
#[cfg(all(doctest, feature = "tiny-model"))]
#[doc = include_str!("../README.md")]
pub struct Readme;

pub use backend::CandleBackend;
pub use checkpoint::config::{Architecture, Config};
#[cfg(feature = "hub")]
pub use checkpoint::hub::HubName;
pub use checkpoint::yarn::Yarn;
pub use checkpoint::{Checkpoint, GgufSummary, RecognisedPrompt};
pub use cost::{ModelCost, TensorGroup};
pub use engine::statistics::Statistics;
pub use error::LoadError;
pub use kernels::{UnknownWeightFormat, WeightFormat};
pub use logits::TokenLogProb;
pub use settings::{CandleSettings, Device, KvCacheFormat};
pub use tokenizer::{EncodedPrompt, PromptError, PromptFrame, PromptTokenizer, TokenDecoder};

/// The model below the engine, for this workspace's tests and benchmarks alone. Semantic versioning does not
/// cover it.
#[doc(hidden)]
pub mod internals {
    pub use crate::engine::block_allocator::BlockAllocator;
    pub use crate::kernels::measure;
    pub use crate::model::kv_cache::KvCache;
    pub use crate::model::load::{LoadedModel, instruction_sets, load};
    pub use crate::model::rotary::RotaryEmbedding;
    pub use crate::model::step::{BLOCK_TOKENS, BlockId, Row};
    pub use crate::model::{Head, Model, ModelShape};
}
