//! The whole path from a request to a ranking.

use std::ops::ControlFlow;

use thiserror::Error;

use crate::answer::{Answer, AnswerError, ProbabilityReading};
use crate::backend::{
    BackendError, Completion, DocumentError, Job, Mode, Progress, ScoringBackend, ScoringOptions,
    Sink, Stop, TokenCounts,
};
use crate::fusion::{Fusion, best_first};
use crate::prompt::{PromptTemplate, instructions};
use crate::ranking::{RankedDocument, Ranking, UnscoredDocument};
use crate::request::{Document, Request};

/// Reranks requests with one backend and one set of choices. Shared by any number of threads.
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
    backend: B,
    choices: Choices,
}

/// Everything but the backend that a [`RerankerBuilder`] sets.
struct Choices {
    template: PromptTemplate,
    instruction: String,
    options: ScoringOptions,
    reading: ProbabilityReading,
    score: ScoreKind,
    fusion: Fusion,
    top_k: Option<usize>,
    on_progress: Option<Box<ProgressCallback>>,
}

type ProgressCallback = dyn Fn(&Progress) -> ControlFlow<()> + Send + Sync;

/// What a document is ranked by, before fusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ScoreKind {
    /// `N × P(N)`, as ERank's authors rank (arXiv 2509.00520, §3.2).
    #[default]
    Official,
    /// `Σ i·P(i)` over the allowed answers; needs a backend that gives their distribution.
    Expected,
    /// The integer alone; needs no log-probabilities.
    Integer,
}

impl<B: ScoringBackend> Reranker<B> {
    /// Starts with the defaults: ERank's prompt, the generic instruction, thinking within 4,096
    /// tokens, the official score, no fusion, all documents ranked.
    pub fn builder(backend: B) -> RerankerBuilder<B> {
        RerankerBuilder {
            backend,
            choices: Choices {
                template: PromptTemplate::erank(),
                instruction: instructions::GENERIC.to_owned(),
                options: ScoringOptions::default(),
                reading: ProbabilityReading::default(),
                score: ScoreKind::default(),
                fusion: Fusion::default(),
                top_k: None,
                on_progress: None,
            },
        }
    }

    /// The backend that was given.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Ranks the request's documents.
    ///
    /// # Errors
    /// [`RerankError`] when the backend fails as a whole; it holds what was done until then. What
    /// goes wrong with single documents stands in [`Ranking::unscored`].
    pub fn rerank(&self, request: &Request<'_>) -> Result<Ranking, RerankError> {
        self.rerank_until(request, &Stop::new())
    }

    /// As [`rerank`](Self::rerank), ending early once `stop` is set or past its deadline: the
    /// documents still open are then listed as [`DocumentError::Stopped`].
    ///
    /// # Errors
    /// As [`rerank`](Self::rerank).
    pub fn rerank_until(&self, request: &Request<'_>, stop: &Stop) -> Result<Ranking, RerankError> {
        let choices = &self.choices;
        let mut outcomes = Outcomes::new(request, choices, stop);
        let scorable: Vec<usize> = outcomes.open().collect();
        let texts: Vec<&str> =
            scorable.iter().map(|&index| request.documents[index].text.as_ref()).collect();
        let job = Job {
            prompt: choices.template.bind(&choices.instruction, &request.query),
            documents: &texts,
            options: choices.options,
            stop: stop.clone(),
        };
        outcomes.indices = scorable;
        let result =
            if texts.is_empty() { Ok(()) } else { self.backend.score(&job, &mut outcomes) };
        let ranking = outcomes.into_ranking();
        match result {
            Ok(()) => Ok(ranking),
            Err(source) => Err(RerankError { source, partial: Box::new(ranking) }),
        }
    }
}

/// Collects outcomes by document and reads answers as they arrive.
struct Outcomes<'a> {
    request: &'a Request<'a>,
    choices: &'a Choices,
    stop: &'a Stop,
    /// The request's index of each of the job's documents.
    indices: Vec<usize>,
    /// By the request's index; `None` until something is known.
    outcomes: Vec<Option<Result<RankedDocument, DocumentError>>>,
    documents_done: usize,
    tokens: TokenCounts,
}

impl<'a> Outcomes<'a> {
    /// With the documents that cannot be scored already marked so.
    fn new(request: &'a Request<'a>, choices: &'a Choices, stop: &'a Stop) -> Self {
        let unscorable = |document| choices.unscorable(document).map(Err);
        let outcomes: Vec<_> = request.documents.iter().map(unscorable).collect();
        let documents_done = outcomes.iter().flatten().count();
        let tokens = TokenCounts::default();
        Self { request, choices, stop, indices: Vec::new(), outcomes, documents_done, tokens }
    }

