//! The reranker: from a request to a ranking.

use std::collections::HashMap;

use thiserror::Error;

use crate::answer::AnswerProbability;
use crate::backend::{BackendError, DocumentError, ScoringBackend};
use crate::calibration::Calibration;
use crate::cancellation::CancellationToken;
use crate::cascade::{Cascade, FirstPass};
use crate::completion::TokenCounts;
use crate::fusion::{Fusion, best_first};
use crate::options::{ConfigError, Mode, Sampling, ScoringOptions};
use crate::pass::{Pass, PassDocument, PassResults, ProgressTracker};
use crate::progress::{Progress, ProgressCallback};
use crate::prompt::PromptTemplate;
use crate::ranking::{DocumentFailure, RankedDocument, Ranking};
use crate::request::{Document, Request};
use crate::score::ScoreKind;
use crate::windows::{Split, Windows};

/// Reranks requests with one backend and one configuration. Any number of threads can share it.
///
/// ```
/// use erank_core::prompt::instructions;
/// use erank_core::testing::ScriptedBackend;
/// use erank_core::{Document, Fusion, Request, Reranker};
///
/// let backend = ScriptedBackend::texts(["<answer>2</answer>", "<answer>8</answer>"]);
/// let reranker = Reranker::builder(backend)
///     .instruction(instructions::BEIR)
///     .fusion(Fusion::hybrid())
///     .top_k(1)
///     .build()?;
/// let request = Request::new("jet noise", [
///     Document::new("A recipe for bread.").with_first_stage_score(1.2),
///     Document::new("Jet noise was measured.").with_first_stage_score(3.4),
/// ]);
/// let ranking = reranker.rerank(&request)?;
/// assert_eq!(ranking.documents.len(), 1);
/// assert_eq!(ranking.documents[0].index, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Reranker<B> {
    pub(crate) backend: B,
    pub(crate) config: Config,
}

/// The configuration of a reranker.
pub(crate) struct Config {
    pub(crate) template: PromptTemplate,
    /// The instruction for requests without one. `None` stands for the template's.
    pub(crate) instruction: Option<String>,
    pub(crate) options: ScoringOptions,
    pub(crate) probability: AnswerProbability,
    pub(crate) score: ScoreKind,
    pub(crate) cascade: Option<Cascade>,
    /// `None` stands for a first pass by the reranker's backend.
    pub(crate) first_pass: Option<FirstPass>,
    pub(crate) windows: Option<Windows>,
    pub(crate) fusion: Fusion,
    pub(crate) calibration: Option<Calibration>,
    pub(crate) min_score: Option<f64>,
    pub(crate) top_k: Option<usize>,
    pub(crate) on_progress: Option<Box<ProgressCallback>>,
}

impl<B: ScoringBackend> Reranker<B> {
    /// Returns the backend. If there is a [`FirstPass`], this is the backend of the second pass.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Returns the indices of the request's documents that a backend gets, in the order of a [`Job`](crate::Job). Also
    /// returns the failures of the other documents, which [`Ranking::unscored`] lists.
    ///
    /// A backend that wraps another one uses the indices to map a job's documents to the request's. With
    /// [windows](crate::RerankerBuilder::windows), a job has several texts of a document, and in the second pass of a
    /// cascade, it has only some of the documents.
    ///
    /// ```
    /// use erank_core::testing::ScriptedBackend;
    /// use erank_core::{Request, Reranker};
    ///
    /// let reranker = Reranker::builder(ScriptedBackend::texts([""])).build()?;
    /// let (indices, failures) = reranker.candidates(&Request::new("q", ["a", " ", "b"]));
    /// assert_eq!((indices, failures[0].index), (vec![0, 2], 1));
    /// # Ok::<(), erank_core::ConfigError>(())
    /// ```
    pub fn candidates(&self, request: &Request<'_>) -> (Vec<usize>, Vec<DocumentFailure>) {
        self.config.candidates(request)
    }

