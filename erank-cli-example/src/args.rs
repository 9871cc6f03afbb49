//! What can be asked for on the command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use erank_core::metrics::Measure;
use erank_core::prompt::instructions;
use erank_core::{Mode, ScoreKind};

const EXIT_CODES: &str = "\
Exit codes:
  0    every document was ranked
  1    failed: a file, the model or the output; what was ranked before is printed
  2    the command line is wrong
  3    some documents could not be ranked, or only by less than was asked for, such as fewer
       samples; they are listed with line and reason
  4    --timeout passed; what was done is printed
  130  Ctrl-C; what was done is printed (a second Ctrl-C quits at once)";

const RERANK_HELP: &str = "\
Input, from FILE or standard input, is plain lines or JSON lines, whichever most lines look like:
  plain   every line that is not blank is a document; its id is its line number
  JSON    {\"id\": \"doc-7\", \"text\": \"…\", \"score\": 12.3}; only \"text\" is required, \"score\" is the
          first stage's
A folder's .txt and .md files are a document each, with their path as id; its .jsonl files are read
as above. A line that cannot be used is listed with its reason and spares the others.

--json prints one object:
  model, query, instruction
  stopped      null, \"interrupted\" or \"timeout\"
  counts       documents, ranked, beyond_top_k, unscored; the latter three add up to the first;
               incomplete, which are among the ranked and beyond_top_k
  tokens       prompt, generated
  seconds      for ranking, without loading the model
  documents[]  best first: rank, line, id, score, spread, integer, probability, official,
               expected, entropy, first_stage_score, first_stage_rank, reasoning, mode
               (\"reason\", \"answer_only\"), samples (how many the score is the mean of),
               truncated, finish (\"answered\", \"end_of_text\", \"forced\"), tokens
  unscored[]   by line: line, id, reason
  incomplete[] ranked, but by less than was asked for: answered at once for want of a thought, or
               by fewer samples; by line: line, id, reason
What is not known is null. Diagnostics go to standard error.";

const EVAL_HELP: &str = "\
Input is a first stage's run, people's grades, and the texts:
  TREC        --run RUN --qrels QRELS --queries TEXTS --corpus TEXTS
  BEIR        --run RUN --beir FOLDER, with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv
  JSON lines  --jsonl FILE --qrels QRELS, with one query a line:
              {\"id\": \"q1\", \"query\": \"…\", \"documents\": [{\"id\": \"d7\", \"text\": \"…\", \"score\": 12.3}]}
TEXTS holds one text a line: the id, a tab and the text, or JSON with \"_id\" (or \"id\"), \"text\" (or
\"contents\") and perhaps \"title\", which is put before the text. Queries without grades are left out.

--output FOLDER gets:
  scores.jsonl     what the model said of each document, written as soon as it is known; the same
                   command goes on from there, and computes none of it again
  first_stage.run, reranked.run, hybrid.run   TREC runs
  report.json      every figure, query by query; --json prints it
  gains.svg        what each query gained or lost
A document that cannot be scored ranks behind all that are, as the first stage had it. If the
reason may pass, the next start tries again.";

const EVAL_EXIT_CODES: &str = "\
Exit codes:
  0    every document was scored
  1    failed: a file, the model or the output; scores are kept
  2    the command line is wrong
  3    some documents could not be scored; they are listed with the reason
  4    --timeout passed; scores are kept
  130  Ctrl-C; scores are kept (a second Ctrl-C quits at once)";

const INSPECT_HELP: &str = "\
--json prints one object: model, description, vocab_size, prompt (null with --ids), query_truncated,
document_truncated, and tokens[] with position, id, text, control, and next[], the most probable
tokens behind that position, each with id, text and log_prob (natural logarithm).";

/// Reranks documents with ERank, a reasoning language model, in this process or on your servers.
///
/// Without a command, runs a demonstration with the bundled model.
#[derive(Debug, Parser)]
#[command(name = "erank", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Orders documents by how well they fit a query.
    #[command(after_help = format!("{RERANK_HELP}\n\n{EXIT_CODES}"))]
    Rerank(RerankArguments),
    /// Finds documents with BM25, and orders what it found by how well they fit the query.
    #[cfg(feature = "search")]
    #[command(after_help = format!("{RERANK_HELP}\n\n{EXIT_CODES}"))]
    Search(SearchArguments),
    /// Measures how much better a judged run gets by reranking it.
    #[command(after_help = format!("{EVAL_HELP}\n\n{EVAL_EXIT_CODES}"))]
    Eval(EvalArguments),
    /// Shows the rendered prompt, its tokens, and what the model finds most probable next.
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArguments),
}

#[derive(Debug, Args)]
pub(crate) struct RerankArguments {
    /// What the user searched for.
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) query: String,
    #[command(flatten)]
    pub(crate) goal: Goal,
    /// The documents: a file with one a line, or a folder of text files; "-" is standard input.
    #[arg(short, long, value_name = "FILE|FOLDER", default_value = "-")]
    pub(crate) docs: String,
    /// Shows only the best N.
    #[arg(short = 'k', long, value_name = "N")]
    pub(crate) top_k: Option<NonZeroUsize>,
    /// Joins in the first stage's scores with this weight, between 0 and 1: z-scores of both are
    /// added up. Without a value, 0.2. Then every document needs a "score".
    #[arg(long, value_name = "ALPHA", num_args = 0..=1, default_missing_value = "0.2", value_parser = weight)]
    pub(crate) hybrid: Option<f64>,
    #[command(flatten)]
    pub(crate) thinking: Thinking,
    /// Answers at once for all documents, and thinks only about the best N of those.
    #[arg(long, value_name = "N", conflicts_with = "answer_only")]
    pub(crate) think_about: Option<NonZeroUsize>,
    /// Thinks K times about each document and ranks by the mean.
    #[arg(long, value_name = "K", requires = "temperature")]
    pub(crate) samples: Option<NonZeroUsize>,
    /// Chooses tokens by chance at this temperature; without it, always the most probable.
    #[arg(long, value_name = "T", conflicts_with = "answer_only")]
    pub(crate) temperature: Option<f32>,
    /// Chooses otherwise by chance: the same seed gives the same thoughts.
    #[arg(long, value_name = "N", requires = "temperature")]
    pub(crate) seed: Option<u64>,
    /// What to rank by: N × P(N), the expected value of the answers, or the answer alone.
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    pub(crate) score: Score,
    /// Stops after this time, and prints what is done.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Shows the whole thought under each row.
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
    /// BM25 chooses this many documents; the others are not looked at.
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
    /// What to measure, as ir-measures writes it, with commas between; the first is tested for
    /// significance in the table and drawn.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "nDCG@10,RR@10,AP,P@10"
    )]
    pub(crate) measure: Vec<Measure>,
    /// The folder for what is computed. What it holds already is not computed again.
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: PathBuf,
    /// The first stage's weight in hybrid.run, between 0 and 1. The figures are of 0.1 to 0.9 as well.
    #[arg(long, value_name = "ALPHA", default_value = "0.2", value_parser = weight)]
    pub(crate) hybrid: f64,
    #[command(flatten)]
    pub(crate) goal: Goal,
    #[command(flatten)]
    pub(crate) thinking: Thinking,
    /// What to rank by: N × P(N), the expected value of the answers, or the answer alone.
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    pub(crate) score: Score,
    /// Stops after this time; the same command goes on.
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

