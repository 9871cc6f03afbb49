//! The whole path from a request to a ranking.

use std::ops::ControlFlow;

use thiserror::Error;

use crate::answer::{Answer, AnswerError, AnswerProbability};
use crate::backend::{BackendError, DocumentError, Job, ScoringBackend};
use crate::cancellation::CancellationToken;
use crate::cascade::Cascade;
use crate::completion::TokenCounts;
use crate::fusion::{Fusion, best_first};
use crate::options::Sampling;
use crate::options::{Mode, ScoringOptions};
use crate::outcomes::{Outcomes, Pass, Tally};
use crate::progress::Progress;
use crate::prompt::{PromptTemplate, instructions};
use crate::ranking::{DocumentFailure, RankedDocument, Ranking};
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
    reading: AnswerProbability,
    score: ScoreKind,
    cascade: Option<Cascade>,
    fusion: Fusion,
    top_k: Option<usize>,
    on_progress: Option<Box<ProgressCallback>>,
}

pub(crate) type ProgressCallback = dyn Fn(&Progress) -> ControlFlow<()> + Send + Sync;

/// What a document is ranked by, before fusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ScoreKind {
    /// `N × P(N)`, as ERank's authors rank (arXiv 2509.00520, §3.2).
    #[default]
    ProbabilityWeighted,
    /// `Σ i·P(i)` over the allowed answers; needs a backend that gives their distribution.
    ExpectedValue,
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
                reading: AnswerProbability::default(),
                score: ScoreKind::default(),
                cascade: None,
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

    /// The same choices with a backend made of this one.
    #[cfg(feature = "async")]
    pub(crate) fn map_backend<C>(self, map: impl FnOnce(B) -> C) -> Reranker<C> {
        Reranker { backend: map(self.backend), choices: self.choices }
    }

    /// Ranks the request's documents.
    ///
    /// # Errors
    /// [`RerankError`] when the backend fails as a whole; it holds what was done until then. What
    /// goes wrong with single documents stands in [`Ranking::unscored`].
    pub fn rerank(&self, request: &Request<'_>) -> Result<Ranking, RerankError> {
        self.rerank_with_cancellation(request, &CancellationToken::new())
    }

    /// As [`rerank`](Self::rerank), ending early once `stop` is set or past its deadline: the
    /// documents still open are then listed as [`DocumentError::Cancelled`].
    ///
    /// # Errors
    /// As [`rerank`](Self::rerank).
    pub fn rerank_with_cancellation(
        &self,
        request: &Request<'_>,
        stop: &CancellationToken,
    ) -> Result<Ranking, RerankError> {
        let choices = &self.choices;
        let (candidates, mut unscored) = choices.candidates(request);
        let progress = Progress {
            documents_done: unscored.len(),
            documents: request.documents.len(),
            tokens: TokenCounts::default(),
        };
        let mut tally = Tally { progress, stop, on_progress: choices.on_progress.as_deref() };

        let estimate = |answer: &Answer| Ok(answer.best_estimate());
        let mut pass = choices.pass(request, &candidates);
        if choices.cascade.is_some() {
            pass.options.mode = Mode::AnswerOnly;
            pass.options.sampling = Sampling::default();
            pass.options.samples = 1;
            pass.score = &estimate;
        }
        let Scores { scored, without, mut incomplete, mut result } = self.run(&pass, &mut tally);
        unscored.extend(without);
        unscored.sort_by_key(|document| document.index);
        let mut documents = choices.order(scored);

        if let (Some(cascade), Ok(())) = (choices.cascade, &result) {
            let stretches = cascade.stretches(&documents, choices.top_k.unwrap_or(usize::MAX));
            let chosen: Vec<usize> =
                stretches.iter().flat_map(|s| &documents[s.clone()]).map(|d| d.index).collect();
            tally.progress.documents += chosen.len();
            let second = self.run(&choices.pass(request, &chosen), &mut tally);
            let thought_about = choices.order(second.scored);
            for stretch in stretches {
                resort(&mut documents[stretch], &thought_about);
            }
            // What fails now keeps its first answer.
            incomplete.extend(second.without.into_iter().chain(second.incomplete));
            result = second.result;
        }
        incomplete.sort_by_key(|document| document.index);

        let scored = documents.len();
        documents.truncate(choices.top_k.unwrap_or(usize::MAX));
        let tokens = tally.progress.tokens;
        let ranking = Ranking { documents, scored, unscored, incomplete, tokens };
        match result {
            Ok(()) => Ok(ranking),
            Err(source) => Err(RerankError { source, partial: Box::new(ranking) }),
        }
    }

    /// Has the backend score a pass's documents.
    fn run(&self, pass: &Pass<'_>, tally: &mut Tally<'_>) -> Scores {
        let texts: Vec<&str> =
            pass.indices.iter().map(|&index| pass.request.documents[index].text.as_ref()).collect();
        let job = Job {
            prompt: pass.template.bind(&self.choices.instruction, &pass.request.query),
            documents: &texts,
            options: pass.options,
            cancellation: tally.stop.clone(),
        };
        let mut outcomes = Outcomes::new(pass, tally);
        let result =
            if texts.is_empty() { Ok(()) } else { self.backend.score(&job, &mut outcomes) };
        let (mut scored, mut without, mut incomplete) = (Vec::new(), Vec::new(), Vec::new());
        let named = |index, error| {
            let error = match error {
                DocumentError::NotReported if result.is_err() => DocumentError::NotReached,
                error => error,
            };
            DocumentFailure::of(pass.request, index, error)
        };
        for (index, outcome) in outcomes.into_results() {
            match outcome {
                Ok((document, lacking)) => {
                    scored.push(document);
                    incomplete.extend(lacking.map(|error| named(index, error)));
                }
                Err(error) => without.push(named(index, error)),
            }
        }
        Scores { scored, without, incomplete, result }
    }
}

