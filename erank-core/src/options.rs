//! How a model is asked to answer: modes, sampling, limits.

use crate::reranker::ConfigError;

/// How to answer, and how much.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct ScoringOptions {
    /// Whether to think before answering.
    pub mode: Mode,
    /// How the tokens of the thought are chosen.
    pub sampling: Sampling,
    /// Completions wanted of every document, each [numbered](Completion::sample).
    pub samples: usize,
    /// The query is cut to this many tokens.
    pub max_query_tokens: usize,
    /// A document is cut to this many tokens.
    pub max_document_tokens: usize,
}

impl Default for ScoringOptions {
    /// Thinking within 4,096 tokens, greedily, once; query and document cut to 2,048 tokens each, as
    /// in ERank's own evaluation.
    fn default() -> Self {
        Self {
            mode: Mode::Reason { max_tokens: 4096 },
            sampling: Sampling::default(),
            samples: 1,
            max_query_tokens: 2048,
            max_document_tokens: 2048,
        }
    }
}

/// Whether the model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Mode {
    /// Think, then answer. When `max_tokens` are spent without an answer, the thought is closed
    /// and the answer forced ([`FinishReason::Forced`]): a well-formed prompt always gets one.
    Reason {
        /// Most tokens to generate for one document before the answer is forced.
        max_tokens: usize,
    },
    /// Answer at once, after an empty thought: one pass over the prompt, no decoding. The
    /// completion carries an [`AnswerDistribution`].
    AnswerOnly,
}

impl Mode {
    /// Whether the model thinks.
    pub fn is_reason(self) -> bool {
        matches!(self, Self::Reason { .. })
    }
}

/// How a backend chooses the next token; greedy by default, as ERank's authors decode.
///
/// The settings are those that inference engines expose, in vLLM's semantics and order: the penalties
/// change the logits, then the temperature divides them, then `min_p`, `top_k` and `top_p` leave
/// candidates out, and one of the rest is drawn. The log-probabilities that a backend reports, and
/// with them the scores, are the model's own, before any of this.
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
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Keeps the most probable tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the tokens with at least this share of the most probable token's probability; 0 keeps
    /// all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens that stand in the prompt or
    /// were generated; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of a generated token once for each time it was generated.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of every token that was generated.
    pub presence_penalty: f32,
    /// With the same seed, the same prompt gets the same text, whatever else is running. Each sample
    /// of a document draws differently.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy, without penalties.
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
    /// From all tokens, at this temperature.
    pub fn with_temperature(temperature: f32) -> Self {
        Self { temperature, ..Self::default() }
    }

    /// Whether the most probable token is taken, after the penalties.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether a penalty changes the logits.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// What the setting of this name may be.
    pub(crate) fn range(name: &str) -> &'static str {
        match name {
            "temperature" => "finite and at least 0",
            "top_p" => "above 0 and at most 1",
            "min_p" => "from 0 to 1",
            "repetition_penalty" => "finite and above 0",
            _ => "finite",
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let finite = |value: f32| value.is_finite();
        let share = |value: f32| (0.0..=1.0).contains(&value);
        let settings = [
            ("temperature", self.temperature, finite(self.temperature) && self.temperature >= 0.0),
            ("top_p", self.top_p, share(self.top_p) && self.top_p > 0.0),
            ("min_p", self.min_p, share(self.min_p)),
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