/// Where the candidates, their texts and the grades are.
#[derive(Debug, Args)]
#[command(next_help_heading = "Collection")]
pub(crate) struct CollectionArguments {
    /// The first stage's run, in TREC's format.
    #[arg(long, value_name = "FILE", required_unless_present = "jsonl", conflicts_with = "jsonl")]
    pub(crate) run: Option<PathBuf>,
    /// People's grades, in TREC's format or BEIR's.
    #[arg(long, value_name = "FILE", required_unless_present = "beir", conflicts_with = "beir")]
    pub(crate) qrels: Option<PathBuf>,
    /// The queries' texts.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present_any = ["beir", "jsonl"],
        conflicts_with_all = ["beir", "jsonl"]
    )]
    pub(crate) queries: Option<PathBuf>,
    /// The documents' texts; may be given several times.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present_any = ["beir", "jsonl"],
        conflicts_with_all = ["beir", "jsonl"]
    )]
    pub(crate) corpus: Vec<PathBuf>,
    /// A folder in BEIR's layout, for grades and texts.
    #[arg(long, value_name = "FOLDER", conflicts_with = "jsonl")]
    pub(crate) beir: Option<PathBuf>,
    /// Which of the folder's grades.
    #[arg(long, value_name = "NAME", default_value = "test")]
    pub(crate) split: String,
    /// Queries with their candidates' texts and scores, one query a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) jsonl: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// The query of the prompt.
    #[arg(short, long, value_name = "TEXT", default_value = "what is a jet?")]
    pub(crate) query: String,
    /// The document of the prompt.
    #[arg(short, long, value_name = "TEXT", default_value = "A jet is a stream of fluid.")]
    pub(crate) document: String,
    #[command(flatten)]
    pub(crate) goal: Goal,
    /// Adds what `rerank --answer-only` adds to the prompt, so that the answer comes next.
    #[arg(short, long)]
    pub(crate) answer_only: bool,
    /// Adds this text to the prompt, as if the model had written it. Control tokens in it count.
    #[arg(long, value_name = "TEXT", conflicts_with = "answer_only")]
    pub(crate) append: Option<String>,
    /// Takes these token ids instead of a prompt: numbers with commas or spaces between them, as a
    /// JSON array as well; "-" is standard input.
    #[arg(
        long,
        value_name = "IDS",
        conflicts_with_all = ["query", "document", "instruction", "task", "answer_only", "append"]
    )]
    pub(crate) ids: Option<String>,
    /// Shows the K most probable next tokens at every position.
    #[arg(short = 'k', long, value_name = "K")]
    pub(crate) logprobs: Option<NonZeroUsize>,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
}

