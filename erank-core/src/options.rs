//! The options of a job: mode, sampling, limits.

use thiserror::Error;

/// The options of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct ScoringOptions {
    /// Whether the model thinks before it answers.
    pub mode: Mode,
    /// The sampling settings for the tokens of the reasoning.
    pub sampling: Sampling,
    /// The number of completions for each document, at most [`MAX_SAMPLES`](Self::MAX_SAMPLES).
    /// [`Completion::sample`](crate::Completion::sample) numbers them.
    pub samples: usize,
    /// The maximum number of tokens of the query. The rest is truncated.
    pub max_query_tokens: usize,
    /// The maximum number of tokens of a document. The rest is truncated.
    pub max_document_tokens: usize,
    /// The maximum number of tokens of the whole prompt. A document is truncated further if its prompt has more
    /// tokens. The query and the other text are not. `None` sets no such limit. A prompt that exceeds the model's
    /// own limit is an error of its document ([`PromptTooLong`](crate::DocumentError::PromptTooLong)).
    pub max_prompt_tokens: Option<usize>,
}

impl ScoringOptions {
    /// The largest number of samples of a document. A backend may create all of them at once.
    pub const MAX_SAMPLES: usize = 1000;

    /// Returns the default options with the truncation of Qwen3-Reranker's model card: a prompt has at most 8,192
    /// tokens, and the end of the document is removed from a longer one.
    pub fn qwen3_reranker() -> Self {
        const TOKENS: usize = 8192;
        Self {
            max_query_tokens: TOKENS,
            max_document_tokens: TOKENS,
            max_prompt_tokens: Some(TOKENS),
            ..Self::default()
        }
    }
}

impl Default for ScoringOptions {
    /// Returns options for reasoning of up to 4,096 tokens, greedy decoding and one sample. Query and
    /// document are truncated to 2,048 tokens each, as in ERank's own evaluation.
    fn default() -> Self {
        Self {
            mode: Mode::Reason { max_tokens: 4096 },
            sampling: Sampling::default(),
            samples: 1,
            max_query_tokens: 2048,
            max_document_tokens: 2048,
            max_prompt_tokens: None,
        }
    }
}

/// Whether the model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Mode {
    /// The model thinks, then answers. If it generates `max_tokens` without an answer, the backend closes
    /// the reasoning and forces the answer ([`FinishReason::Forced`](crate::FinishReason::Forced)), so
    /// every well-formed prompt gets an answer. For a prompt with a [bare](crate::AnswerFormat::bare) answer,
    /// [`AnswerOnly`](Self::AnswerOnly) replaces this mode.
    Reason {
        /// The maximum number of tokens to generate for one document before the answer is forced.
        max_tokens: usize,
    },
    /// The model answers at once, after empty reasoning. This takes one pass over the prompt and no
    /// decoding. The completion has an [`AnswerDistribution`](crate::AnswerDistribution).
    AnswerOnly,
}

impl Mode {
    /// Returns whether the model thinks.
    pub fn is_reason(self) -> bool {
        matches!(self, Self::Reason { .. })
    }
}

/// The sampling settings. The default is greedy decoding, as ERank's authors use it.
///
/// The settings have vLLM's semantics and order. The penalties change the logits, and the temperature
/// divides them. Then `min_p`, `top_k` and `top_p` remove candidates, and one of the remaining tokens is
/// drawn. The log-probabilities that a backend returns, and the scores computed from them, are those of
/// the model before all these steps.
///
/// ```
/// use erank_core::Sampling;
///
/// let mut sampling = Sampling::with_temperature(0.6);
/// sampling.top_p = 0.95;
/// sampling.seed = 7;
/// assert!(!sampling.is_greedy() && Sampling::default().is_greedy());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Sampling {
    /// The divisor of the logits. 0 chooses the most probable token.
    pub temperature: f32,
    /// Keeps the most probable tokens that together reach this probability. 1 keeps all.
    pub top_p: f32,
    /// The number of most probable tokens to keep. 0 keeps all.
    pub top_k: u32,
    /// Keeps the tokens whose probability is at least this fraction of the largest one. 0 keeps all.
    pub min_p: f32,
    /// Divides the positive logits, and multiplies the negative ones, of the tokens in the prompt and the
    /// generated text. 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit once for each time that the token was generated.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of every generated token.
    pub presence_penalty: f32,
    /// The seed of the random generator. The same seed gives the same text for the same prompt, no matter
    /// what else is running. The samples of a document differ.
    pub seed: u64,
}

impl Default for Sampling {
    /// Returns greedy decoding without penalties.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Returns sampling from all tokens at this temperature.
    pub fn with_temperature(temperature: f32) -> Self {
        Self { temperature, ..Self::default() }
    }

