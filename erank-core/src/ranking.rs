//! The result of a request: ranked documents, and documents without a score.

use std::ops::Range;

use crate::answer::Answer;
use crate::backend::DocumentError;
use crate::completion::{FinishReason, TokenCounts};
use crate::options::Mode;
use crate::request::Request;

/// The result of a request.
#[derive(Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Ranking {
    /// The ranked documents, best first, at most `top_k` of them. Ties keep the request's order.
    ///
    /// A [`Cascade`](crate::Cascade) keeps the order of its first pass, except that it sorts each range
    /// of its second pass by the second pass's scores. The scores of the two passes are not comparable,
    /// so scores need not descend over the whole list.
    pub documents: Vec<RankedDocument>,
    /// The number of documents with a score, including those that `top_k` removed and those below the minimum score.
    pub scored_count: usize,
    /// The documents below the [minimum score](crate::RerankerBuilder::min_score), best first. They have a score, but
    /// no rank, and `top_k` does not count them. Empty without a minimum score.
    #[cfg_attr(feature = "serde", serde(default))]
    pub below_min_score: Vec<RankedDocument>,
    /// Documents without a score, in the request's order, each with its error.
    pub unscored: Vec<DocumentFailure>,
    /// Documents for which some results are missing, in the request's order, each with its first error.
    /// Either some of their samples have no answer, or the second pass of a cascade failed and they keep the
    /// score of the first. Includes documents that `top_k` removed.
    #[cfg_attr(feature = "serde", serde(default))]
    pub partially_scored: Vec<DocumentFailure>,
    /// The numbers of tokens processed, over all documents and passes.
    pub tokens: TokenCounts,
}

/// A document with its score and the model's answer.
///
/// With several [samples](crate::ScoringOptions::samples), the score is their mean, and the answer is
/// that of the sample whose score is nearest to the mean.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct RankedDocument {
    /// The document's index in the request.
    pub index: usize,
    /// The caller's identifier of the document.
    pub id: Option<String>,
    /// The score of the chosen [`ScoreKind`](crate::ScoreKind) after [`Fusion`](crate::Fusion). Always
    /// finite.
    pub score: f64,
    /// The relevance on a scale from 0 to 1, before fusion, by
    /// [`ScoreKind::relevance`](crate::ScoreKind::relevance). `None` if the backend returned no distribution and the
    /// score is not the integer.
    pub relevance: Option<f64>,
    /// The probability that the document is relevant, by the
    /// [calibration](crate::RerankerBuilder::calibration). `None` without one.
    pub relevance_probability: Option<f64>,
    /// The population standard deviation of the samples' scores before fusion; 0 for one sample.
    pub std_dev: f64,
    /// The model's answer and reasoning.
    pub answer: Answer,
    /// The first stage's score from the request.
    pub first_stage_score: Option<f64>,
    /// The mode of the pass that scored the document. In a [`Cascade`](crate::Cascade), documents of
    /// both modes occur: its first pass has answer-only mode, and its second pass thinks.
    pub mode: Mode,
    /// Whether the query or the document was truncated to its limit, or the document has more
    /// [windows](crate::Windows) than were scored.
    pub truncated: bool,
    /// The reason that generation ended.
    pub finish_reason: FinishReason,
    /// The numbers of tokens processed, over all samples and windows.
    pub tokens: TokenCounts,
    /// All samples with an answer, if several were requested; otherwise empty.
    pub samples: Vec<Sample>,
    /// The [windows](crate::Windows) that the score comes from, best first. The answer is that of the first one.
    /// Empty if the reranker has no windows.
    #[cfg_attr(feature = "serde", serde(default))]
    pub windows: Vec<ScoredWindow>,
}

/// A window of a document with its score.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ScoredWindow {
    /// The window's byte range in the document's text. It begins and ends at character boundaries.
    pub bytes: Range<usize>,
    /// The window's score, before fusion.
    pub score: f64,
}

/// One of several samples of a document.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Sample {
    /// The sample's score, before fusion.
    pub score: f64,
    /// The sample's relevance on a scale from 0 to 1, as in [`RankedDocument::relevance`].
    pub relevance: Option<f64>,
    /// The model's answer and reasoning.
    pub answer: Answer,
    /// The reason that generation ended.
    pub finish_reason: FinishReason,
    /// The numbers of tokens processed.
    pub tokens: TokenCounts,
}

/// A document without a score, or with a [partial](Ranking::partially_scored) one.
#[derive(Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DocumentFailure {
    /// The document's index in the request.
    pub index: usize,
    /// The caller's identifier of the document.
    pub id: Option<String>,
    /// The error.
    pub error: DocumentError,
}

impl DocumentFailure {
    /// Describes the failure of the request's document at `index`.
    pub(crate) fn new(request: &Request<'_>, index: usize, error: DocumentError) -> Self {
        Self { index, id: request.documents[index].id.as_deref().map(str::to_owned), error }
    }
}
