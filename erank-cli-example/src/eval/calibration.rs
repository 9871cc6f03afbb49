//! The fit of a calibration, and the check of its probabilities on other queries.

use std::io::{self, Write};

use erank_core::{AnswerFormat, Calibration, Mode, Reliability, ReliabilityBin, ScoreKind};
use serde::Serialize;

use super::collection::Collection;
use super::error::EvalError;
use super::scores::{Outcome, Score};
use super::systems::Judgements;
use crate::args::Relevant;
use crate::calibration::Documents;
use crate::table::{self, Column, Table};

/// The smallest number of queries: two to fit a calibration, and two to check it.
const MIN_QUERIES: usize = 4;

/// The kind of the scores, and how they were computed.
#[derive(Clone, Copy)]
pub(super) struct Scored<'a> {
    pub(super) kind: ScoreKind,
    pub(super) mode: Mode,
    pub(super) answers: &'a AnswerFormat,
}

/// A calibration, and how well its probabilities agree with the judgements.
#[derive(Serialize)]
pub(super) struct Calibrated {
    #[serde(skip)]
    pub(super) calibration: Calibration,
    /// All documents, on which the calibration of the file is fitted.
    pub(super) all: Documents,
    /// The documents that another calibration is fitted on, to check it on `checked`.
    pub(super) fitted: Documents,
    pub(super) checked: Documents,
    relevance_level: i32,
    unjudged_not_relevant: bool,
    /// The reliability of the relevance from 0 to 1 of `checked`. It is null if the backend gave no distribution.
    before: Option<Reliability>,
    /// The reliability of the probabilities of `checked`.
    after: Reliability,
}

/// The relevance of the candidates, and the queries to fit and to check on.
pub(super) struct Labels {
    /// For each query and each of its candidates, in the collection's order, whether the candidate is relevant.
    /// `None` for an unjudged candidate that is not used.
    labels: Vec<Vec<Option<bool>>>,
    /// The positions of the queries with labels to fit a calibration on, and of those to check it on.
    fitted: Vec<usize>,
    checked: Vec<usize>,
    relevant: Relevant,
}

impl Labels {
    /// Divides the queries that have judged candidates into halves, in an order that depends on their ids alone.
    ///
    /// # Errors
    ///
    /// Returns an error if there are too few queries, or if a half lacks relevant or irrelevant candidates.
    pub(super) fn new(collection: &Collection, relevant: Relevant) -> Result<Self, EvalError> {
        let label = |query: &str, document: &str| match collection.qrels.grade(query, document) {
            // A negative grade means unjudged.
            Some(grade) if grade >= 0 => Some(grade >= relevant.relevance_level),
            _ => relevant.unjudged_not_relevant.then_some(false),
        };
        let labels = collection.queries.iter().map(|query| {
            query.candidates.iter().map(|candidate| label(&query.id, &candidate.id)).collect()
        });
        let labels: Vec<Vec<Option<bool>>> = labels.collect();
        let mut fitted: Vec<usize> =
            (0..labels.len()).filter(|query| labels[*query].iter().any(Option::is_some)).collect();
        if fitted.len() < MIN_QUERIES {
            return Err(EvalError::FewQueries { queries: fitted.len(), needed: MIN_QUERIES });
        }
        fitted.sort_by_key(|query| {
            let id = &collection.queries[*query].id;
            (crc32fast::hash(id.as_bytes()), id)
        });
        let checked = fitted.split_off(fitted.len().div_ceil(2));
        let labels = Self { labels, fitted, checked, relevant };
        for half in [&labels.fitted, &labels.checked] {
            let of_half = || half.iter().flat_map(|query| labels.labels[*query].iter().flatten());
            let (documents, relevant) =
                (of_half().count(), of_half().filter(|label| **label).count());
            if relevant == 0 || relevant == documents {
                return Err(EvalError::OneClass { queries: half.len(), documents, relevant });
            }
        }
        Ok(labels)
    }