/// What came of a pass.
struct Scores {
    scored: Vec<RankedDocument>,
    without: Vec<DocumentFailure>,
    /// Of the scored ones, those that lack samples.
    incomplete: Vec<DocumentFailure>,
    result: Result<(), BackendError>,
}

/// Sorts a stretch as in `thought_about`, the best first; documents that are not there come last and
/// keep their order.
fn resort(stretch: &mut [RankedDocument], thought_about: &[RankedDocument]) {
    let place = |index: usize| thought_about.iter().position(|document| document.index == index);
    stretch.sort_by_key(|document| place(document.index).unwrap_or(usize::MAX));
    for document in stretch {
        if let Some(place) = place(document.index) {
            *document = thought_about[place].clone();
        }
    }
}

impl Choices {
    /// The documents to score, and those that cannot be, known without the model.
    fn candidates(&self, request: &Request<'_>) -> (Vec<usize>, Vec<DocumentFailure>) {
        let (mut candidates, mut unscored) = (Vec::new(), Vec::new());
        for (index, document) in request.documents.iter().enumerate() {
            match self.unscorable(document) {
                None => candidates.push(index),
                Some(error) => unscored.push(DocumentFailure::of(request, index, error)),
            }
        }
        (candidates, unscored)
    }

    fn unscorable(&self, document: &Document<'_>) -> Option<DocumentError> {
        if document.text.trim().is_empty() {
            return Some(DocumentError::Empty);
        }
        let has_score = document.first_stage_score.is_some_and(f64::is_finite);
        (self.fusion != Fusion::None && !has_score).then_some(DocumentError::NoFirstStageScore)
    }

    /// A pass over these documents, as chosen.
    fn pass<'a>(&'a self, request: &'a Request<'a>, indices: &'a [usize]) -> Pass<'a> {
        Pass {
            request,
            template: &self.template,
            options: self.options,
            reading: self.reading,
            score: self.score.function(),
            indices,
        }
    }

