//! The builder of a reranker.

use std::ops::ControlFlow;

use crate::answer::AnswerProbability;
use crate::backend::ScoringBackend;
use crate::calibration::Calibration;
use crate::cascade::{Cascade, FirstPass};
use crate::fusion::Fusion;
use crate::options::{ConfigError, Mode, Sampling, ScoringOptions};
use crate::progress::Progress;
use crate::prompt::PromptTemplate;
use crate::reranker::{Config, Reranker};
use crate::score::ScoreKind;
use crate::windows::Windows;

impl<B: ScoringBackend> Reranker<B> {
    /// Returns a builder with the defaults: ERank's prompt with its instruction, reasoning of up to 4,096
    /// tokens, the score of [`ScoreKind::default_for`], no fusion, and all documents ranked.
    pub fn builder(backend: B) -> RerankerBuilder<B> {
        let template = PromptTemplate::erank();
        RerankerBuilder {
            backend,
            score: None,
            config: Config {
                score: ScoreKind::default_for(template.answers()),
                template,
                instruction: None,
                options: ScoringOptions::default(),
                probability: AnswerProbability::default(),
                cascade: None,
                first_pass: None,
                windows: None,
                fusion: Fusion::default(),
                calibration: None,
                min_score: None,
                top_k: None,
                on_progress: None,
            },
        }
    }
}

/// A builder of a [`Reranker`]. [`build`](Self::build) checks the whole configuration.
#[must_use]
pub struct RerankerBuilder<B> {
    backend: B,
    score: Option<ScoreKind>,
    config: Config,
}

impl<B: ScoringBackend> RerankerBuilder<B> {
    /// Sets the prompt template. The default is ERank's own prompt. A template with a
    /// [bare](crate::AnswerFormat::bare) answer, such as
    /// [`qwen3_reranker`](PromptTemplate::qwen3_reranker), implies answer-only mode.
    pub fn template(mut self, template: PromptTemplate) -> Self {
        self.config.template = template;
        self
    }

    /// Sets the goal or relevance definition in the prompt, for requests without
    /// [one of their own](crate::Request::with_instruction). The default is
    /// [the template's](PromptTemplate::default_instruction). The module
    /// [`instructions`](crate::prompt::instructions) has presets.
    pub fn instruction(mut self, instruction: impl Into<String>) -> Self {
        self.config.instruction = Some(instruction.into());
        self
    }

    /// Sets the mode, sampling settings and limits.
    pub fn options(mut self, options: ScoringOptions) -> Self {
        self.config.options = options;
        self
    }

    /// Selects answer-only mode, which takes one pass over the prompt and no reasoning.
    pub fn answer_only(mut self) -> Self {
        self.config.options.mode = Mode::AnswerOnly;
        self
    }