    /// The indices of documents about which nothing is known yet.
    fn open(&self) -> impl Iterator<Item = usize> {
        let open = self.outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_none());
        open.map(|(index, _)| index)
    }

    fn report_progress(&self) {
        let Some(on_progress) = &self.choices.on_progress else { return };
        let progress = Progress {
            documents_done: self.documents_done,
            documents: self.outcomes.len(),
            tokens: self.tokens,
        };
        if on_progress(&progress).is_break() {
            self.stop.stop();
        }
    }

    fn into_ranking(self) -> Ranking {
        let mut scored = Vec::new();
        let mut unscored = Vec::new();
        for (index, outcome) in self.outcomes.into_iter().enumerate() {
            match outcome.unwrap_or(Err(DocumentError::NotReported)) {
                Ok(document) => scored.push(document),
                Err(error) => {
                    let id = self.request.documents[index].id.as_deref().map(str::to_owned);
                    unscored.push(UnscoredDocument { index, id, error });
                }
            }
        }

        let first_stage: Vec<f64> = scored.iter().filter_map(|d| d.first_stage_score).collect();
        let reranker: Vec<f64> = scored.iter().map(|document| document.score).collect();
        let fused = self.choices.fusion.fuse(&first_stage, &reranker);
        for (document, score) in scored.iter_mut().zip(&fused) {
            document.score = *score;
        }
        let mut scored: Vec<_> = scored.into_iter().map(Some).collect();
        let documents = best_first(&fused)
            .into_iter()
            .take(self.choices.top_k.unwrap_or(usize::MAX))
            .filter_map(|index| scored[index].take())
            .collect();
        Ranking { documents, unscored, tokens: self.tokens }
    }
}

impl Sink for Outcomes<'_> {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        // A backend that names an unknown document, or one twice, does no harm: the first counts.
        let Some(&index) = self.indices.get(index) else { return };
        if self.outcomes[index].is_some() {
            return;
        }
        let document = &self.request.documents[index];
        self.outcomes[index] =
            Some(outcome.and_then(|completion| self.choices.read(index, document, &completion)));
        self.documents_done += 1;
        self.report_progress();
    }

    fn advanced(&mut self, tokens: TokenCounts) {
        self.tokens += tokens;
        self.report_progress();
    }
}

impl Choices {
    /// Why a document cannot be scored, known without the model.
    fn unscorable(&self, document: &Document<'_>) -> Option<DocumentError> {
        if document.text.trim().is_empty() {
            return Some(DocumentError::Empty);
        }
        let has_score = document.first_stage_score.is_some_and(f64::is_finite);
        (self.fusion != Fusion::None && !has_score).then_some(DocumentError::NoFirstStageScore)
    }

    /// Reads a completion's answer and its score before fusion.
    fn read(
        &self,
        index: usize,
        document: &Document<'_>,
        completion: &Completion,
    ) -> Result<RankedDocument, DocumentError> {
        let answer = self.template.answers().parse(completion, self.reading)?;
        Ok(RankedDocument {
            index,
            id: document.id.as_deref().map(str::to_owned),
            score: self.score.of(&answer)?,
            integer: answer.integer,
            probability: answer.probability,
            official: answer.official(),
            expected: answer.expected,
            first_stage_score: document.first_stage_score,
            reasoning: answer.reasoning,
            truncated: completion.query_truncated || completion.document_truncated,
            finish: completion.finish,
            tokens: completion.usage,
        })
    }
}

impl ScoreKind {
    fn of(self, answer: &Answer) -> Result<f64, AnswerError> {
        match self {
            Self::Official => {
                answer.official().ok_or(AnswerError::NoProbability("log-probabilities"))
            }
            Self::Expected => {
                answer.expected.ok_or(AnswerError::NoProbability("distribution over the answers"))
            }
            Self::Integer => Ok(f64::from(answer.integer)),
        }
    }
}

/// The backend failed as a whole.
#[derive(Debug, Error)]
#[error("{source}")]
#[non_exhaustive]
pub struct RerankError {
    /// What happened, with what the caller can do about it.
    #[source]
    pub source: BackendError,
    /// What was done until then: nothing that was scored is lost.
    pub partial: Box<Ranking>,
}

/// Collects the choices for a [`Reranker`]; [`build`](Self::build) checks them all.
#[must_use]
pub struct RerankerBuilder<B> {
    backend: B,
    choices: Choices,
}

impl<B: ScoringBackend> RerankerBuilder<B> {
    /// Another prompt than ERank's own.
    pub fn template(mut self, template: PromptTemplate) -> Self {
        self.choices.template = template;
        self
    }

    /// The goal or relevance definition that stands in the prompt; presets are in
    /// [`instructions`]. It is trusted text: control tokens in it count.
    pub fn instruction(mut self, instruction: impl Into<String>) -> Self {
        self.choices.instruction = instruction.into();
        self
    }

