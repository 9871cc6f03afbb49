//! The arguments of how documents are scored: the goal, reasoning, sampling, windows and the score.

use std::num::NonZeroUsize;

use clap::{Args, ValueEnum};
use erank_core::{
    Aggregation, AnswerFormat, ConfigError, Mode, PromptTemplate, ScoreKind, ScoringOptions,
    Windows,
};

use super::values::task;

/// The instruction in the prompt: the goal of the search, or a definition of relevance.
#[derive(Debug, Args)]
pub(crate) struct Goal {
    /// The goal of the search or a definition of relevance, for the prompt.
    #[arg(short, long, value_name = "TEXT", conflicts_with = "task")]
    instruction: Option<String>,
    /// The instruction that the models were evaluated with on this benchmark.
    #[arg(short, long, value_name = "NAME", value_parser = task())]
    task: Option<&'static str>,
}

impl Goal {
    /// Returns the instruction that was given or selected, or else the default of the prompt.
    pub(crate) fn instruction(&self, template: &PromptTemplate) -> &str {
        let given = self.instruction.as_deref().or(self.task);
        given.unwrap_or(template.default_instruction())
    }
}

/// The answering mode.
#[derive(Debug, Args)]
pub(crate) struct Thinking {
    /// Answers without reasoning: much faster, but less accurate.
    #[arg(short, long)]
    answer_only: bool,
    /// Maximum number of reasoning tokens per document. Then the answer is forced.
    #[arg(long, value_name = "N", conflicts_with = "answer_only")]
    max_tokens: Option<NonZeroUsize>,
}

impl Thinking {
    /// Checks that a limit for reasoning is given only if the answers of the prompt allow reasoning.
    pub(crate) fn check(&self, answers: &AnswerFormat) -> Result<(), ConfigError> {
        match self.max_tokens {
            Some(_) if answers.is_bare() => Err(ConfigError::BareAnswer("--max-tokens")),
            _ => Ok(()),
        }
    }

    /// Returns the mode that the arguments select, or `default`. Bare answers are without reasoning.
    pub(crate) fn mode(&self, default: Mode, answers: &AnswerFormat) -> Mode {
        match self.max_tokens {
            _ if self.answer_only || answers.is_bare() => Mode::AnswerOnly,
            Some(max_tokens) => Mode::Reason { max_tokens: max_tokens.get() },
            None => default,
        }
    }
}

/// Returns the limit for reasoning, or `None` without reasoning.
pub(crate) fn max_tokens(mode: Mode) -> Option<usize> {
    match mode {
        Mode::Reason { max_tokens } => Some(max_tokens),
        _ => None,
    }
}

/// The windows of long documents.
#[derive(Debug, Args)]
#[command(next_help_heading = "Long documents")]
pub(crate) struct LongDocuments {
    /// Scores each document of more than N tokens by overlapping windows of N tokens. The best window gives the
    /// score. N is --max-document-tokens if it is missing.
    ///
    /// Without --windows, long documents are truncated. The output names the bytes of the best window. A document with
    /// a window that cannot be scored is not ranked. With --think-about of `erank rerank`, all windows are scored
    /// without reasoning, and the reasoning is about the best window.
    #[arg(long, value_name = "N", num_args = 0..=1)]
    windows: Option<Option<NonZeroUsize>>,
    /// Number of tokens that a window shares with the one before it. The default is an eighth of a window.
    #[arg(long, value_name = "N", requires = "windows")]
    window_overlap: Option<usize>,
    /// Maximum number of windows of a document, 32 by default. Text after them is ignored.
    #[arg(long, value_name = "N", requires = "windows")]
    max_windows: Option<NonZeroUsize>,
    /// Ranks documents by the mean score of their best K windows.
    #[arg(long, value_name = "K", requires = "windows")]
    mean_windows: Option<NonZeroUsize>,
}

impl LongDocuments {
    /// Returns the windows that the arguments select, if any. A window has `limit` tokens unless a number is given.
    pub(crate) fn windows(&self, limit: usize) -> Option<Windows> {
        let tokens = self.windows?.map_or(limit, NonZeroUsize::get);
        let mut windows = Windows::with_tokens(tokens);
        windows.overlap = self.window_overlap.unwrap_or(windows.overlap);
        windows.max_windows = self.max_windows.map_or(windows.max_windows, NonZeroUsize::get);
        if let Some(count) = self.mean_windows {
            windows.aggregation = Aggregation::MeanOfBest(count.get());
        }
        Some(windows)
    }
}

