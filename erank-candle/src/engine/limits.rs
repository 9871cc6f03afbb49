//! The limits of the engine.

/// The limits of the engine, from [`CandleSettings`](crate::CandleSettings).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Blocks of the KV cache.
    pub(crate) blocks: usize,
    /// Maximum number of tokens that a step computes.
    pub(crate) max_num_batched_tokens: usize,
    /// Maximum number of sequences that run at once, at most `max_num_batched_tokens`.
    pub(crate) max_num_seqs: usize,
    /// Number of tokens that a small step is filled up to with speculative tokens.
    pub(crate) speculative_tokens: usize,
}
