//! What the engine has done and is doing, in numbers.

/// Counters of an engine since it was loaded, and what it holds now. A cheap snapshot, to be
/// exported as a service's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Statistics {
    /// Steps of the running batch.
    pub steps: u64,
    /// Documents' samples completed, with or without an answer.
    pub completed: u64,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Prompt tokens taken from the prefix cache instead.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens guessed ahead, and how many of the guesses were right.
    pub drafted_tokens: u64,
    /// See [`drafted_tokens`](Self::drafted_tokens).
    pub accepted_tokens: u64,
    /// Sequences sent back to wait because the cache was full or another caller had none running.
    pub preemptions: u64,
    /// Callers now.
    pub callers: usize,
    /// Sequences in the running batch now.
    pub running: usize,
    /// Sequences that wait for room now: those that their callers have tokenized, a few ahead of what
    /// runs, and not all documents that are still to come.
    pub waiting: usize,
    /// Cache blocks in use by running sequences now, of [`total_blocks`](Self::total_blocks).
    pub used_blocks: usize,
    /// Cache blocks that keep prefixes for later, and can be had at once.
    pub prefix_blocks: usize,
    /// Cache blocks in all.
    pub total_blocks: usize,
}
