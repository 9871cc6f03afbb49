//! The arguments of the command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use erank_candle::WeightFormat;
use erank_core::metrics::Measure;
use erank_core::prompt::instructions;
use erank_core::{AnswerFormat, ConfigError, Mode, PromptFamily, PromptTemplate, ScoreKind};

use crate::help;

/// Reranks search results with ERank, a reasoning language model, in this process or on your servers.
///
/// Without a command, erank runs a demonstration with the bundled model.
#[derive(Debug, Parser)]
#[command(name = "erank", version, after_help = help::EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ranks documents by their relevance to a query.
    #[command(after_help = format!("{}\n\n{}", help::RERANK, help::EXIT_CODES))]
    Rerank(RerankArguments),
    /// Searches documents with BM25, and reranks the best matches.
    #[cfg(feature = "search")]
    #[command(after_help = format!("{}\n\n{}", help::RERANK, help::EXIT_CODES))]
    Search(SearchArguments),
    /// Reranks a judged run, and measures the gain.
    #[command(after_help = format!("{}\n\n{}", help::EVAL, help::EVAL_EXIT_CODES))]
    Eval(EvalArguments),
    /// Shows the memory that a model takes, a prompt with its tokens, or the difference to another model.
    #[command(after_help = help::INSPECT)]
    Inspect(InspectArguments),
    /// Writes a model as a GGUF file with weights of fewer bits.
    #[command(after_help = help::QUANTIZE)]
    Quantize(QuantizeArguments),
}

#[derive(Debug, Args)]
pub(crate) struct RerankArguments {
    /// The search query.
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) query: String,
    #[command(flatten)]
    pub(crate) goal: Goal,
    /// The documents: a file with one document per line, or a folder of text files. "-" is standard input.
    #[arg(short, long, value_name = "FILE|FOLDER", default_value = "-")]
    pub(crate) docs: String,
    /// Prints only the best N documents.
    #[arg(short = 'k', long, value_name = "N")]
    pub(crate) top_k: Option<NonZeroUsize>,
    /// Adds the first stage's scores with this weight, from 0 to 1 (0.2 if ALPHA is missing).
    ///
    /// The scores of both stages are normalised to z-scores and added. Each document needs a "score".
    #[arg(long, value_name = "ALPHA", num_args = 0..=1, default_missing_value = "0.2", value_parser = weight)]
    pub(crate) hybrid: Option<f64>,
    #[command(flatten)]
    pub(crate) thinking: Thinking,
    /// Scores all documents without reasoning, then reasons about the best N of them.
    #[arg(long, value_name = "N", conflicts_with = "answer_only")]
    pub(crate) think_about: Option<NonZeroUsize>,
    /// Scores all documents with this model, and reasons about the best ones of --think-about with --model.
    ///
    /// The model is a local one, such as Qwen/Qwen3-Reranker-0.6B, and gets the prompt that its files or its name
    /// tell. Both models are in memory at the same time; `erank inspect` shows what each takes. --weights and
    /// --kv-cache apply to --model alone, --cache-mb is the limit of each model, and --template and --score apply to
    /// --model. The scores of the two models are not comparable: the documents with reasoning come first.
    #[arg(long, value_name = "FOLDER|FILE|NAME", requires = "think_about")]
    pub(crate) first_stage: Option<String>,
    /// Draws K answers for each document, and ranks by their mean score.
    #[arg(long, value_name = "K", requires = "temperature")]
    pub(crate) samples: Option<NonZeroUsize>,
    /// Samples tokens at this temperature. By default, decoding is greedy.
    #[arg(long, value_name = "T", conflicts_with = "answer_only")]
    pub(crate) temperature: Option<f32>,
    /// Sets the seed for sampling. The same seed gives the same answers.
    #[arg(long, value_name = "N", requires = "temperature")]
    pub(crate) seed: Option<u64>,
    /// The score to rank by. The default is probability-weighted, or expected-value if there are two answers.
    #[arg(long, value_name = "KIND", value_enum)]
    pub(crate) score: Option<Score>,
    /// Stops after this time, and prints the documents ranked so far.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Prints the whole reasoning below each row.
    #[arg(short, long)]
    pub(crate) explain: bool,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) remote: RemoteArguments,
}

