//! p-MRR of FollowIR: how documents move that a changed instruction excludes.
//!
//! The ids of a pair of queries are equal except for the end, as in the data of the package `mteb`.

use erank_core::evaluation::{QueryValues, no_longer_relevant, p_mrr};
use erank_core::trec::{EntryError, Qrels, Run};

use super::error::EvalError;

/// The end of the id of a query with its original instruction.
const ORIGINAL: &str = "-og";
/// The end of the id of the same query with the changed instruction.
const CHANGED: &str = "-changed";

/// The documents that are relevant by the original instruction, and not by the changed one, by the id of the pair.
pub(super) struct Pairs {
    documents: Qrels,
}

impl Pairs {
    /// Finds the pairs of queries.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no pair whose documents change.
    pub(super) fn new(qrels: &Qrels) -> Result<Self, EvalError> {
        let documents = no_longer_relevant(&judged(qrels, ORIGINAL)?, &judged(qrels, CHANGED)?);
        let pairs = Self { documents };
        if pairs.count() > 0 { Ok(pairs) } else { Err(EvalError::NoPairs) }
    }

    /// Returns the number of pairs.
    pub(super) fn count(&self) -> usize {
        self.documents.queries().len()
    }

    /// Returns the number of documents of a pair that are not relevant any more.
    pub(super) fn documents(&self, pair: &str) -> usize {
        self.documents.grades(pair).count()
    }

    /// Returns p-MRR of each pair with documents in the run.
    pub(super) fn p_mrr(&self, run: &Run) -> Result<QueryValues, EntryError> {
        Ok(p_mrr(&self.documents, &ranked(run, ORIGINAL)?, &ranked(run, CHANGED)?))
    }
}

/// Returns the grades of the queries whose ids end in `end`, by the id without it.
fn judged(qrels: &Qrels, end: &str) -> Result<Qrels, EntryError> {
    let mut part = Qrels::new();
    for query in qrels.queries() {
        let Some(pair) = query.strip_suffix(end) else { continue };
        for (document, grade) in qrels.grades(query) {
            part.insert(pair, document, grade)?;
        }
    }
    Ok(part)
}

/// Returns the documents of the queries whose ids end in `end`, by the id without it.
fn ranked(run: &Run, end: &str) -> Result<Run, EntryError> {
    let mut part = Run::new();
    for query in run.queries() {
        let Some(pair) = query.strip_suffix(end) else { continue };
        for (document, score) in run.ranking(query) {
            part.insert(pair, document, score)?;
        }
    }
    Ok(part)
}