/// How the tokens of the reasoning are drawn, as in vLLM.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling of the reasoning")]
pub(crate) struct SamplingArguments {
    /// Draws K answers for each document, and ranks by their mean score.
    #[arg(long, value_name = "K", requires = "temperature")]
    samples: Option<NonZeroUsize>,
    /// Samples tokens at this temperature. By default, decoding is greedy.
    #[arg(long, value_name = "T", conflicts_with = "answer_only")]
    temperature: Option<f32>,
    /// Sets the seed for sampling. The same seed gives the same answers.
    #[arg(long, value_name = "N", requires = "temperature")]
    seed: Option<u64>,
    /// Keeps the most probable tokens that together reach this probability.
    #[arg(long, value_name = "P", requires = "temperature")]
    top_p: Option<f32>,
    /// Keeps the N most probable tokens. (--top-k is the number of documents to print.)
    #[arg(long, value_name = "N", requires = "temperature")]
    sampling_top_k: Option<u32>,
    /// Keeps the tokens whose probability is at least this fraction of the largest one.
    #[arg(long, value_name = "P", requires = "temperature")]
    min_p: Option<f32>,
    /// Divides the positive logits, and multiplies the negative ones, of the tokens in the prompt and the reasoning.
    #[arg(long, value_name = "X", conflicts_with = "answer_only")]
    repetition_penalty: Option<f32>,
    /// Is subtracted from a token's logit once for each time that the token was generated.
    #[arg(long, value_name = "X", conflicts_with = "answer_only", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Is subtracted once from the logit of every generated token.
    #[arg(long, value_name = "X", conflicts_with = "answer_only", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
}

impl SamplingArguments {
    /// Returns the names of the arguments that are given. Those that need --temperature are left out, except
    /// --samples.
    pub(crate) fn given(&self) -> impl Iterator<Item = &'static str> {
        let settings = [
            ("--temperature", self.temperature.is_some()),
            ("--samples", self.samples.is_some()),
            ("--repetition-penalty", self.repetition_penalty.is_some()),
            ("--frequency-penalty", self.frequency_penalty.is_some()),
            ("--presence-penalty", self.presence_penalty.is_some()),
        ];
        settings.into_iter().filter(|(_, given)| *given).map(|(name, _)| name)
    }

    /// Sets the given settings in `options`.
    ///
    /// # Errors
    ///
    /// Returns an error if a setting is given, but the answers of the prompt have no reasoning.
    pub(crate) fn set(
        &self,
        options: &mut ScoringOptions,
        answers: &AnswerFormat,
    ) -> Result<(), ConfigError> {
        if let Some(name) = self.given().next().filter(|_| answers.is_bare()) {
            return Err(ConfigError::BareAnswer(name));
        }
        options.samples = self.samples.map_or(options.samples, NonZeroUsize::get);
        let sampling = &mut options.sampling;
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.seed = self.seed.unwrap_or(sampling.seed);
        sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
        sampling.top_k = self.sampling_top_k.unwrap_or(sampling.top_k);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty =
            self.repetition_penalty.unwrap_or(sampling.repetition_penalty);
        sampling.frequency_penalty = self.frequency_penalty.unwrap_or(sampling.frequency_penalty);
        sampling.presence_penalty = self.presence_penalty.unwrap_or(sampling.presence_penalty);
        Ok(())
    }
}

/// The score to rank by.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Score {
    /// The answer times its probability, N × P(N)
    ProbabilityWeighted,
    /// The expected value over all answers
    ExpectedValue,
    /// The answer alone
    Integer,
}

impl Score {
    /// Returns the score that was given, or else the default for these answers.
    pub(crate) fn kind(given: Option<Self>, answers: &AnswerFormat) -> ScoreKind {
        match given {
            None => ScoreKind::default_for(answers),
            Some(Self::ProbabilityWeighted) => ScoreKind::ProbabilityWeighted,
            Some(Self::ExpectedValue) => ScoreKind::ExpectedValue,
            Some(Self::Integer) => ScoreKind::Integer,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use erank_core::PromptFamily;

    use super::*;
    use crate::args::{Arguments, Command};

    #[test]
    fn sampling_arguments_set_all_settings() {
        let parse = |arguments: &str| {
            let arguments = format!("erank rerank -q x {arguments}");
            match Arguments::try_parse_from(arguments.split_whitespace()).map(|a| a.command) {
                Ok(Some(Command::Rerank(arguments))) => Some(arguments.sampling),
                _ => None,
            }
        };
        let given = parse(
            "--temperature 0.5 --seed 7 --samples 3 --top-p 0.75 --sampling-top-k 20 --min-p 0.25 \
             --repetition-penalty 1.5 --frequency-penalty 0.125 --presence-penalty -0.5",
        )
        .expect("valid");
        let (mut options, mut expected) = (ScoringOptions::default(), ScoringOptions::default());
        let erank = PromptFamily::Erank.template();
        given.set(&mut options, erank.answers()).expect("reasoning");
        expected.samples = 3;
        let sampling = &mut expected.sampling;
        (sampling.temperature, sampling.seed) = (0.5, 7);
        (sampling.top_p, sampling.top_k, sampling.min_p) = (0.75, 20, 0.25);
        sampling.repetition_penalty = 1.5;
        (sampling.frequency_penalty, sampling.presence_penalty) = (0.125, -0.5);
        assert_eq!(options, expected);
        let bare = PromptFamily::Qwen3Reranker.template();
        assert!(given.set(&mut options, bare.answers()).is_err());
        for invalid in ["--top-p 0.5", "--sampling-top-k 3", "--answer-only --presence-penalty 1"] {
            assert!(parse(invalid).is_none(), "{invalid}");
        }
    }
}
