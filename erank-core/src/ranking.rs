//! The result: documents in order, with everything known about each, and those without a score.

use crate::answer::Answer;
use crate::backend::DocumentError;
use crate::completion::{FinishReason, TokenCounts};
use crate::options::Mode;
use crate::request::Request;

/// Documents from the most to the least relevant.
#[derive(Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Ranking {
    /// The ranked documents, best first; at most the reranker's `top_k`. Ties keep the request's
    /// order.
    ///
    /// With a [`Cascade`](crate::Cascade), the order is that of the first pass, in which each stretch
    /// that was thought about is sorted anew in itself. Scores of thoughts and of answers at once are
    /// not comparable, so scores need not descend over the whole list.
    pub documents: Vec<RankedDocument>,
    /// How many documents got a score, those that `top_k` cut off included.
    pub scored: usize,
    /// Documents that could not be scored, in the request's order, each with its reason.
    pub unscored: Vec<DocumentFailure>,
    /// Documents that have a score, but by less than was asked for, in the request's order, each with
    /// the first reason: samples without an answer, or, in a cascade, the answer at once of a document
    /// that was to be thought about. What `top_k` cut off is among them.
    #[cfg_attr(feature = "serde", serde(default))]
    pub incomplete: Vec<DocumentFailure>,
    /// What the work took, over all documents.
    pub tokens: TokenCounts,
}

/// A document with its score and the reasons for it.
///
/// Of several [samples](crate::ScoringOptions::samples), the score is the mean, and the answer with
/// its thought is the one whose score is nearest to it.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct RankedDocument {
    /// The document's index in the request.
    pub index: usize,
    /// The caller's name for it.
    pub id: Option<String>,
    /// What it is ranked by: the chosen [`ScoreKind`](crate::ScoreKind), after
    /// [`Fusion`](crate::Fusion). Always finite.
    pub score: f64,
    /// The population standard deviation of the samples' scores; 0 if there is one.
    pub std_dev: f64,
    /// What the model answered and thought.
    pub answer: Answer,
    /// The first stage's score, as given.
    pub first_stage_score: Option<f64>,
    /// How it was asked: in a [`Cascade`](crate::Cascade), not all documents are thought about.
    pub mode: Mode,
    /// Whether the query or the document was cut to its limit.
    pub truncated: bool,
    /// Why generation ended.
    pub finish_reason: FinishReason,
    /// What it took, over all samples.
    pub tokens: TokenCounts,
    /// Every sample, if several were asked for.
    pub samples: Vec<Sample>,
}

/// One of several answers for the same document.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Sample {
    /// Its score, before fusion.
    pub score: f64,
    /// What the model answered and thought.
    pub answer: Answer,
    /// Why generation ended.
    pub finish_reason: FinishReason,
    /// What it took.
    pub tokens: TokenCounts,
}

/// A document without a score, or [without all](Ranking::incomplete) that it was to be made of.
#[derive(Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DocumentFailure {
    /// The document's index in the request.
    pub index: usize,
    /// The caller's name for it.
    pub id: Option<String>,
    /// Why.
    pub error: DocumentError,
}

impl DocumentFailure {
    pub(crate) fn of(request: &Request<'_>, index: usize, error: DocumentError) -> Self {
        Self { index, id: request.documents[index].id.as_deref().map(str::to_owned), error }
    }
}