    /// Fits a calibration on the scores of all queries, and checks one that is fitted on half of them.
    ///
    /// # Errors
    ///
    /// Returns an error if too few documents have scores.
    pub(super) fn calibrate(
        &self,
        judgements: &Judgements<'_>,
        scored: Scored<'_>,
    ) -> Result<Calibrated, EvalError> {
        let fit = |documents: &[Labelled]| {
            let judged = documents.iter().map(|document| (document.score, document.is_relevant));
            Calibration::fit(scored.kind, scored.mode, scored.answers, judged)
        };
        let fitted = self.documents(&self.fitted, judgements, scored);
        let checked = self.documents(&self.checked, judgements, scored);
        let calibration = fit(&fitted)?;
        let before =
            checked.iter().map(|document| Some((document.relevance?, document.is_relevant)));
        let before: Option<Vec<(f64, bool)>> = before.collect();
        let after = checked
            .iter()
            .map(|document| (calibration.probability(document.score), document.is_relevant));
        let after = Reliability::measure(after).ok_or(EvalError::NoScoredDocuments)?;
        let (of_fitted, of_checked) =
            (count(self.fitted.len(), &fitted), count(self.checked.len(), &checked));
        let all = [fitted, checked].concat();
        Ok(Calibrated {
            calibration: fit(&all)?,
            all: count(self.fitted.len() + self.checked.len(), &all),
            fitted: of_fitted,
            checked: of_checked,
            relevance_level: self.relevant.relevance_level,
            unjudged_not_relevant: self.relevant.unjudged_not_relevant,
            before: before.and_then(Reliability::measure),
            after,
        })
    }

    /// Returns the scored documents with labels of the queries at `positions`.
    fn documents(
        &self,
        positions: &[usize],
        judgements: &Judgements<'_>,
        scored: Scored<'_>,
    ) -> Vec<Labelled> {
        let of_query =
            |query: &usize| self.labels[*query].iter().zip(&judgements.of_queries[*query]);
        let documents = positions.iter().flat_map(of_query).filter_map(|(label, judgement)| {
            let (is_relevant, score) = ((*label)?, *judgement.score.as_ref().ok()?);
            let relevance = match judgement.outcome {
                Some(Outcome::Answered(score)) => relevance(score, scored),
                _ => None,
            };
            Some(Labelled { score, relevance, is_relevant })
        });
        documents.collect()
    }
}

/// Returns the relevance from 0 to 1.
fn relevance(score: &Score, scored: Scored<'_>) -> Option<f64> {
    scored.answers.relevance(score.value(scored.kind.relevance_kind())?)
}

/// A scored document with a label.
#[derive(Clone, Copy)]
struct Labelled {
    score: f64,
    relevance: Option<f64>,
    is_relevant: bool,
}

fn count(queries: usize, documents: &[Labelled]) -> Documents {
    let relevant = documents.iter().filter(|document| document.is_relevant).count();
    Documents { queries, documents: documents.len(), relevant }
}

impl Calibrated {
    /// Returns the reliabilities before and after the calibration.
    pub(super) fn reliabilities(&self) -> impl Iterator<Item = (&'static str, &Reliability)> {
        [("before", self.before.as_ref()), ("after", Some(&self.after))]
            .into_iter()
            .filter_map(|(name, reliability)| Some((name, reliability?)))
    }

    /// Writes a table of each reliability, without empty bins.
    pub(super) fn write_tables(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { fitted, checked, .. } = self;
        writeln!(
            out,
            "\nCalibration, fitted on {} queries with {} judged documents ({} relevant), and checked on {} others with \
             {} ({} relevant)",
            fitted.queries,
            fitted.documents,
            fitted.relevant,
            checked.queries,
            checked.documents,
            checked.relevant
        )?;
        for (name, reliability) in self.reliabilities() {
            writeln!(out, "{name}: {}", summary(reliability))?;
            let columns = ["documents", "mean", "relevant"].map(Column::Number);
            let columns = [Column::Word("probability")].into_iter().chain(columns);
            let mut table = Table::new(columns.collect());
            for (range, bin) in bins(reliability) {
                let numbers = [bin.mean_probability, bin.relevant_fraction].into_iter().flatten();
                let mut cells = vec![range, bin.documents.to_string()];
                cells.extend(numbers.map(|number| format!("{number:.3}")));
                table.row(cells, String::new());
            }
            table.write(table::output_width(), out)?;
        }
        Ok(())
    }
}

/// Returns the expected calibration error and the Brier score.
pub(super) fn summary(reliability: &Reliability) -> String {
    let Reliability { expected_calibration_error: error, brier_score, .. } = reliability;
    format!("expected calibration error {error:.3}, Brier score {brier_score:.3}")
}

/// Returns the bins that are not empty, each with the text of its range.
pub(super) fn bins(reliability: &Reliability) -> impl Iterator<Item = (String, &ReliabilityBin)> {
    let border = |bin: usize| bin as f64 / Reliability::BINS as f64;
    let bins = reliability.bins.iter().enumerate();
    bins.filter(|(_, bin)| bin.documents > 0)
        .map(move |(number, bin)| (format!("{} to {}", border(number), border(number + 1)), bin))
}