    /// Returns whether the most probable token, after the penalties, is chosen.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Returns whether a penalty changes the logits.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// Returns the allowed range of the setting called `name`.
    fn range(name: &str) -> &'static str {
        match name {
            "temperature" => "finite and at least 0",
            "top_p" => "above 0 and at most 1",
            "min_p" => "from 0 to 1",
            "repetition_penalty" => "finite and above 0",
            _ => "finite",
        }
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// Returns [`ConfigError::Sampling`] for the first setting outside its range.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let finite = |value: f32| value.is_finite();
        let fraction = |value: f32| (0.0..=1.0).contains(&value);
        let settings = [
            ("temperature", self.temperature, finite(self.temperature) && self.temperature >= 0.0),
            ("top_p", self.top_p, fraction(self.top_p) && self.top_p > 0.0),
            ("min_p", self.min_p, fraction(self.min_p)),
            (
                "repetition_penalty",
                self.repetition_penalty,
                finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
            ),
            ("frequency_penalty", self.frequency_penalty, finite(self.frequency_penalty)),
            ("presence_penalty", self.presence_penalty, finite(self.presence_penalty)),
        ];
        match settings.into_iter().find(|(_, _, valid)| !valid) {
            Some((name, value, _)) => Err(ConfigError::Sampling { name, value }),
            None => Ok(()),
        }
    }
}

/// An option or a combination of options that a [`Reranker`](crate::Reranker) cannot use.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number is 0.
    #[error("{0} is 0; it must be at least 1")]
    Zero(&'static str),
    /// The weight of the first stage is outside `[0, 1]`.
    #[error("the first stage's weight is {0}; it must lie between 0 and 1")]
    FirstStageWeight(f64),
    /// The constant of reciprocal rank fusion is not positive.
    #[error("the constant of reciprocal rank fusion is {0}; it must be positive")]
    ReciprocalRankConstant(f64),
    /// A sampling setting is outside its range.
    #[error("the sampling setting {name} is {value}; it must be {}", Sampling::range(name))]
    Sampling {
        /// The setting's name.
        name: &'static str,
        /// The setting's value.
        value: f32,
    },
    /// The minimum score is outside `[0, 1]`.
    #[error(
        "the minimum score is {0}; it must lie between 0 and 1, the scale of the relevance and of its probability"
    )]
    MinScore(f64),
    /// A minimum score is set, but all answers of the prompt have the same value.
    #[error(
        "a minimum score needs answers with different values; remove it, or choose another prompt template"
    )]
    MinScoreWithoutScale,
    /// The calibration was fitted on other scores.
    #[error(
        "the calibration was fitted on {what} {fitted}, but the reranker has {what} {now}; use the same, or fit \
         another calibration"
    )]
    OtherCalibration {
        /// The property that differs.
        what: &'static str,
        /// Its value in the calibration.
        fitted: String,
        /// Its value in the reranker.
        now: String,
    },
    /// A calibration is combined with a cascade, whose documents have scores of two modes.
    #[error(
        "a calibration holds for one mode, but a cascade gives documents scores of two modes; remove one of them"
    )]
    CalibrationWithCascade,
    /// More samples are requested than [`ScoringOptions::MAX_SAMPLES`].
    #[error("{samples} samples of a document are more than the {max} that are possible", max = ScoringOptions::MAX_SAMPLES)]
    TooManySamples {
        /// The number of samples.
        samples: usize,
    },
    /// Several samples are requested that would all be equal.
    #[error(
        "several samples are equal unless the model thinks at a temperature above 0; request one \
         sample, or reasoning at a higher temperature"
    )]
    EqualSamples,
    /// An option needs reasoning, but the prompt's answer is [bare](crate::AnswerFormat::bare).
    #[error(
        "{0} needs reasoning, but the prompt's answer is a bare label; remove the option, or choose another \
         prompt template"
    )]
    BareAnswer(&'static str),
    /// A cascade is combined with answer-only mode, so that its second pass would not think.
    #[error("a cascade thinks in its second pass; remove either the cascade or answer-only mode")]
    CascadeWithoutReasoning,
    /// A first pass by another backend is set, but no cascade that selects documents for the second pass.
    #[error(
        "a first pass by another backend needs a cascade, which selects the documents for the second pass; add a \
         cascade, or remove the first pass"
    )]
    FirstPassWithoutCascade,
    /// The overlap of windows is more than half of a window.
    #[error(
        "windows of {tokens} tokens overlap by {overlap}; set the overlap to at most {}",
        tokens / 2
    )]
    WindowOverlap {
        /// The overlap in tokens.
        overlap: usize,
        /// The number of tokens of a window.
        tokens: usize,
    },
    /// A window is longer than the documents of a pass may be.
    #[error(
        "a window has {tokens} tokens, more than max_document_tokens, which is {limit}; make windows shorter, or \
         raise the limit"
    )]
    WindowTokens {
        /// The number of tokens of a window.
        tokens: usize,
        /// The limit of the pass.
        limit: usize,
    },
}