    /// How to answer, and the limits.
    pub fn options(mut self, options: ScoringOptions) -> Self {
        self.choices.options = options;
        self
    }

    /// Answer at once, without thinking: one pass over the prompt.
    pub fn answer_only(mut self) -> Self {
        self.choices.options.mode = Mode::AnswerOnly;
        self
    }

    /// Think, and force the answer after this many tokens.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.choices.options.mode = Mode::Reason { max_tokens };
        self
    }

    /// How an answer's probability is read.
    pub fn probability(mut self, reading: ProbabilityReading) -> Self {
        self.choices.reading = reading;
        self
    }

    /// What documents are ranked by.
    pub fn score(mut self, score: ScoreKind) -> Self {
        self.choices.score = score;
        self
    }

    /// Joins in the first stage's scores; then every document needs one.
    pub fn fusion(mut self, fusion: Fusion) -> Self {
        self.choices.fusion = fusion;
        self
    }

    /// Keeps the best `top_k` in the ranking. All documents are scored all the same.
    pub fn top_k(mut self, top_k: usize) -> Self {
        self.choices.top_k = Some(top_k);
        self
    }

    /// Called while work goes on, from the thread that called
    /// [`rerank`](Reranker::rerank); [`ControlFlow::Break`] stops the work.
    pub fn on_progress(
        mut self,
        on_progress: impl Fn(&Progress) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        self.choices.on_progress = Some(Box::new(on_progress));
        self
    }

    /// The reranker.
    ///
    /// # Errors
    /// [`ConfigError`] names the choice that cannot be.
    pub fn build(self) -> Result<Reranker<B>, ConfigError> {
        match self.choices.fusion {
            Fusion::ZScore { first_stage_weight: w } if !(0.0..=1.0).contains(&w) => {
                return Err(ConfigError::FirstStageWeight(w));
            }
            Fusion::ReciprocalRank { k } if !(k > 0.0 && k.is_finite()) => {
                return Err(ConfigError::ReciprocalRankConstant(k));
            }
            _ => {}
        }
        let ScoringOptions { mode, max_query_tokens, max_document_tokens } = self.choices.options;
        let limits = [
            ("top_k", self.choices.top_k == Some(0)),
            ("max_tokens", mode == Mode::Reason { max_tokens: 0 }),
            ("max_query_tokens", max_query_tokens == 0),
            ("max_document_tokens", max_document_tokens == 0),
        ];
        if let Some((name, _)) = limits.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(ConfigError::Zero(name));
        }
        Ok(Reranker { backend: self.backend, choices: self.choices })
    }
}

