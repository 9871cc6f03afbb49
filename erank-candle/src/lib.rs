//! The local backend of erank: ERank's model on candle, in your own process.

mod backend;
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

pub use backend::{CandleBackend, Settings};
/// The type of [`Settings::dtype`].
pub use candle_core::DType;
pub use checkpoint::Checkpoint;
pub use config::Config;
pub use engine::Statistics;
pub use error::LoadError;
#[doc(hidden)]
pub use kernels::measure;
pub use logits::TokenLogProb;
pub use tokenizer::{EncodedPrompt, PromptError, PromptFrame, PromptTokenizer, TokenDecoder};
