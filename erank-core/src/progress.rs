//! The progress of a request.

use std::ops::ControlFlow;

use crate::completion::TokenCounts;

/// The progress of a request, over all passes of a [`Cascade`](crate::Cascade).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Progress {
    /// The number of documents finished, with or without an answer. A document of several
    /// [`Windows`](crate::Windows) is finished when all of them are.
    pub documents_done: usize,
    /// The number of documents to finish. The second pass of a cascade adds its documents.
    pub documents: usize,
    /// The numbers of tokens processed so far, over all documents.
    pub tokens: TokenCounts,
}

/// A function that receives the progress and decides whether to continue.
pub(crate) type ProgressCallback = dyn Fn(&Progress) -> ControlFlow<()> + Send + Sync;
