//! The arguments of the command line.

#[cfg(feature = "serve")]
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use erank_candle::WeightFormat;
use erank_core::metrics::Measure;
use erank_core::prompt::instructions;
use erank_core::{
    Aggregation, AnswerFormat, ConfigError, Mode, PromptFamily, PromptTemplate, ScoreKind,
    ScoringOptions, Windows,
};

use crate::error::CommandError;
use crate::help;
use crate::input::FieldNames;

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
    /// Serves reranking over HTTP, for the clients of Cohere, Jina, vLLM and text-embeddings-inference, and a page.
    #[cfg(feature = "serve")]
    #[command(after_help = help::SERVE)]
    Serve(ServeArguments),
}

#[cfg(feature = "serve")]
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// The address to listen on. With 127.0.0.1, only this machine reaches the service.
    #[arg(short, long, value_name = "ADDRESS:PORT", value_parser = socket_address, default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// A further name of the model that requests may state. This option can be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<String>,
    /// A file with an API key on each line. The environment variable ERANK_API_KEYS has keys separated by commas.
    ///
    /// Lines that begin with # are comments.
    /// Every request needs one of the keys, except those for the page and for the health of the service.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_keys: Option<PathBuf>,
    /// A host name that the header host of requests may state. This option can be repeated.
    ///
    /// Without this option, a service on a loopback address accepts localhost, 127.0.0.1, the IPv6 loopback address and
    /// its own address, and any other service accepts every name.
    #[arg(long, value_name = "NAME")]
    pub(crate) allowed_host: Vec<String>,
    #[command(flatten)]
    pub(crate) goal: Goal,
    #[command(flatten)]
    pub(crate) thinking: Thinking,
    /// How a reply lists documents without a score, unless the request chooses.
    #[arg(long, value_name = "CHOICE", value_enum, default_value_t)]
    pub(crate) unscored: Unscored,
    /// Maximum number of requests computed at the same time.
    #[arg(long, value_name = "N", default_value = "4")]
    pub(crate) max_running: NonZeroUsize,
    /// Maximum number of waiting requests. Further ones get the status 429.
    #[arg(long, value_name = "N", default_value = "32")]
    pub(crate) max_waiting: usize,
    /// Maximum number of documents of a request.
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) max_documents: NonZeroUsize,
    /// Maximum number of open connections.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub(crate) max_connections: NonZeroUsize,
    /// Time limit of a request. Documents that have no score by then are unscored.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "600")]
    pub(crate) timeout: Duration,
    /// Time after SIGTERM or Ctrl-C in which /ready replies 503, and further requests are still served.
    ///
    /// A load balancer that asks for /ready needs some seconds to notice.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "0")]
    pub(crate) drain_time: Duration,
    /// Time that requests have to finish after --drain-time.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    pub(crate) shutdown_timeout: Duration,
    /// The level of the log on standard error.
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    pub(crate) log: LogLevel,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) remote: RemoteArguments,
}

/// How a reply of the service lists documents without a score.
#[cfg(feature = "serve")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Unscored {
    /// They are the last results, with a score below all others; the default
    #[default]
    Last,
    /// They are no results
    Omit,
    /// The reply is an error
    Error,
}

/// The level of the service's log.
#[cfg(feature = "serve")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Errors
    Error,
    /// Errors and warnings
    Warn,
    /// Every request as well; the default
    #[default]
    Info,
    /// Connections that ended early as well
    Debug,
}

#[derive(Debug, Args)]
pub(crate) struct RerankArguments {
    /// The search query. It may begin with a hyphen.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) query: String,
    #[command(flatten)]
    pub(crate) goal: Goal,
    /// The documents: a file of lines, JSON, CSV or TSV, or a folder of such files and of texts. "-" is standard input.
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
    /// --kv-cache apply to --model alone, --kv-cache-mib is the limit of each model, and --template and --score apply to
    /// --model. The scores of the two models are not comparable: the documents with reasoning come first.
    #[arg(
        long,
        visible_alias = "first-stage",
        value_name = "FOLDER|FILE|NAME",
        requires = "think_about"
    )]
    pub(crate) first_pass: Option<String>,
    /// The score to rank by. The default is probability-weighted, or expected-value if there are two answers.
    #[arg(long, value_name = "KIND", value_enum)]
    pub(crate) score: Option<Score>,
    /// Lists documents below this relevance, from 0 to 1, apart from the ranking.
    ///
    /// The relevance is the expected value on a scale from 0 to 1: a tenth of it for ERank, and the probability of
    /// "yes" for two answers. With --score integer, it is the integer on this scale, and with --calibration, it is the
    /// probability of relevance. --hybrid does not change it.
    #[arg(long, value_name = "X", value_parser = fraction)]
    pub(crate) min_score: Option<f64>,
    /// Shows each document's probability of relevance, by a file that `erank eval --calibrate` wrote.
    #[arg(long, value_name = "FILE", conflicts_with = "think_about")]
    pub(crate) calibration: Option<PathBuf>,
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
    pub(crate) long_documents: LongDocuments,
    #[command(flatten)]
    pub(crate) fields: FieldNames,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) remote: RemoteArguments,
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