#[cfg(feature = "search")]
#[derive(Debug, Args)]
pub(crate) struct SearchArguments {
    /// Number of documents that BM25 selects for reranking.
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) candidates: NonZeroUsize,
    #[command(flatten)]
    pub(crate) rerank: RerankArguments,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArguments {
    /// Reranks the first stage's best N documents of each query.
    #[arg(long, value_name = "N", default_value = "100")]
    pub(crate) depth: NonZeroUsize,
    /// The measures, in the notation of ir-measures, separated by commas.
    ///
    /// The table shows a significance test for the first measure. gains.svg shows the gains in the first
    /// measure.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "nDCG@10,RR@10,AP,P@10"
    )]
    pub(crate) measure: Vec<Measure>,
    /// The output folder. Scores that it already holds are not computed again.
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: PathBuf,
    /// The first stage's weight in hybrid.run, from 0 to 1. The report also covers 0.1 to 0.9.
    #[arg(long, value_name = "ALPHA", default_value = "0.2", value_parser = weight)]
    pub(crate) hybrid: f64,
    #[command(flatten)]
    pub(crate) goal: Goal,
    #[command(flatten)]
    pub(crate) thinking: Thinking,
    /// The score to rank by. The default is probability-weighted, or expected-value if there are two answers.
    #[arg(long, value_name = "KIND", value_enum)]
    pub(crate) score: Option<Score>,
    /// Stops after this time. The same command resumes.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Prints report.json instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) collection: CollectionArguments,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) remote: RemoteArguments,
}

/// The files of a judged collection.
#[derive(Debug, Args)]
#[command(next_help_heading = "Collection")]
pub(crate) struct CollectionArguments {
    /// The first stage's run, in TREC's format.
    #[arg(long, value_name = "FILE", required_unless_present = "jsonl", conflicts_with = "jsonl")]
    pub(crate) run: Option<PathBuf>,
    /// The relevance judgements, in TREC's or BEIR's format.
    #[arg(long, value_name = "FILE", required_unless_present = "beir", conflicts_with = "beir")]
    pub(crate) qrels: Option<PathBuf>,
    /// The texts of the queries.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present_any = ["beir", "jsonl"],
        conflicts_with_all = ["beir", "jsonl"]
    )]
    pub(crate) queries: Option<PathBuf>,
    /// The texts of the documents. This option can be repeated.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present_any = ["beir", "jsonl"],
        conflicts_with_all = ["beir", "jsonl"]
    )]
    pub(crate) corpus: Vec<PathBuf>,
    /// A folder in BEIR's layout, with judgements and texts.
    #[arg(long, value_name = "FOLDER", conflicts_with = "jsonl")]
    pub(crate) beir: Option<PathBuf>,
    /// The split of BEIR's judgements, such as train, dev or test.
    #[arg(long, value_name = "NAME", default_value = "test")]
    pub(crate) split: String,
    /// Queries with the texts and scores of their candidates, one query per line.
    #[arg(long, value_name = "FILE")]
    pub(crate) jsonl: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// The query in the prompt [default: what is a jet?]
    #[arg(short, long, value_name = "TEXT")]
    query: Option<String>,
    /// The document in the prompt [default: A jet is a stream of fluid.]
    #[arg(short, long, value_name = "TEXT")]
    document: Option<String>,
    #[command(flatten)]
    pub(crate) goal: Goal,
    /// Adds the text that `rerank --answer-only` adds to the prompt, so that the answer comes next.
    #[arg(short, long)]
    pub(crate) answer_only: bool,
    /// Adds this text to the assistant turn. The text is trusted: `<|im_end|>` in it ends the turn.
    #[arg(long, value_name = "TEXT", conflicts_with = "answer_only")]
    pub(crate) append: Option<String>,
    /// Reads these token ids instead of a prompt: numbers separated by commas or spaces, or a JSON
    /// array. "-" is standard input.
    #[arg(
        long,
        value_name = "IDS",
        conflicts_with_all = ["query", "document", "instruction", "task", "answer_only", "append"]
    )]
    pub(crate) ids: Option<String>,
    /// Shows the K most probable next tokens at each position.
    #[arg(short = 'k', long, value_name = "K")]
    pub(crate) logprobs: Option<NonZeroUsize>,
    /// Scores documents with this model, too, and shows how much the answers of --model differ.
    ///
    /// For example, --model is a quantised file, and this is the model that it was made from. Both answer without
    /// reasoning. --weights and --kv-cache apply to --model alone. The models are loaded one after the other. The
    /// documents are those of --docs, or that of --document, or else those of the demonstration.
    #[arg(
        long,
        value_name = "FOLDER|FILE|NAME",
        conflicts_with_all = ["answer_only", "append", "ids", "logprobs"]
    )]
    pub(crate) compare: Option<String>,
    /// The documents for --compare: a file with one document per line, or a folder of text files. "-" is standard
    /// input.
    #[arg(
        long,
        value_name = "FILE|FOLDER",
        requires_all = ["compare", "query"],
        conflicts_with = "document"
    )]
    pub(crate) docs: Option<String>,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
}