/// A choice that cannot be.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A limit of 0.
    #[error("{0} is 0; it must be at least 1")]
    Zero(&'static str),
    /// A weight outside `[0, 1]`.
    #[error("the first stage's weight is {0}; it must lie between 0 and 1")]
    FirstStageWeight(f64),
    /// A constant of reciprocal rank fusion that is not positive.
    #[error("the constant of reciprocal rank fusion is {0}; it must be positive")]
    ReciprocalRankConstant(f64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ScriptedBackend, answered};

    fn indices(ranking: &Ranking) -> Vec<usize> {
        ranking.documents.iter().map(|document| document.index).collect()
    }

    #[test]
    fn ties_keep_the_request_order() {
        let answers = [3, 7, 3, 7, 7].map(|integer| answered(integer, 0.5));
        let reranker = Reranker::builder(ScriptedBackend::new(answers)).build().expect("valid");
        let ranking =
            reranker.rerank(&Request::new("q", ["a", "b", "c", "d", "e"])).expect("a ranking");
        assert_eq!(indices(&ranking), [1, 3, 4, 0, 2]);
        assert!((ranking.documents[0].score - 3.5).abs() < 1e-6);
    }

    #[test]
    fn one_bad_document_spares_the_others() {
        let completions = [answered(1, 1.0), Completion::new("<think>…"), answered(5, 1.0)];
        let reranker = Reranker::builder(ScriptedBackend::new(completions)).build().expect("valid");
        let request = Request::new(
            "q",
            [
                Document::new("a").with_id("A"),
                Document::new(" \n").with_id("blank"),
                Document::new("b").with_id("B"),
                Document::new("c"),
            ],
        );
        let ranking = reranker.rerank(&request).expect("a ranking");
        assert_eq!(indices(&ranking), [3, 0]);
        assert_eq!(ranking.documents[1].id.as_deref(), Some("A"));
        let unscored: Vec<_> =
            ranking.unscored.iter().map(|document| (document.index, &document.error)).collect();
        assert!(matches!(
            unscored[..],
            [(1, DocumentError::Empty), (2, DocumentError::Answer(AnswerError::ThoughtNotClosed))]
        ));
    }

    #[test]
    fn a_backend_that_misreports_does_no_harm() {
        struct Careless;
        impl ScoringBackend for Careless {
            fn name(&self) -> &str {
                "careless"
            }
            fn score(&self, _: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
                sink.completed(1, Ok(answered(4, 1.0)));
                sink.completed(1, Ok(answered(9, 1.0)));
                sink.completed(77, Ok(answered(9, 1.0)));
                Ok(())
            }
        }
        let reranker = Reranker::builder(Careless).build().expect("valid");
        let ranking = reranker.rerank(&Request::new("q", ["a", "b"])).expect("a ranking");
        assert_eq!(ranking.documents[0].integer, 4);
        assert!(matches!(ranking.unscored[0].error, DocumentError::NotReported));
    }

    #[test]
    fn a_failing_backend_keeps_what_was_done() {
        struct Fails;
        impl ScoringBackend for Fails {
            fn name(&self) -> &str {
                "fails"
            }
            fn score(&self, _: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
                sink.completed(0, Ok(answered(4, 1.0)));
                Err(BackendError::Unavailable("no more".into()))
            }
        }
        let backend: Box<dyn ScoringBackend> = Box::new(Fails);
        let reranker = Reranker::builder(backend).build().expect("valid");
        let error = reranker.rerank(&Request::new("q", ["a", "b"])).expect_err("it fails");
        assert!(matches!(error.source, BackendError::Unavailable(_)));
        assert_eq!(indices(&error.partial), [0]);
        assert_eq!(error.partial.unscored.len(), 1);
    }

    #[test]
    fn progress_counts_documents_and_can_stop() {
        let answers = vec![answered(5, 1.0); 4];
        let reranker = Reranker::builder(ScriptedBackend::new(answers))
            .on_progress(|progress| {
                assert_eq!(progress.documents, 5);
                if progress.documents_done >= 3 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .build()
            .expect("valid");
        let ranking =
            reranker.rerank(&Request::new("q", ["a", "", "b", "c", "d"])).expect("a ranking");
        // The blank one counts as done from the start.
        assert_eq!(indices(&ranking), [0, 2]);
        let stopped = |d: &&UnscoredDocument| matches!(d.error, DocumentError::Stopped);
        assert_eq!(ranking.unscored.iter().filter(stopped).count(), 2);
    }

    #[test]
    fn hybrid_needs_every_first_stage_score() {
        let reranker =
            Reranker::builder(ScriptedBackend::new([answered(5, 1.0), answered(5, 1.0)]))
                .fusion(Fusion::hybrid())
                .build()
                .expect("valid");
        let request = Request::new(
            "q",
            [
                Document::new("a").with_first_stage_score(1.0),
                Document::new("b"),
                Document::new("c").with_first_stage_score(f64::NAN),
                Document::new("d").with_first_stage_score(2.0),
            ],
        );
        let ranking = reranker.rerank(&request).expect("a ranking");
        assert_eq!(indices(&ranking), [3, 0]);
        assert_eq!(ranking.unscored.len(), 2);
        assert!(ranking.documents.iter().all(|document| document.score.is_finite()));
    }

    #[test]
    fn the_score_needs_what_it_is_made_of() {
        let text = || ScriptedBackend::new([Completion::new("<answer>6</answer>")]);
        let rank = |score| {
            let reranker = Reranker::builder(text()).score(score).build().expect("valid");
            reranker.rerank(&Request::new("q", ["a"])).expect("a ranking")
        };
        assert_eq!(rank(ScoreKind::Integer).documents[0].score, 6.0);
        for score in [ScoreKind::Official, ScoreKind::Expected] {
            assert!(matches!(
                rank(score).unscored[0].error,
                DocumentError::Answer(AnswerError::NoProbability(_))
            ));
        }
    }

    #[test]
    fn impossible_choices_are_named() {
        let builder = || Reranker::builder(ScriptedBackend::new([]));
        let error = |builder: RerankerBuilder<_>| builder.build().err();
        assert_eq!(error(builder().top_k(0)), Some(ConfigError::Zero("top_k")));
        assert_eq!(error(builder().max_tokens(0)), Some(ConfigError::Zero("max_tokens")));
        let weight = Fusion::ZScore { first_stage_weight: 1.5 };
        assert_eq!(error(builder().fusion(weight)), Some(ConfigError::FirstStageWeight(1.5)));
        let constant = Fusion::ReciprocalRank { k: 0.0 };
        let expected = Some(ConfigError::ReciprocalRankConstant(0.0));
        assert_eq!(error(builder().fusion(constant)), expected);
    }

    #[test]
    fn an_empty_request_is_an_empty_ranking() {
        let reranker = Reranker::builder(ScriptedBackend::new([])).build().expect("valid");
        let none: [&str; 0] = [];
        let ranking = reranker.rerank(&Request::new("q", none)).expect("a ranking");
        assert!(ranking.documents.is_empty() && ranking.unscored.is_empty());
    }
}
