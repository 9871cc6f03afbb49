//! The engine's counters.

/// Counters of an engine since it was loaded, and its present state.
///
/// A snapshot is cheap; services can export it as metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Statistics {
    /// Number of steps of the running batch.
    pub steps: u64,
    /// Number of completed sequences, one for each sample of a document, with or without an answer.
    pub completed: u64,
    /// Number of computed prompt tokens.
    pub prompt_tokens: u64,
    /// Number of prompt tokens that the prefix cache held.
    pub cached_tokens: u64,
    /// Number of generated tokens.
    pub generated_tokens: u64,
    /// Number of computed speculative tokens.
    pub drafted_tokens: u64,
    /// Number of speculative tokens that the model confirmed.
    pub accepted_tokens: u64,
    /// Number of preemptions. A preempted sequence had to free its blocks because the cache was full or
    /// another caller had no running sequence.
    pub preemptions: u64,
    /// Current number of callers.
    pub callers: usize,
    /// Current number of sequences in the running batch.
    pub running: usize,
    /// Current number of waiting sequences. Callers tokenize a few documents ahead of those that run; documents
    /// that are not tokenized yet do not count.
    pub waiting: usize,
    /// Current number of cache blocks of running sequences.
    pub used_blocks: usize,
    /// Current number of cache blocks that hold only prefixes that no running sequence uses. They can be
    /// evicted.
    pub prefix_blocks: usize,
    /// Number of all cache blocks.
    pub total_blocks: usize,
}
