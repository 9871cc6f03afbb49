//! The scores of all candidates, and the runs that rank by them.

use std::collections::HashMap;

use erank_core::fusion::best_first;
use erank_core::trec::Run;
use erank_core::{AnswerError, DocumentError, Fusion, ScoreKind};

use super::collection::{self, Candidate, Collection, Query};
use super::error::EvalError;
use super::scores::{Outcome, ScoreFile, texts_crc32};
use super::scoring::Failures;

/// The score of each candidate, or the reason why it has none.
pub(super) struct Judgements<'a> {
    /// By query and candidate, in the collection's order.
    pub(super) of_queries: Vec<Vec<Judgement<'a>>>,
}

/// The result for one candidate.
pub(super) struct Judgement<'a> {
    /// The score to rank by, or the reason why there is none.
    pub(super) score: Result<f64, String>,
    /// The outcome, if the model was asked.
    pub(super) outcome: Option<&'a Outcome>,
}

impl<'a> Judgements<'a> {
    /// Looks up the scores and failures of all candidates.
    pub(super) fn new(
        collection: &Collection,
        scores: &'a ScoreFile,
        failures: &Failures,
        kind: ScoreKind,
    ) -> Self {
        let of_query = |query: &Query| {
            let none = HashMap::new();
            let failures = failures.get(&query.id).unwrap_or(&none);
            let judgement = |candidate: &Candidate| match collection::texts(query, candidate) {
                Err(reason) => Judgement { score: Err(reason), outcome: None },
                Ok((query_text, text)) => {
                    let crc32 = texts_crc32(query.instruction.as_deref(), query_text, text);
                    let outcome = scores.get(&query.id, &candidate.id, crc32);
                    let failure = failures.get(&candidate.id).map(String::as_str);
                    Judgement { score: score(outcome, failure, kind), outcome }
                }
            };
            query.candidates.iter().map(judgement).collect()
        };
        Self { of_queries: collection.queries.iter().map(of_query).collect() }
    }
}

/// Returns the score of this kind, or the reason why there is none.
fn score(outcome: Option<&Outcome>, failure: Option<&str>, kind: ScoreKind) -> Result<f64, String> {
    match (outcome, failure) {
        (Some(Outcome::Answered(score)), _) => score.value(kind).ok_or_else(|| {
            AnswerError::NoProbability(match kind {
                ScoreKind::ProbabilityWeighted => "log-probabilities",
                _ => "distribution over the answers",
            })
            .to_string()
        }),
        (Some(Outcome::Failed { error }), _) => Err(error.clone()),
        (None, Some(failure)) => Err(failure.to_owned()),
        (None, None) => Err(DocumentError::NotReported.to_string()),
    }
}

/// Returns the run that ranks by the fusion of both stages' scores.
///
/// Documents without a score rank last. They keep the first stage's order, as documents with equal scores do.
/// Some programs read scores in single precision. So equal or nearly equal scores are changed to differ by a
/// millionth.
pub(super) fn fused(
    collection: &Collection,
    judgements: &Judgements<'_>,
    fusion: Fusion,
) -> Result<Run, EvalError> {
    let mut run = Run::new();
    for (query, judgements) in collection.queries.iter().zip(&judgements.of_queries) {
        let scored =
            query.candidates.iter().zip(judgements).filter_map(|(candidate, judgement)| {
                Some((candidate, *judgement.score.as_ref().ok()?))
            });
        let (scored, scores): (Vec<_>, Vec<f64>) = scored.unzip();
        let first_stage: Vec<f64> = scored.iter().map(|candidate| candidate.score).collect();
        let fused = fusion.fuse(&first_stage, &scores);
        let mut last = f64::INFINITY;
        for index in best_first(&fused) {
            last = fused[index].min(last - 1e-6 * last.abs().max(1.0));
            run.insert(&query.id, &scored[index].id, last)?;
        }
        let mut below = if last.is_finite() { last } else { 0.0 };
        for (candidate, judgement) in query.candidates.iter().zip(judgements) {
            if judgement.score.is_err() {
                below -= 1.0;
                run.insert(&query.id, &candidate.id, below)?;
            }
        }
    }
    Ok(run)
}
