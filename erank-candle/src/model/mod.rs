//! The models that the engine can run, behind one trait.
//!
//! | file | content |
//! |---|---|
//! | [`step`] | the rows of one forward pass, checked |
//! | [`kv_cache`] | keys and values of every layer, in blocks |
//! | [`rotary`] | the rotary position embedding, with YaRN |
//! | [`qwen3`] | Qwen3's tensor names, layer order and forward pass, each once |
//! | [`operations`] | the fused operations that a layer is made of, as a trait |
//! | [`cpu`] | the operations on this crate's CPU kernels |
//! | [`candle`] | the operations by candle's own tensor operations, for any device |
//! | [`load`] | the list of models and devices: from a checkpoint to a [`Model`] |

pub(crate) mod aligned;
pub(crate) mod candle;
pub(crate) mod cpu;
pub(crate) mod kv_cache;
pub(crate) mod load;
pub(crate) mod operations;
pub(crate) mod qwen3;
pub(crate) mod rotary;
pub(crate) mod step;

use erank_core::Cause;

use kv_cache::KvCache;
use step::Row;

/// A causal language model that computes ragged batches over a paged KV cache.
///
/// The engine uses models only through this trait. It names no tensor type.
pub trait Model: Send + Sync {
    /// Returns the sizes that the engine plans with.
    fn shape(&self) -> ModelShape;

    /// Allocates a KV cache of `blocks` blocks for this model, on the model's device.
    ///
    /// # Errors
    /// Returns an error if there are more than 2³² blocks or the device has no memory for them.
    fn new_cache(&self, blocks: usize) -> Result<KvCache, Cause>;

    /// Computes `rows` in one step and writes their tokens' keys and values to `cache`, which
    /// [`new_cache`](Self::new_cache) made.
    ///
    /// Returns the wanted logits, `[wanted tokens, logits]`, in the order of the rows. Runs on rayon's
    /// current thread pool.
    ///
    /// # Errors
    /// Returns an error if a row is empty, exceeds [`ModelShape::max_tokens`], holds a token id outside the
    /// vocabulary, or names too few blocks or blocks that `cache` does not have.
    fn forward(&self, rows: &[Row<'_>], cache: &KvCache) -> Result<Vec<f32>, Cause>;
}

/// The sizes of a model that the engine plans with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// The meaning of a logit.
    pub head: Head,
    /// Number of logits per position: the tokens of a language model's vocabulary, or a classifier's labels.
    pub logits: usize,
    /// Maximum number of tokens in one sequence.
    pub max_tokens: usize,
    /// Bytes of one block of the KV cache over all layers.
    pub block_bytes: usize,
}

/// The meaning of a model's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// One logit per token of the vocabulary. Answers are generated as text.
    LanguageModel,
    /// One logit per label of the answer format, in its order. The logits after the prompt are the answer.
    Classifier,
}

#[cfg(all(test, feature = "tiny-model"))]
mod tests;
