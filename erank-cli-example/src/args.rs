//! The arguments of the command line: those of each command here, and those that commands share in modules.

mod model;
mod scoring;
mod values;

#[cfg(feature = "serve")]
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(feature = "serve")]
use clap::ValueEnum;
use clap::{Args, Parser, Subcommand};
use erank_candle::WeightFormat;
use erank_core::metrics::Measure;

use crate::help;
use crate::input::FieldNames;
#[cfg(feature = "serve")]
use values::socket_address;
use values::{fraction, seconds, weight, weight_format_parser};

pub(crate) use model::{Backend, CacheFormat, Device, ModelArguments, Prompts, RemoteArguments};
pub(crate) use scoring::{Goal, LongDocuments, SamplingArguments, Score, Thinking, max_tokens};

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
    #[command(flatten)]
    pub(crate) long_documents: LongDocuments,
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
    /// tell. Both models are in memory at the same time; `erank inspect` shows what each takes. --weights,
    /// --kv-cache, --template and --score apply to --model alone, and --kv-cache-mib is the limit of each model. The
    /// scores of the two models are not comparable: the documents with reasoning come first.
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
}