impl InspectArguments {
    /// Returns the query of the prompt.
    pub(crate) fn query(&self) -> &str {
        self.query.as_deref().unwrap_or("what is a jet?")
    }

    /// Returns the document of the prompt.
    pub(crate) fn document(&self) -> &str {
        self.document.as_deref().unwrap_or("A jet is a stream of fluid.")
    }

    /// Returns whether a query or a document is given.
    pub(crate) fn has_prompt(&self) -> bool {
        self.query.is_some() || self.document.is_some()
    }
}

#[derive(Debug, Args)]
pub(crate) struct QuantizeArguments {
    /// The model: a folder, a GGUF file, a name on the model hub, or "tiny" for the bundled model.
    #[arg(short, long, value_name = "FOLDER|FILE|NAME")]
    pub(crate) model: String,
    /// Uses no network: a model of the hub must be in the hub's local cache.
    #[arg(long)]
    pub(crate) offline: bool,
    /// The format of the weights in the file. Norms are kept in F32.
    #[arg(long, value_name = "FORMAT", value_parser = weight_format_parser(), ignore_case = true)]
    pub(crate) to: WeightFormat,
    /// The file to write. It must not exist.
    #[arg(value_name = "OUT.gguf")]
    pub(crate) out: PathBuf,
}

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

    /// Returns the mode that the arguments select, or `default`.
    pub(crate) fn mode(&self, default: Mode) -> Mode {
        match self.max_tokens {
            _ if self.answer_only => Mode::AnswerOnly,
            Some(max_tokens) => Mode::Reason { max_tokens: max_tokens.get() },
            None => default,
        }
    }
}

/// The model, and the settings of the local backend.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArguments {
    /// The model: a folder, a GGUF file, a name on the model hub, or "tiny" for the bundled model.
    ///
    /// A folder holds config.json, tokenizer.json, tokenizer_config.json and model.safetensors. A GGUF file
    /// ends in .gguf. A name on the hub is for example Alibaba-NLP/ERank-4B, with an optional :FILE.gguf or
    /// :QUANTISATION, such as :Q4_K_M, for GGUF files, and an optional @REVISION. HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE,
    /// HF_TOKEN and the hub's other environment variables have their usual meaning. The bundled model is a
    /// demonstration that compares words only.
    #[arg(short, long, value_name = "FOLDER|FILE|NAME", default_value = "tiny")]
    pub(crate) model: String,
    /// Uses no network: a model of the hub must be in the hub's local cache. HF_HUB_OFFLINE=1 does the same.
    #[arg(long)]
    pub(crate) offline: bool,
    /// The prompt that the model was trained with. The default is the prompt that the model's files or its name
    /// tell, or else ERank's.
    ///
    /// A model is a Qwen3-Reranker if its chat template has a sentence of that prompt, if
    /// 1_LogitScore/config.json names the answers "no" and "yes", or if its name contains "reranker".
    #[arg(long, value_name = "NAME", value_parser = template())]
    pub(crate) template: Option<PromptFamily>,
    /// The format of the weights in memory. The default is the checkpoint's own format.
    #[arg(long, value_name = "FORMAT", value_parser = weight_format_parser(), ignore_case = true)]
    pub(crate) weights: Option<WeightFormat>,
    /// The format of the KV cache. The default is f32 for f32 weights, and bf16 otherwise.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) kv_cache: Option<CacheFormat>,
    /// The device that runs the model. A GPU needs an erank built with the feature of the same name.
    #[arg(long, value_name = "DEVICE", value_enum, default_value_t)]
    pub(crate) device: Device,
    /// Number of threads. The default is one per core.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Documents are truncated to this number of tokens. The default is 2048, or half of the model's context
    /// if that is less.
    #[arg(long, value_name = "N")]
    pub(crate) max_document_tokens: Option<NonZeroUsize>,
    /// Documents are truncated further if the whole prompt has more tokens than this number.
    #[arg(long, value_name = "N")]
    pub(crate) max_prompt_tokens: Option<NonZeroUsize>,
    /// Memory for the KV cache, in MiB. The default is a quarter of the available memory.
    #[arg(long, value_name = "MIB")]
    pub(crate) cache_mb: Option<NonZeroUsize>,
}