    /// Replaces the backend by one made from it, and the first pass's backend, too.
    #[cfg(feature = "async")]
    pub(crate) fn map_backends<C>(
        mut self,
        map: impl FnOnce(B) -> C,
        map_first: impl FnOnce(Box<dyn ScoringBackend>) -> Box<dyn ScoringBackend>,
    ) -> Reranker<C> {
        self.config.first_pass = self
            .config
            .first_pass
            .map(|first| FirstPass { backend: map_first(first.backend), ..first });
        Reranker { backend: map(self.backend), config: self.config }
    }

    /// Ranks the request's documents.
    ///
    /// # Errors
    /// Returns a [`RerankError`] if the backend fails as a whole. It contains the ranking of the
    /// documents scored before the failure. Errors of single documents are in [`Ranking::unscored`].
    /// An invalid [minimum score](Request::min_score) of the request is [`BackendError::Unsupported`].
    pub fn rerank(&self, request: &Request<'_>) -> Result<Ranking, RerankError> {
        self.rerank_with_cancellation(request, &CancellationToken::new())
    }

    /// Ranks the request's documents until `cancellation` is cancelled. The remaining documents are then
    /// listed in [`Ranking::unscored`] with [`DocumentError::Cancelled`].
    ///
    /// # Errors
    /// Returns the errors of [`rerank`](Self::rerank).
    pub fn rerank_with_cancellation(
        &self,
        request: &Request<'_>,
        cancellation: &CancellationToken,
    ) -> Result<Ranking, RerankError> {
        let config = &self.config;
        let (candidates, mut unscored) = config.candidates(request);
        let (candidates, split) = self.split(request, &candidates, cancellation, &mut unscored);
        let progress = Progress {
            documents_done: unscored.len(),
            documents: request.documents.len(),
            tokens: TokenCounts::default(),
        };
        let on_progress = config.on_progress.as_deref();
        let mut tracker = ProgressTracker { progress, cancellation, on_progress };

        let first = match config.check_min_score(request.min_score) {
            Ok(()) => self.first_pass(request, &candidates, &mut tracker),
            Err(error) => PassResults::refused(request, &candidates, error),
        };
        unscored.extend(first.unscored);
        unscored.sort_by_key(|document| document.index);
        let mut documents = config.order(first.scored);
        let (mut partially_scored, mut result) = (first.partially_scored, split.and(first.result));
        if let (Some(cascade), Ok(())) = (config.cascade, &result) {
            let failures;
            (failures, result) =
                self.second_pass(cascade, request, &candidates, &mut documents, &mut tracker);
            partially_scored.extend(failures);
        }
        partially_scored.sort_by_key(|document| document.index);

        let scored_count = documents.len();
        let below_min_score = config.take_below_min_score(request, &mut documents);
        documents.truncate(config.top_k.unwrap_or(usize::MAX));
        let tokens = tracker.progress.tokens;
        let ranking = Ranking {
            documents,
            scored_count,
            below_min_score,
            unscored,
            partially_scored,
            tokens,
        };
        match result {
            Ok(()) => Ok(ranking),
            Err(source) => Err(RerankError { source, partial: Box::new(ranking) }),
        }
    }

    /// Splits the documents at `indices` into windows, if the configuration has windows. Adds the documents that
    /// cannot be split to `unscored`.
    fn split(
        &self,
        request: &Request<'_>,
        indices: &[usize],
        cancellation: &CancellationToken,
        unscored: &mut Vec<DocumentFailure>,
    ) -> (Vec<PassDocument>, Result<(), BackendError>) {
        let first_pass = self.config.first_pass.as_ref();
        let backend: &dyn ScoringBackend =
            first_pass.map_or(&self.backend, |first| first.backend.as_ref());
        let (mut documents, mut result) = (Vec::new(), Ok(()));
        for &index in indices {
            let text = request.documents[index].text.as_ref();
            let split = match self.config.windows {
                None => Ok(Split::whole(text)),
                Some(_) if result.is_err() => Err(DocumentError::NotReached),
                Some(_) if cancellation.is_cancelled() => Err(DocumentError::Cancelled),
                Some(windows) => windows
                    .split(text, |part, count| backend.token_ends(part, count))
                    .map_err(|error| match error {
                        BackendError::Failed(cause) => DocumentError::Backend(cause),
                        error => {
                            result = Err(error);
                            DocumentError::NotReached
                        }
                    }),
            };
            match split {
                Ok(split) => {
                    documents.push(PassDocument { index, split: split.without_blank(text) });
                }
                Err(error) => unscored.push(DocumentFailure::new(request, index, error)),
            }
        }
        (documents, result)
    }

