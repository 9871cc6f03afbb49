//! Errors of an evaluation.

use std::path::Path;

use erank_core::evaluation::UnpairedQuery;
use erank_core::trec::EntryError;
use thiserror::Error;

use crate::text;

/// An error that ends an evaluation.
#[derive(Debug, Error)]
pub(crate) enum EvalError {
    #[error("{file}: {problem}")]
    File { file: String, problem: String },
    #[error(
        "no query of the run is judged: the first query of the run is {run}, that of the qrels \
         {qrels}; give files of the same collection"
    )]
    NoJudgedQuery { run: String, qrels: String },
    #[error(
        "no candidate is judged, for example {example}; check that run and qrels use the same \
         document ids"
    )]
    NoJudgedCandidate { example: String },
    #[error("{file} has none of the {wanted} texts that the run needs, for example {example:?}")]
    NoText { file: String, wanted: usize, example: String },
    #[error("{file} is not a score file of erank eval; choose another folder with --output")]
    NoScores { file: String },
    #[error(
        "{file} holds scores of other settings: {differences}. Choose another folder with --output, \
         or the same settings"
    )]
    OtherScores { file: String, differences: String },
    #[error(
        "{file} is being written by another process; wait for it, or choose another folder with \
         --output"
    )]
    InUse { file: String },
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error(transparent)]
    Unpaired(#[from] UnpairedQuery),
}

impl EvalError {
    /// Returns an error about a file.
    pub(super) fn file(file: &Path, problem: String) -> Self {
        Self::File { file: text::line(&file.display().to_string()), problem }
    }
}