#[cfg(feature = "search")]
#[derive(Debug, Args)]
pub(crate) struct SearchArguments {
    /// Number of documents that BM25 selects for reranking.
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) candidates: NonZeroUsize,
    /// Reads the query in tantivy's syntax, such as `+bicycle -car "worn chain"`. By default, all of it is words.
    #[arg(long)]
    pub(crate) query_syntax: bool,
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
    /// Fits the probability that a document is relevant, as a function of its score, and writes it to this file.
    ///
    /// The report shows how well the probabilities agree with the judgements, on half of the queries, when they are
    /// fitted on the other half. The file is fitted on all queries, for --calibration of `erank rerank`.
    #[arg(long, value_name = "OUT.json")]
    pub(crate) calibrate: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) relevant: Relevant,
    /// Reports p-MRR of FollowIR, over the pairs of queries whose ids end in -og and -changed.
    ///
    /// It compares the ranks of documents that are relevant by the original instruction and not by the changed one.
    /// The queries have an "instruction" of their own.
    #[arg(long)]
    pub(crate) followir: bool,
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

/// The documents that count as relevant for `--calibrate`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Relevant {
    /// The lowest grade that counts as relevant for --calibrate, such as 2 for the passages of TREC Deep Learning.
    #[arg(long, value_name = "GRADE", default_value = "1", requires = "calibrate",
        value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) relevance_level: i32,
    /// Counts unjudged candidates as not relevant for --calibrate. By default, they are left out.
    ///
    /// Use this option if the judgements name only relevant documents, as those of many BEIR collections do.
    #[arg(long, requires = "calibrate")]
    pub(crate) unjudged_not_relevant: bool,
}

/// The files of a judged collection.
#[derive(Debug, Args)]
#[command(next_help_heading = "Collection")]
pub(crate) struct CollectionArguments {
    /// The first stage's run, in TREC's format or in JSON.
    #[arg(long, value_name = "FILE", required_unless_present = "jsonl", conflicts_with = "jsonl")]
    pub(crate) run: Option<PathBuf>,
    /// The relevance judgements, in the format of TREC, BEIR or ir_datasets.
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
        value_name = "FILE|FOLDER",
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
    /// Queries with the texts and scores of their candidates, in JSON, one query per line or in an array.
    #[arg(long, value_name = "FILE")]
    pub(crate) jsonl: Option<PathBuf>,
    /// Leaves out candidates that have the id of their query, as BEIR does.
    ///
    /// The default is true if the folder of --beir is named after ArguAna or Quora, whose queries are documents of
    /// the corpus, and false otherwise.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true
    )]
    pub(crate) ignore_identical_ids: Option<bool>,
    #[command(flatten)]
    pub(crate) fields: FieldNames,
}

impl CollectionArguments {
    /// Returns whether candidates with the id of their query are left out.
    pub(crate) fn ignores_identical_ids(&self) -> bool {
        self.ignore_identical_ids.unwrap_or_else(|| {
            let Some(given) = self.beir.as_deref() else { return false };
            // The given path may be a link with this name, or a relative path such as `.` without one.
            let resolved = given.canonicalize().unwrap_or_default();
            let mut names = [given, resolved.as_path()].into_iter().filter_map(Path::file_name);
            names.any(|name| {
                let name = name.to_string_lossy().to_ascii_lowercase();
                name.contains("arguana") || name.contains("quora")
            })
        })
    }
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
    /// The documents for --compare: a file or a folder as for `erank rerank`. "-" is standard input.
    #[arg(
        long,
        value_name = "FILE|FOLDER",
        requires_all = ["compare", "query"],
        conflicts_with = "document"
    )]
    pub(crate) docs: Option<String>,
    /// Compares the answers of --device with those of the portable CPU kernels, on the bundled model.
    ///
    /// On the CPU, the kernels of this processor are compared, or those that ERANK_INSTRUCTION_SET names. The exit code
    /// is 1 if a difference exceeds its bound.
    #[arg(
        long,
        conflicts_with_all = [
            "query", "document", "docs", "compare", "answer_only", "append", "ids", "logprobs", "model", "weights", "kv_cache"
        ]
    )]
    pub(crate) self_test: bool,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) fields: FieldNames,
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
    /// Without --windows, long documents are truncated. The table shows the bytes of the best window. With
    /// --think-about, all windows are scored without reasoning, and the reasoning is about the best window. A
    /// document with a window that cannot be scored is not ranked.
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