/// The goal or relevance definition in the prompt.
#[derive(Debug, Args)]
pub(crate) struct Goal {
    /// The goal or relevance definition, in your own words. Control tokens in it count.
    #[arg(short, long, value_name = "TEXT", conflicts_with = "task")]
    instruction: Option<String>,
    /// The goal or relevance definition that ERank was evaluated with on this task.
    #[arg(short, long, value_name = "NAME", value_parser = task())]
    task: Option<&'static str>,
}

impl Goal {
    pub(crate) fn instruction(&self) -> &str {
        self.instruction.as_deref().or(self.task).unwrap_or(instructions::GENERIC)
    }
}

/// Whether and how long the model thinks.
#[derive(Debug, Args)]
pub(crate) struct Thinking {
    /// Answers at once, without thinking: much faster, less accurate.
    #[arg(short, long)]
    answer_only: bool,
    /// Thinks for at most this many tokens per document; then the answer is forced.
    #[arg(long, value_name = "N", conflicts_with = "answer_only")]
    max_tokens: Option<NonZeroUsize>,
}

impl Thinking {
    /// The mode that was asked for, or `default`.
    pub(crate) fn mode(&self, default: Mode) -> Mode {
        match self.max_tokens {
            _ if self.answer_only => Mode::AnswerOnly,
            Some(max_tokens) => Mode::Reason { max_tokens: max_tokens.get() },
            None => default,
        }
    }
}

/// Which model, and how it runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArguments {
    /// A folder with config.json, tokenizer.json, tokenizer_config.json and model.safetensors, or a
    /// name on the model hub such as Alibaba-NLP/ERank-4B, with an optional @REVISION. "tiny" is the
    /// bundled model, a purely lexical demonstration.
    #[arg(short, long, value_name = "FOLDER|NAME", default_value = "tiny")]
    pub(crate) model: String,
    /// The type that weights are kept in; by default the model's own.
    #[arg(long, value_name = "TYPE", value_enum)]
    pub(crate) dtype: Option<Dtype>,
    /// Where the model is computed. A GPU takes an erank built with the feature of this name.
    #[arg(long, value_name = "DEVICE", value_enum, default_value_t)]
    pub(crate) device: Device,
    /// Threads to compute with; by default one per core.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// A document is cut to this many tokens; by default 2048, or half of what the model can hold.
    #[arg(long, value_name = "N")]
    pub(crate) max_document_tokens: Option<NonZeroUsize>,
    /// Memory for what the model keeps of the texts that it works on, in MiB; by default a
    /// quarter of what is available.
    #[arg(long, value_name = "MIB")]
    pub(crate) cache_mb: Option<NonZeroUsize>,
}

