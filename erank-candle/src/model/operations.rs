//! The fused operations that a transformer layer is made of.
//!
//! Each kind of device implements [`Operations`] once. [`cpu`](super::cpu) uses this crate's kernels, and
//! [`candle`](super::candle) uses candle's own operations. A model of the Qwen3 family is written once, over
//! the trait.
//!
//! Activations are F32 tensors of shape `[tokens, width]`. A projection rounds its input to the type of its
//! weights and accumulates in F32.

use candle_core::{Device, Result, Tensor};

use super::step::Step;
use crate::checkpoint::weights::Weights;
use crate::error::LoadError;
use crate::kernels::WeightFormat;
use crate::kernels::stored::StoredRow;
use crate::settings::KvCacheFormat;

/// The sizes of an attention layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub(crate) query_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl AttentionShape {
    /// Returns the total width of a token's queries.
    pub(crate) fn query_width(self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Returns the total width of a token's keys. Its values have the same width.
    pub(crate) fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Returns the total width of a token's queries, keys and values.
    pub(crate) fn qkv_width(self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }
}

/// The sizes of the activations that a pass computes again in every layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActivationShape {
    pub(crate) attention: AttentionShape,
    /// Width of the feed-forward layer.
    pub(crate) intermediate: usize,
}

/// The norms of a layer's queries and keys.
#[derive(Debug)]
pub(crate) struct HeadNorms<N> {
    pub(crate) query: N,
    pub(crate) key: N,
}

/// The fused operations on one kind of device.
pub(crate) trait Operations: Send + Sync + Sized {
    /// The weight and epsilon of an RMSNorm.
    type Norm: Send + Sync;
    /// A weight matrix, `[outputs, inputs]`.
    type Matrix: Send + Sync;
    /// The two matrices of a SwiGLU layer, `[intermediate, hidden]` each.
    type GateUp: Send + Sync;
    /// The state of one forward pass, prepared once for all layers.
    type Pass<'a>;

    /// Returns the device that holds activations and the KV cache.
    fn device(&self) -> &Device;

    /// Returns the name of the kernels, for logs.
    fn name(&self) -> &'static str;

    /// Returns the length of one layer's block of the KV cache, in numbers of the format's
    /// [`dtype`](KvCacheFormat::dtype).
    fn block_size(&self, shape: AttentionShape, format: KvCacheFormat) -> usize;

    /// Returns the format that [`load_matrix`](Self::load_matrix) keeps a stored matrix in, and its bytes there.
    ///
    /// # Errors
    /// Returns an error if the format is only read from files and the matrix is not stored in it.
    fn matrix_size(
        &self,
        numbers: StoredRow<'_>,
        inputs: usize,
    ) -> std::io::Result<(WeightFormat, usize)>;

    /// Loads the weight of an RMSNorm.
    ///
    /// # Errors
    /// Returns an error that names a tensor that is missing or has another shape.
    fn load_norm(
        &self,
        weights: &Weights<'_>,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> std::result::Result<Self::Norm, LoadError>;

    /// Loads matrices with the same inputs, given by name and outputs, stacked as one.
    ///
    /// # Errors
    /// Returns an error that names a tensor that is missing, has another shape, or does not fit in memory.
    fn load_matrix(
        &self,
        weights: &Weights<'_>,
        parts: &[(&str, usize)],
        inputs: usize,
    ) -> std::result::Result<Self::Matrix, LoadError>;

    /// Loads the two matrices of a SwiGLU layer; `names` are those of the gate and of the up projection.
    ///
    /// # Errors
    /// Returns the errors of [`load_matrix`](Self::load_matrix).
    fn load_gate_up(
        &self,
        weights: &Weights<'_>,
        names: [&str; 2],
        outputs: usize,
        inputs: usize,
    ) -> std::result::Result<Self::GateUp, LoadError>;

    /// Prepares a forward pass over `step`.
    fn begin<'a>(&self, step: &'a Step, shape: ActivationShape) -> Result<Self::Pass<'a>>;

    /// Looks up the embeddings of the pass's tokens: `[tokens, hidden]`.
    fn embed(&self, table: &Self::Matrix, pass: &Self::Pass<'_>) -> Result<Tensor>;

    /// Computes queries, keys and values, `norm(x) · Wᵀ`: `[tokens, query, key and value heads × head_dim]`.
    fn project_qkv(
        &self,
        norm: &Self::Norm,
        weights: &Self::Matrix,
        x: &Tensor,
        pass: &Self::Pass<'_>,
    ) -> Result<Tensor>;

    /// Writes the pass's keys (normalised and rotated) and values to one layer of the KV cache, and attends
    /// with its queries (normalised and rotated) to what each token sees: `[tokens, query heads × head_dim]`.
    fn attend(
        &self,
        norms: &HeadNorms<Self::Norm>,
        qkv: &Tensor,
        cache: &Tensor,
        pass: &Self::Pass<'_>,
    ) -> Result<Tensor>;

    /// Computes `residual + x · Wᵀ`. May reuse the memory of `residual`.
    fn project_add(&self, weights: &Self::Matrix, x: &Tensor, residual: Tensor) -> Result<Tensor>;

    /// Computes `silu(gate(norm(x))) · up(norm(x))`: `[tokens, intermediate]`.
    fn gate_up(
        &self,
        norm: &Self::Norm,
        weights: &Self::GateUp,
        x: &Tensor,
        pass: &Self::Pass<'_>,
    ) -> Result<Tensor>;

    /// Computes `norm(x) · Wᵀ` as numbers, row after row: `[rows, outputs]`.
    fn project_logits(
        &self,
        norm: &Self::Norm,
        weights: &Self::Matrix,
        x: &Tensor,
    ) -> Result<Vec<f32>>;
}