    /// Scores all candidates, in answer-only mode if there is a cascade.
    fn first_pass(
        &self,
        request: &Request<'_>,
        candidates: &[PassDocument],
        tracker: &mut ProgressTracker<'_>,
    ) -> PassResults {
        let mut pass = self.config.pass(request, candidates);
        let mut backend: &dyn ScoringBackend = &self.backend;
        if let Some(first) = &self.config.first_pass {
            backend = &first.backend;
            pass.template = &first.template;
            let of_pass = first.instruction.as_deref();
            pass.instruction = self.config.instruction(request, of_pass, &first.template);
            pass.options = first.options.unwrap_or(pass.options);
        }
        if self.config.cascade.is_some() {
            pass.options.mode = Mode::AnswerOnly;
            pass.options.sampling = Sampling::default();
            pass.options.samples = 1;
            pass.score = None;
        }
        pass.run(backend, tracker)
    }

    /// Scores those of the `candidates` that the cascade selects, and sorts their ranges by the new scores.
    fn second_pass(
        &self,
        cascade: Cascade,
        request: &Request<'_>,
        candidates: &[PassDocument],
        documents: &mut [RankedDocument],
        tracker: &mut ProgressTracker<'_>,
    ) -> (Vec<DocumentFailure>, Result<(), BackendError>) {
        let ranges = cascade.ranges(documents, self.config.top_k.unwrap_or(usize::MAX));
        let selected = ranges.iter().flat_map(|range| &documents[range.clone()]);
        let selected: Vec<PassDocument> = selected
            .filter_map(|ranked| {
                let found = candidates.binary_search_by_key(&ranked.index, |d| d.index).ok()?;
                Some(candidates[found].selected(ranked))
            })
            .collect();
        tracker.progress.documents += selected.len();
        let results = self.config.pass(request, &selected).run(&self.backend, tracker);
        let rescored = self.config.order(results.scored);
        let ranks: HashMap<usize, usize> =
            rescored.iter().enumerate().map(|(rank, document)| (document.index, rank)).collect();
        for range in ranges {
            sort_range(&mut documents[range], &rescored, &ranks);
        }
        // A document that failed in this pass keeps its first score, so it is partially scored.
        let failures = results.unscored.into_iter().chain(results.partially_scored).collect();
        (failures, results.result)
    }
}

/// Sorts the documents of `range` as in `rescored`, which holds them best first, and replaces them by
/// their new results. `ranks` has the position in `rescored` of each document's index. Documents that are not in
/// `rescored` move to the end and keep their order.
fn sort_range(
    range: &mut [RankedDocument],
    rescored: &[RankedDocument],
    ranks: &HashMap<usize, usize>,
) {
    let rank = |document: &RankedDocument| ranks.get(&document.index).copied();
    range.sort_by_key(|document| rank(document).unwrap_or(usize::MAX));
    for document in range {
        if let Some(rank) = rank(document) {
            *document = rescored[rank].clone();
        }
    }
}

impl Config {
    /// Returns the indices of the documents to score, and the documents that cannot be scored.
    fn candidates(&self, request: &Request<'_>) -> (Vec<usize>, Vec<DocumentFailure>) {
        let (mut candidates, mut unscored) = (Vec::new(), Vec::new());
        for (index, document) in request.documents.iter().enumerate() {
            match self.check(document) {
                Ok(()) => candidates.push(index),
                Err(error) => unscored.push(DocumentFailure::new(request, index, error)),
            }
        }
        (candidates, unscored)
    }