/// A model that runs elsewhere.
#[derive(Debug, Args)]
#[command(next_help_heading = "Remote model")]
pub(crate) struct RemoteArguments {
    /// Where the model runs: in this process, or on a server with an OpenAI-compatible API (vLLM,
    /// llama.cpp). Then --model is its name there, by default the only one, and ERANK_API_KEY in the
    /// environment the key.
    #[arg(long, value_name = "WHERE", value_enum, default_value_t)]
    pub(crate) backend: Backend,
    /// The server's address, such as http://gpu-1:8000; given several times, the work is spread.
    #[arg(
        long,
        value_name = "URL",
        required_if_eq("backend", "openai"),
        conflicts_with_all = ["dtype", "device", "threads", "cache_mb"]
    )]
    pub(crate) url: Vec<String>,
    /// How prompts reach the model; by default in its own template, which the server renders.
    #[arg(long, value_name = "HOW", value_enum)]
    pub(crate) prompts: Option<Prompts>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Prompts {
    /// As text in the model's own template; llama.cpp and vLLM render it
    #[default]
    Template,
    /// As text in ChatML, the form of Qwen3's template, for servers that render none
    Chatml,
    /// As messages, for servers that have nothing else; not with --answer-only
    Chat,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    #[default]
    Candle,
    Openai,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Device {
    #[default]
    Cpu,
    /// The first of NVIDIA's GPUs
    Cuda,
    /// Apple's GPU
    Metal,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Dtype {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Score {
    #[default]
    ProbabilityWeighted,
    ExpectedValue,
    Integer,
}

impl From<Score> for ScoreKind {
    fn from(score: Score) -> Self {
        match score {
            Score::ProbabilityWeighted => Self::ProbabilityWeighted,
            Score::ExpectedValue => Self::ExpectedValue,
            Score::Integer => Self::Integer,
        }
    }
}

/// The instruction of a preset's name; a wrong name lists the choices.
fn task() -> impl TypedValueParser<Value = &'static str> {
    PossibleValuesParser::new(instructions::PRESETS.map(|(name, _)| name))
        .map(|name| instructions::preset(&name).unwrap_or(instructions::GENERIC))
}

fn weight(given: &str) -> Result<f64, String> {
    match given.parse() {
        Ok(weight) if (0.0..=1.0).contains(&weight) => Ok(weight),
        _ => Err("give a number between 0 (the model alone) and 1 (the first stage alone)".into()),
    }
}

fn seconds(given: &str) -> Result<Duration, String> {
    let seconds = given.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "give a number of seconds, such as 2.5".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_remote_model_needs_an_address_and_no_settings_of_a_local_one() {
        let parse = |arguments: &str| {
            let arguments = format!("erank rerank -q x {arguments}");
            Arguments::try_parse_from(arguments.split_whitespace()).map(|_| ())
        };
        assert!(parse("--backend openai --url http://a --url http://b --model m").is_ok());
        assert!(parse("--backend openai").is_err());
        assert!(parse("--backend openai --url http://a --threads 2").is_err());
        assert!(parse("--backend elsewhere").is_err());
        assert!(parse("--backend openai --url http://a --prompts chatml").is_ok());
        assert!(parse("--backend openai --url http://a --prompts frame").is_err());
    }

    #[test]
    fn numbers_are_checked() {
        assert_eq!(weight("0.25"), Ok(0.25));
        assert!(["-0.1", "1.01", "NaN", "x", ""].iter().all(|given| weight(given).is_err()));
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert!(["-1", "NaN", "1e300", ""].iter().all(|given| seconds(given).is_err()));
    }
}
