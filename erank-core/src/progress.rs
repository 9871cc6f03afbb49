//! The progress of a job.

use crate::completion::TokenCounts;

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Progress {
    /// Documents done, with or without an answer.
    pub documents_done: usize,
    /// Documents in all.
    pub documents: usize,
    /// Tokens so far, over all documents.
    pub tokens: TokenCounts,
}
