//! The runs that are compared: the first stage's, the reranked one, and hybrids of both.

use std::cmp::Ordering;
use std::collections::HashMap;

use erank_core::trec::Run;
use erank_core::{AnswerError, DocumentError, Fusion, ScoreKind};

use super::EvalError;
use super::collection::{self, Candidate, Collection, Query};
use super::scores::{Outcome, ScoreFile, texts_crc32};
use super::scoring::Failures;

/// Every candidate's score, or why it has none.
pub(super) struct Judgements<'a> {
    /// By query, as in the collection; then by candidate.
    pub(super) of_queries: Vec<Vec<Judgement<'a>>>,
}

/// What is known of one candidate.
pub(super) struct Judgement<'a> {
    /// What to rank by, or why that is not known.
    pub(super) score: Result<f64, String>,
    /// What the model said, if it did.
    pub(super) outcome: Option<&'a Outcome>,
}

impl<'a> Judgements<'a> {
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
                    let crc32 = texts_crc32(query_text, text);
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

/// The run that ranks by scores fused in this way.
///
/// Documents without a score come behind all others, as the first stage had them, and so do those
/// whose scores tie. The run's own scores are in that order for whoever reads them, in single
/// precision as well: where they tie, or nearly, a millionth lies between them.
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
        let mut ranking: Vec<_> =
            scored.into_iter().zip(fusion.fuse(&first_stage, &scores)).collect();
        // Stable: ties stay in the first stage's order.
        ranking.sort_by(|(_, a), (_, b)| b.partial_cmp(a).unwrap_or(Ordering::Equal));
        let mut last = f64::INFINITY;
        for (candidate, score) in ranking {
            last = score.min(last - 1e-6 * last.abs().max(1.0));
            run.insert(&query.id, &candidate.id, last)?;
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