    /// Fuses the scores and puts the best first; ties keep the request's order.
    fn order(&self, mut documents: Vec<RankedDocument>) -> Vec<RankedDocument> {
        let first_stage: Vec<f64> = documents.iter().filter_map(|d| d.first_stage_score).collect();
        let reranker: Vec<f64> = documents.iter().map(|document| document.score).collect();
        let fused = self.fusion.fuse(&first_stage, &reranker);
        for (document, score) in documents.iter_mut().zip(&fused) {
            document.score = *score;
        }
        let mut documents: Vec<_> = documents.into_iter().map(Some).collect();
        best_first(&fused).into_iter().filter_map(|index| documents[index].take()).collect()
    }
}

impl ScoreKind {
    fn function(self) -> &'static dyn Fn(&Answer) -> Result<f64, AnswerError> {
        match self {
            Self::ProbabilityWeighted => &|answer| {
                answer.probability_weighted().ok_or(AnswerError::NoProbability("log-probabilities"))
            },
            Self::ExpectedValue => &|answer| {
                answer
                    .expected_value
                    .ok_or(AnswerError::NoProbability("distribution over the answers"))
            },
            Self::Integer => &|answer| Ok(f64::from(answer.integer)),
        }
    }
}

/// The backend failed as a whole.
#[derive(Debug, Error)]
#[error("the ranking is incomplete; its field `partial` has what was done")]
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

    /// Chooses the tokens of the thought other than greedily.
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.choices.options.sampling = sampling;
        self
    }

    /// Consensus: ranks by the mean score of this many samples of each document, which takes a
    /// [`sampling`](Self::sampling) temperature above 0. ERank's authors report gains from it
    /// (arXiv 2509.00520, §3.2).
    pub fn samples(mut self, samples: usize) -> Self {
        self.choices.options.samples = samples;
        self
    }

    /// Scores all documents cheaply first and thinks only about some.
    pub fn cascade(mut self, cascade: Cascade) -> Self {
        self.choices.cascade = Some(cascade);
        self
    }

    /// How an answer's probability is read.
    pub fn probability(mut self, reading: AnswerProbability) -> Self {
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
    /// [`rerank`](Reranker::rerank); [`ControlFlow::Break`] stops the work, and with it the handle that
    /// [`rerank_with_cancellation`](Reranker::rerank_with_cancellation) was given.
    ///
    /// It is called for every request, and not told for which. To watch one among many, build a reranker
    /// for it, of a reference to the backend or an [`Arc`](std::sync::Arc): no model is loaded again.
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
        let ScoringOptions { mode, sampling, samples, max_query_tokens, max_document_tokens } =
            self.choices.options;
        let limits = [
            ("top_k", self.choices.top_k == Some(0)),
            ("max_tokens", mode == Mode::Reason { max_tokens: 0 }),
            ("max_query_tokens", max_query_tokens == 0),
            ("max_document_tokens", max_document_tokens == 0),
            ("samples", samples == 0),
            (
                "the cascade's number of documents",
                self.choices.cascade.is_some_and(|c| c.most == 0),
            ),
        ];
        if let Some((name, _)) = limits.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(ConfigError::Zero(name));
        }
        sampling.check()?;
        if samples > 1 && (sampling.is_greedy() || !mode.is_reason()) {
            return Err(ConfigError::EqualSamples);
        }
        if self.choices.cascade.is_some() && !mode.is_reason() {
            return Err(ConfigError::CascadeWithoutThought);
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
    /// A sampling setting outside its range.
    #[error("the sampling setting {name} is {value}; it must be {}", Sampling::range(name))]
    Sampling {
        /// The setting's name.
        name: &'static str,
        /// Its value.
        value: f32,
    },
    /// Several samples that would all be the same.
    #[error(
        "several samples are all the same without a thought sampled at a temperature above 0; ask for one"
    )]
    EqualSamples,
    /// A cascade whose second pass would not think either.
    #[error("a cascade thinks in its second pass; leave out either the cascade or answer-only")]
    CascadeWithoutThought,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Sink;
    use crate::completion::Completion;
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
        assert_eq!(ranking.documents[0].answer.integer, 4);
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
        // The document is not to blame, nor is the backend's contract.
        assert!(matches!(
            error.partial.unscored[..],
            [DocumentFailure { index: 1, error: DocumentError::NotReached, .. }]
        ));
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
        let stopped = |d: &&DocumentFailure| matches!(d.error, DocumentError::Cancelled);
        assert_eq!(ranking.unscored.iter().filter(stopped).count(), 2);
    }

    #[test]
    fn samples_are_averaged_and_kept() {
        let script = [
            answered(2, 1.0),
            answered(9, 1.0),
            answered(4, 1.0),
            Completion::new("<think>…"),
            answered(3, 1.0),
            Completion::new("<think>…"),
            Completion::new("<think>…"),
            Completion::new(""),
            Completion::new("<think>…"),
        ];
        let reranker = Reranker::builder(ScriptedBackend::new(script))
            .sampling(Sampling::with_temperature(0.7))
            .samples(3)
            .build()
            .expect("valid");
        let ranking = reranker.rerank(&Request::new("q", ["a", "b", "c"])).expect("a ranking");
        let [a, b] = &ranking.documents[..] else { panic!("{ranking:?}") };
        assert_eq!((a.index, a.score, a.answer.integer), (0, 5.0, 4));
        assert!((a.std_dev - (26.0f64 / 3.0).sqrt()).abs() < 1e-12);
        let integers = |d: &RankedDocument| {
            d.samples.iter().map(|sample| sample.answer.integer).collect::<Vec<_>>()
        };
        assert_eq!(integers(a), [2, 9, 4]);
        // Samples without an answer do not count as 0, and are not passed over in silence.
        assert_eq!((b.index, b.score, integers(b)), (1, 3.0, vec![3]));
        assert_eq!(ranking.unscored.len(), 1);
        assert!(matches!(
            ranking.incomplete[..],
            [DocumentFailure {
                index: 1,
                error: DocumentError::Answer(AnswerError::ThoughtNotClosed),
                ..
            }]
        ));
    }

    #[test]
    fn a_sample_that_never_came_is_missed() {
        struct TwoOfThree;
        impl ScoringBackend for TwoOfThree {
            fn name(&self) -> &str {
                "two of three"
            }
            fn score(&self, _: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
                (0..2).for_each(|_| sink.completed(0, Ok(answered(4, 1.0))));
                Ok(())
            }
        }
        let builder = Reranker::builder(TwoOfThree).sampling(Sampling::with_temperature(0.7));
        let reranker = builder.samples(3).build().expect("valid");
        let ranking = reranker.rerank(&Request::new("q", ["a"])).expect("a ranking");
        assert_eq!(ranking.documents[0].samples.len(), 2);
        assert!(matches!(ranking.incomplete[0].error, DocumentError::NotReported));
    }

    #[test]
    fn a_stop_in_a_cascades_second_pass_is_told() {
        let request = Request::new("q", ["51,0", "82,0", "28,0"]);
        let reranker = Reranker::builder(Numbers)
            .cascade(Cascade::best(2))
            .on_progress(|progress| match progress.documents_done {
                0..4 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            })
            .build()
            .expect("valid");
        let ranking = reranker.rerank(&request).expect("a ranking");
        // The best was thought about before the stop, the next was not.
        assert_eq!((indices(&ranking), ranking.scored), (vec![1, 0, 2], 3));
        assert!(ranking.unscored.is_empty());
        assert!(matches!(
            ranking.incomplete[..],
            [DocumentFailure { index: 0, error: DocumentError::Cancelled, .. }]
        ));
    }

    /// Answers each document with the number it consists of: at once a tenth of it, with the
    /// deviation that stands behind a comma.
    struct Numbers;
    impl ScoringBackend for Numbers {
        fn name(&self) -> &str {
            "numbers"
        }
        fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
            for (index, document) in job.documents.iter().enumerate() {
                let (number, unsure) = document.split_once(',').expect("two numbers");
                let number: u32 = number.parse().expect("a number");
                let answer = if job.options.mode.is_reason() { number % 10 } else { number / 10 };
                let mut completion = answered(answer, 0.9);
                let unsure: f64 = unsure.parse().expect("a number");
                let mut shares = [0.0; 11];
                shares[answer as usize] = 1.0 - unsure;
                shares[answer as usize + 1] = unsure / 2.0;
                shares[answer as usize - 1] = unsure / 2.0;
                completion.answer_distribution =
                    crate::AnswerDistribution::new(shares.map(f64::ln)).ok();
                let fails = job.options.mode.is_reason() && number == 77;
                let outcome = match fails {
                    _ if job.cancellation.is_cancelled() => Err(DocumentError::Cancelled),
                    true => Err(DocumentError::Backend("on purpose".into())),
                    false => Ok(completion),
                };
                sink.completed(index, outcome);
            }
            Ok(())
        }
    }

    #[test]
    fn a_cascade_thinks_about_the_best() {
        let request = Request::new("q", ["51,0", "82,0", "77,0", "89,0", "28,0"]);
        let reranker = Reranker::builder(Numbers).cascade(Cascade::best(3)).build().expect("valid");
        let ranking = reranker.rerank(&request).expect("a ranking");
        // 82 and 89 tie at first; 77 cannot be thought about, and keeps its first answer.
        assert_eq!(indices(&ranking), [3, 1, 2, 0, 4]);
        let reasoned: Vec<bool> = ranking.documents.iter().map(|d| d.mode.is_reason()).collect();
        assert_eq!(reasoned, [true, true, false, false, false]);
        assert!(ranking.unscored.is_empty());
        assert!(matches!(
            ranking.incomplete[..],
            [DocumentFailure { index: 2, error: DocumentError::Backend(_), .. }]
        ));
    }

    #[test]
    fn a_cascade_thinks_where_places_are_uncertain() {
        // 8 is sure; the two sixes and the five are not told apart; 3 is sure; the twos are.
        let request =
            Request::new("q", ["21,0.5", "29,0.5", "38,0", "63,0.9", "68,0.9", "59,0.9", "81,0"]);
        let rank = |cascade, top_k| {
            let builder = Reranker::builder(Numbers).cascade(cascade).top_k(top_k);
            indices(&builder.build().expect("valid").rerank(&request).expect("a ranking"))
        };
        assert_eq!(rank(Cascade::uncertain(7), 7), [6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(rank(Cascade::uncertain(3), 7), [6, 5, 4, 3, 2, 0, 1]);
        assert_eq!(rank(Cascade::uncertain(7), 2), [6, 5]);
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
        for score in [ScoreKind::ProbabilityWeighted, ScoreKind::ExpectedValue] {
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
        assert_eq!(error(builder().samples(2)), Some(ConfigError::EqualSamples));
        let cold = Sampling::with_temperature(-0.1);
        let expected = ConfigError::Sampling { name: "temperature", value: -0.1 };
        assert!(expected.to_string().ends_with("is -0.1; it must be finite and at least 0"));
        assert_eq!(error(builder().sampling(cold)), Some(expected));
        let cascade = builder().cascade(Cascade::best(3)).answer_only();
        assert_eq!(error(cascade), Some(ConfigError::CascadeWithoutThought));
    }

    #[test]
    fn an_empty_request_is_an_empty_ranking() {
        let reranker = Reranker::builder(ScriptedBackend::new([])).build().expect("valid");
        let none: [&str; 0] = [];
        let ranking = reranker.rerank(&Request::new("q", none)).expect("a ranking");
        assert!(ranking.documents.is_empty() && ranking.unscored.is_empty());
    }
}