    /// Checks whether a document can be scored.
    fn check(&self, document: &Document<'_>) -> Result<(), DocumentError> {
        if document.is_blank() {
            return Err(DocumentError::Empty);
        }
        let has_score = document.first_stage_score.is_some_and(f64::is_finite);
        if self.fusion != Fusion::None && !has_score {
            return Err(DocumentError::NoFirstStageScore);
        }
        Ok(())
    }

    /// Returns the instruction of a request for a pass with `template`, whose own instruction is `of_pass`.
    fn instruction<'a>(
        &'a self,
        request: &'a Request<'_>,
        of_pass: Option<&'a str>,
        template: &PromptTemplate,
    ) -> &'a str {
        let of_request = request.instruction.as_deref();
        let chosen = of_request.or(of_pass).or(self.instruction.as_deref());
        chosen.unwrap_or(template.default_instruction())
    }

    /// Returns a pass over `documents` with the configured options.
    fn pass<'a>(&'a self, request: &'a Request<'a>, documents: &'a [PassDocument]) -> Pass<'a> {
        Pass {
            request,
            template: &self.template,
            instruction: self.instruction(request, None, &self.template),
            options: self.options,
            probability: self.probability,
            score: Some(self.score),
            windows: self.windows,
            needs_relevance: self.calibration.is_none() && self.min_score(request).is_some(),
            documents,
        }
    }

    /// Returns the minimum score of a request.
    fn min_score(&self, request: &Request<'_>) -> Option<f64> {
        request.min_score.or(self.min_score)
    }

    /// Checks a minimum score.
    pub(crate) fn check_min_score(&self, min_score: Option<f64>) -> Result<(), ConfigError> {
        let (smallest, largest) = self.template.answers().value_range();
        match min_score {
            Some(min_score) if !(0.0..=1.0).contains(&min_score) => {
                Err(ConfigError::MinScore(min_score))
            }
            Some(_) if smallest == largest && self.calibration.is_none() => {
                Err(ConfigError::MinScoreWithoutScale)
            }
            _ => Ok(()),
        }
    }

    /// Removes the documents below the request's minimum score, and returns them.
    fn take_below_min_score(
        &self,
        request: &Request<'_>,
        documents: &mut Vec<RankedDocument>,
    ) -> Vec<RankedDocument> {
        let Some(min_score) = self.min_score(request) else { return Vec::new() };
        let is_below = |document: &mut RankedDocument| {
            let value = document.relevance_probability.or(document.relevance);
            value.is_none_or(|value| value < min_score)
        };
        documents.extract_if(.., is_below).collect()
    }

    /// Fuses the scores and sorts the documents, best first. Ties keep their order.
    fn order(&self, mut documents: Vec<RankedDocument>) -> Vec<RankedDocument> {
        let first_stage: Vec<f64> = documents.iter().filter_map(|d| d.first_stage_score).collect();
        let reranker: Vec<f64> = documents.iter().map(|document| document.score).collect();
        let fused = self.fusion.fuse(&first_stage, &reranker);
        for (document, score) in documents.iter_mut().zip(&fused) {
            let calibration = self.calibration.as_ref();
            document.relevance_probability =
                calibration.map(|calibration| calibration.probability(document.score));
            document.score = *score;
        }
        let mut documents: Vec<_> = documents.into_iter().map(Some).collect();
        best_first(&fused).into_iter().filter_map(|index| documents[index].take()).collect()
    }
}

/// The error of a request whose backend failed as a whole.
#[derive(Debug, Error)]
#[error("the backend failed; `partial` has the documents scored before the failure")]
#[non_exhaustive]
pub struct RerankError {
    /// The backend's error.
    #[source]
    pub source: BackendError,
    /// The ranking of the documents scored before the failure.
    pub partial: Box<Ranking>,
}

#[cfg(test)]
mod tests;