/// The remote backend.
#[derive(Debug, Args)]
#[command(next_help_heading = "Remote model")]
pub(crate) struct RemoteArguments {
    /// The backend. candle runs the model in this process, and openai runs it on a server with an
    /// OpenAI-compatible API, such as vLLM or llama.cpp.
    ///
    /// With openai, --model is the model's name at the server. This option can be left out if the server has
    /// only one model. The environment variable ERANK_API_KEY holds the API key.
    #[arg(long, value_name = "BACKEND", value_enum, default_value_t)]
    pub(crate) backend: Backend,
    /// The address of a server, such as http://gpu-1:8000. Several addresses share the load.
    #[arg(
        long,
        value_name = "URL",
        required_if_eq("backend", "openai"),
        conflicts_with_all = ["weights", "kv_cache", "device", "threads", "cache_mb", "offline"]
    )]
    pub(crate) url: Vec<String>,
    /// The form of the prompts that the server receives.
    #[arg(long, value_name = "FORM", value_enum)]
    pub(crate) prompts: Option<Prompts>,
}

/// The form of prompts for a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Prompts {
    /// Text in the model's own template, which the server renders (vLLM, llama.cpp); the default
    #[default]
    Template,
    /// Text in ChatML, the format of Qwen3's template, for servers that cannot render it
    Chatml,
    /// Chat messages, for servers with a chat API only; not with --answer-only
    Chat,
}

/// The backend that runs the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    #[default]
    Candle,
    Openai,
}

/// The device that runs the model.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Device {
    /// The processor
    #[default]
    Cpu,
    /// The first NVIDIA GPU
    Cuda,
    /// The Apple GPU
    Metal,
}

/// A format of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheFormat {
    /// 32-bit floating point
    F32,
    /// Brain floating point, 16 bits
    Bf16,
}

impl CacheFormat {
    /// Returns the format's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Reads a format of weights. Case does not matter.
fn weight_format_parser() -> impl TypedValueParser<Value = WeightFormat> {
    PossibleValuesParser::new(WeightFormat::ALL.iter().map(|format| format.name()))
        .try_map(|name| name.parse::<WeightFormat>())
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

/// Reads the name of a prompt.
fn template() -> impl TypedValueParser<Value = PromptFamily> {
    PossibleValuesParser::new(PromptFamily::ALL.map(PromptFamily::name))
        .map(|name| PromptFamily::named(&name).unwrap_or(PromptFamily::Erank))
}

/// Parses the name of a preset into its instruction. The error for an unknown name lists all names.
fn task() -> impl TypedValueParser<Value = &'static str> {
    PossibleValuesParser::new(instructions::PRESETS.map(|(name, _)| name))
        .map(|name| instructions::preset(&name).unwrap_or(instructions::GENERIC))
}

/// Parses a weight in `[0, 1]`.
fn weight(given: &str) -> Result<f64, String> {
    match given.parse() {
        Ok(weight) if (0.0..=1.0).contains(&weight) => Ok(weight),
        _ => {
            Err("expected a number between 0 (the model alone) and 1 (the first stage alone)"
                .into())
        }
    }
}

/// Parses a non-negative number of seconds.
fn seconds(given: &str) -> Result<Duration, String> {
    let seconds = given.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "expected a number of seconds, such as 2.5".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_pass_claps_own_checks() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn openai_backend_requires_url_and_rejects_local_settings() {
        let parse = |arguments: &str| {
            let arguments = format!("erank rerank -q x {arguments}");
            Arguments::try_parse_from(arguments.split_whitespace()).map(|_| ())
        };
        assert!(parse("--backend openai --url http://a --url http://b --model m").is_ok());
        assert!(parse("--backend openai").is_err());
        assert!(parse("--backend openai --url http://a --threads 2").is_err());
        assert!(parse("--backend openai --url http://a --kv-cache f32").is_err());
        assert!(parse("--backend elsewhere").is_err());
        assert!(parse("--backend openai --url http://a --prompts chatml").is_ok());
        assert!(parse("--backend openai --url http://a --prompts frame").is_err());
    }

    #[test]
    fn weight_and_seconds_reject_invalid_numbers() {
        assert_eq!(weight("0.25"), Ok(0.25));
        assert!(["-0.1", "1.01", "NaN", "x", ""].iter().all(|given| weight(given).is_err()));
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert!(["-1", "NaN", "1e300", ""].iter().all(|given| seconds(given).is_err()));
    }
}