    /// Selects reasoning and forces the answer after `max_tokens` tokens.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.config.options.mode = Mode::Reason { max_tokens };
        self
    }

    /// Sets the sampling settings for the reasoning. The default is greedy decoding.
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.config.options.sampling = sampling;
        self
    }

    /// Ranks by the mean score of `samples` samples of each document. This needs a
    /// [sampling](Self::sampling) temperature above 0. ERank's authors report gains from such a consensus
    /// (arXiv 2509.00520, §3.2).
    pub fn samples(mut self, samples: usize) -> Self {
        self.config.options.samples = samples;
        self
    }

    /// Scores all documents in answer-only mode first and reasons only about some.
    pub fn cascade(mut self, cascade: Cascade) -> Self {
        self.config.cascade = Some(cascade);
        self
    }

    /// Lets another backend score all documents first. This needs a [cascade](Self::cascade), which selects the
    /// documents that the reranker's own backend thinks about. The template, the score, the mode and the sampling
    /// of this builder are those of the second pass.
    pub fn first_pass(mut self, first_pass: FirstPass) -> Self {
        self.config.first_pass = Some(first_pass);
        self
    }

    /// Scores long documents by windows of their text instead of truncating them.
    pub fn windows(mut self, windows: Windows) -> Self {
        self.config.windows = Some(windows);
        self
    }

    /// Sets the way to compute an answer's probability.
    pub fn probability(mut self, probability: AnswerProbability) -> Self {
        self.config.probability = probability;
        self
    }

    /// Sets the score that documents are ranked by. The default is that of [`ScoreKind::default_for`].
    pub fn score(mut self, score: ScoreKind) -> Self {
        self.score = Some(score);
        self
    }

    /// Fuses the scores with the first stage's. Every document then needs a first-stage score.
    pub fn fusion(mut self, fusion: Fusion) -> Self {
        self.config.fusion = fusion;
        self
    }

    /// Adds the probability of relevance to each document
    /// ([`RankedDocument::relevance_probability`](crate::RankedDocument::relevance_probability)). The scores, before
    /// fusion, must be of the kind, the mode and the answers that the calibration was fitted on, and computed with the
    /// same [`probability`](Self::probability). The mean score of several [samples](Self::samples) varies less than the
    /// scores that a calibration is usually fitted on. The order of the documents does not change.
    ///
    /// A calibration cannot be combined with a [cascade](Self::cascade), whose documents have scores of two modes.
    pub fn calibration(mut self, calibration: Calibration) -> Self {
        self.config.calibration = Some(calibration);
        self
    }

    /// Moves the documents below `min_score` from [`Ranking::documents`](crate::Ranking::documents) to
    /// [`Ranking::below_min_score`](crate::Ranking::below_min_score). A request can have
    /// [one of its own](crate::Request::with_min_score).
    ///
    /// `min_score` is a number from 0 to 1. It is compared with the probability of relevance if there is a
    /// [calibration](Self::calibration), and else with the [relevance](crate::ScoreKind::relevance), a scale that does
    /// not depend on the answers of the prompt. Both are those before fusion, because a fused score has no scale that
    /// would be the same for all queries. The relevance needs the distribution over the answers unless documents are
    /// ranked by the integer. A document without one is then [unscored](crate::Ranking::unscored).
    ///
    /// ```
    /// use erank_core::testing::{ScriptedBackend, answered};
    /// use erank_core::{Request, Reranker, ScoreKind};
    ///
    /// let backend = ScriptedBackend::new([answered(3, 0.9), answered(8, 0.7)]);
    /// let reranker = Reranker::builder(backend).score(ScoreKind::Integer).min_score(0.5).build()?;
    /// let ranking = reranker.rerank(&Request::new("q", ["a", "b"]))?;
    /// assert_eq!((ranking.documents.len(), ranking.documents[0].index), (1, 1));
    /// assert_eq!(ranking.below_min_score[0].relevance, Some(0.3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn min_score(mut self, min_score: f64) -> Self {
        self.config.min_score = Some(min_score);
        self
    }

    /// Limits the ranking to the best `top_k` documents. The reranker still scores all documents.
    pub fn top_k(mut self, top_k: usize) -> Self {
        self.config.top_k = Some(top_k);
        self
    }

    /// Sets a function that receives the progress, on the thread that called
    /// [`rerank`](Reranker::rerank). Returning [`ControlFlow::Break`] cancels the request, including the
    /// token given to [`rerank_with_cancellation`](Reranker::rerank_with_cancellation).
    ///
    /// The function is called for every request of this reranker and does not receive the request. To
    /// watch a single request, build a reranker for it from a reference or an [`Arc`](std::sync::Arc) of
    /// the backend; this does not load the model again.
    pub fn on_progress(
        mut self,
        on_progress: impl Fn(&Progress) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        self.config.on_progress = Some(Box::new(on_progress));
        self
    }

    /// Builds the reranker.
    ///
    /// # Errors
    /// Returns a [`ConfigError`] for the first invalid option.
    pub fn build(mut self) -> Result<Reranker<B>, ConfigError> {
        check_fusion(self.config.fusion)?;
        let answers = self.config.template.answers();
        let is_bare = answers.is_bare();
        self.config.score = self.score.unwrap_or(ScoreKind::default_for(answers));
        if is_bare {
            self.config.options.mode = Mode::AnswerOnly;
        }
        let options = self.config.options;
        let ScoringOptions { mode, sampling, samples, .. } = options;
        let cascade = self.config.cascade;
        let first_pass = self.config.first_pass.as_ref();
        let numbers = [
            ("top_k", self.config.top_k == Some(0)),
            ("max_tokens", mode == Mode::Reason { max_tokens: 0 }),
            ("samples", samples == 0),
            (
                "the cascade's number of documents",
                cascade.is_some_and(|cascade| cascade.max_documents() == 0),
            ),
        ];
        if let Some((name, _)) = numbers.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(ConfigError::Zero(name));
        }
        for options in
            first_pass.and_then(|first| first.options.as_ref()).into_iter().chain([&options])
        {
            check_limits(options)?;
            self.config.windows.map_or(Ok(()), |windows| windows.check(options))?;
        }
        sampling.check()?;
        let needs_reasoning = [("a cascade", cascade.is_some()), ("several samples", samples > 1)];
        if let Some((option, _)) = needs_reasoning.into_iter().find(|(_, given)| is_bare && *given)
        {
            return Err(ConfigError::BareAnswer(option));
        }
        if samples > ScoringOptions::MAX_SAMPLES {
            return Err(ConfigError::TooManySamples { samples });
        }
        if samples > 1 && (sampling.is_greedy() || !mode.is_reason()) {
            return Err(ConfigError::EqualSamples);
        }
        if cascade.is_some() && !mode.is_reason() {
            return Err(ConfigError::CascadeWithoutReasoning);
        }
        if first_pass.is_some() && cascade.is_none() {
            return Err(ConfigError::FirstPassWithoutCascade);
        }
        self.config.check_min_score(self.config.min_score)?;
        if let Some(calibration) = &self.config.calibration {
            if cascade.is_some() {
                return Err(ConfigError::CalibrationWithCascade);
            }
            calibration.check(self.config.score, mode, self.config.template.answers())?;
        }
        Ok(Reranker { backend: self.backend, config: self.config })
    }
}

fn check_limits(options: &ScoringOptions) -> Result<(), ConfigError> {
    let limits = [
        ("max_query_tokens", Some(options.max_query_tokens)),
        ("max_document_tokens", Some(options.max_document_tokens)),
        ("max_prompt_tokens", options.max_prompt_tokens),
    ];
    match limits.into_iter().find(|(_, limit)| *limit == Some(0)) {
        Some((name, _)) => Err(ConfigError::Zero(name)),
        None => Ok(()),
    }
}

fn check_fusion(fusion: Fusion) -> Result<(), ConfigError> {
    match fusion {
        Fusion::ZScore { first_stage_weight: w } if !(0.0..=1.0).contains(&w) => {
            Err(ConfigError::FirstStageWeight(w))
        }
        Fusion::ReciprocalRank { k } if !(k > 0.0 && k.is_finite()) => {
            Err(ConfigError::ReciprocalRankConstant(k))
        }
        _ => Ok(()),
    }
}
