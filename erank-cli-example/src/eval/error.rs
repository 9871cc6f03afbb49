//! Errors of an evaluation.

use std::path::Path;

use erank_core::CalibrationError;
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
    #[error(
        "a calibration needs at least {needed} queries with judged candidates, half of them to check it, but there \
         are {queries}; judge more queries"
    )]
    FewQueries { queries: usize, needed: usize },
    #[error(
        "{relevant} of {documents} judged candidates of {queries} queries are relevant; half of the queries fits the \
         calibration, the other half checks it, and each needs relevant and irrelevant candidates. Judge more queries, \
         or count unjudged candidates as not relevant with --unjudged-not-relevant"
    )]
    OneClass { queries: usize, documents: usize, relevant: usize },
    #[error(
        "no judged candidate to check the calibration has a score; see the reasons in report.json"
    )]
    NoScoredDocuments,
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    #[error(
        "--followir needs pairs of queries whose ids end in -og (the original instruction) and -changed, and documents \
         that the qrels of the first name as relevant, and those of the second do not; the qrels have none"
    )]
    NoPairs,
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