/// The model, and the settings of the local backend.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArguments {
    /// The model: a folder, a GGUF file, a name on the model hub, or "tiny" for the bundled model.
    ///
    /// A folder holds config.json, tokenizer.json, tokenizer_config.json and model.safetensors. A GGUF file ends in
    /// .gguf. A name on the hub is for example Alibaba-NLP/ERank-4B, with an optional :FILE.gguf or :QUANTISATION, such
    /// as :Q4_K_M, for GGUF files, and an optional @REVISION. HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and the
    /// hub's other environment variables have their usual meaning. The bundled model is a demonstration that compares
    /// words only.
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
    /// Number of threads, at most that of the machine's processors. The default is one per processor.
    #[arg(long, value_name = "N", value_parser = threads)]
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
    pub(crate) kv_cache_mib: Option<NonZeroUsize>,
    /// Reads the model's files into memory instead of mapping them. Loading takes more memory, and another program
    /// may change the files meanwhile.
    #[arg(long)]
    pub(crate) no_mmap: bool,
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
        conflicts_with_all = ["weights", "kv_cache", "device", "threads", "kv_cache_mib", "offline", "no_mmap"]
    )]
    pub(crate) url: Vec<String>,
    /// The form of the prompts that the server receives.
    #[arg(long, value_name = "FORM", value_enum)]
    pub(crate) prompts: Option<Prompts>,
}

impl RemoteArguments {
    /// Checks that the options of a server are given only for a model on a server.
    pub(crate) fn check(&self) -> Result<(), CommandError> {
        let is_remote = !self.url.is_empty() || self.prompts.is_some();
        match self.backend {
            Backend::Candle if is_remote => Err(CommandError::RemoteWithoutBackend),
            _ => Ok(()),
        }
    }
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

impl Prompts {
    /// Returns the form's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Chatml => "chatml",
            Self::Chat => "chat",
        }
    }
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
    /// The processor with candle's own operations, which GPUs run; much slower, for comparisons
    CpuCandle,
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
    /// Integers of 8 bits with a scale for each token: half the memory of bf16
    Int8,
}

impl CacheFormat {
    /// Returns the format's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
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

/// Parses a number in `[0, 1]`.
fn fraction(given: &str) -> Result<f64, String> {
    let number = given.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// Parses a number of threads. More threads than processors would only wait for each other.
fn threads(given: &str) -> Result<NonZeroUsize, String> {
    let most = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match given.parse() {
        Ok(threads) if threads <= most => Ok(threads),
        _ => Err(format!("expected a number from 1 to {most}, that of this machine's processors")),
    }
}

/// Parses an address with a port.
#[cfg(feature = "serve")]
fn socket_address(given: &str) -> Result<SocketAddr, String> {
    given.parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:8080".into())
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
    fn threads_are_at_most_the_processors() {
        assert_eq!(threads("1"), Ok(NonZeroUsize::MIN));
        for given in ["0", "-1", "x", "100000", "18446744073709551616", ""] {
            assert!(threads(given).is_err_and(|error| error.contains("from 1 to ")), "{given}");
        }
    }

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

    #[test]
    fn weight_and_seconds_reject_invalid_numbers() {
        assert_eq!(weight("0.25"), Ok(0.25));
        assert!(["-0.1", "1.01", "NaN", "x", ""].iter().all(|given| weight(given).is_err()));
        assert_eq!(fraction("0.25"), Ok(0.25));
        assert!(["-0.1", "1.01", "NaN", "x", ""].iter().all(|given| fraction(given).is_err()));
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert!(["-1", "NaN", "1e300", ""].iter().all(|given| seconds(given).is_err()));
    }
}
