//! Measures the engine on a model of a true shape with random weights.
//!
//! ```sh
//! cargo run --release -p erank-benches --bin engine -- [0.6B|4B] [NAME…]
//! ```
//!
//! Names choose among the measurements: `job`, `cold`, `threads`, `thousand`, `alone`; by default
//! all. Each prints one line of JSON on standard output: shape, name, value, unit, and what else it
//! saw. The checkpoint (1.2 or 8 GB) is written once to the folder for temporary files.
//!
//! The job: 32 prompts with a common beginning of 150 tokens and 350 tokens each of their own, 64
//! tokens of thought each, then the forced answer.

use std::error::Error;
use std::time::{Duration, Instant};

use erank_benches::checkpoint::{Behaviour, Shape};
use erank_benches::words::Words;
use erank_benches::{median, memory};
use erank_candle::{CandleBackend, Checkpoint, Settings};
use erank_core::backend::{Completion, DocumentError, Job};
use erank_core::{
    BoundPrompt, FinishReason, Mode, PromptTemplate, ScoringBackend, ScoringOptions, Sink,
};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const CACHE_BYTES: usize = 4 << 30;
const PROMPTS: usize = 32;
const SHARED_TOKENS: usize = 150;
const OWN_TOKENS: usize = 350;
const NEW_TOKENS: usize = 64;
const RUNS: usize = 3;

fn main() -> Result<()> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let shape = match names.first().and_then(|name| Shape::of(name)) {
        Some(shape) => {
            names.remove(0);
            shape
        }
        None => erank_benches::checkpoint::SHAPES[0],
    };
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    if names.iter().all(|name| name == "alone") && !names.is_empty() {
        return alone(shape);
    }

    let begin = Instant::now();
    memory::reset_peak()?;
    let backend = load(shape, Behaviour::Random, 8)?;
    let bench = Bench { shape, words: Words::of(backend.tokenizer())?, backend };
    let loading = bench.memory("loading", json!({"seconds": begin.elapsed().as_secs_f64()}))?;
    println!("{loading}");
    bench.run(is_wanted)?;
    if is_wanted("alone") {
        alone(shape)?;
    }
    Ok(())
}

fn load(shape: Shape, behaviour: Behaviour, draft_tokens: usize) -> Result<CandleBackend> {
    let folder = shape.folder(behaviour);
    shape.write(&folder, behaviour)?;
    let mut settings = Settings::default();
    settings.cache_bytes = Some(CACHE_BYTES);
    settings.draft_tokens = draft_tokens;
    Ok(CandleBackend::load(&Checkpoint::open(folder)?, &settings)?)
}

struct Bench {
    shape: Shape,
    backend: CandleBackend,
    words: Words,
}

/// Counts completions, and makes sure that each is what was asked for.
#[derive(Default)]
struct Count {
    done: usize,
}

impl Sink for Count {
    fn completed(&mut self, _: usize, outcome: std::result::Result<Completion, DocumentError>) {
        let completion = outcome.expect("a completion");
        assert_eq!(completion.finish, FinishReason::Forced, "{}", completion.text);
        self.done += 1;
    }
}

/// A query with documents such that prompts have a given number of tokens.
struct Texts {
    query: String,
    documents: Vec<String>,
}

impl Bench {
    fn run(mut self, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
        // Once to have everything in memory.
        let warm_up = self.texts(SHARED_TOKENS, OWN_TOKENS, 2)?;
        self.score(&warm_up, 2)?;
        if is_wanted("job") {
            let times = (0..RUNS)
                .map(|_| {
                    let texts = self.texts(SHARED_TOKENS, OWN_TOKENS, PROMPTS)?;
                    self.score(&texts, NEW_TOKENS)
                })
                .collect::<Result<Vec<_>>>()?;
            self.report("job", times)?;
        }
        if is_wanted("cold") {
            // Every prompt with a query of its own: nothing to share.
            let times = (0..RUNS)
                .map(|_| {
                    let texts = (0..PROMPTS)
                        .map(|_| self.texts(SHARED_TOKENS, OWN_TOKENS, 1))
                        .collect::<Result<Vec<_>>>()?;
                    self.together(&texts)
                })
                .collect::<Result<Vec<_>>>()?;
            self.report("cold", times)?;
        }
        if is_wanted("threads") {
            let times = (0..RUNS)
                .map(|_| {
                    let Texts { query, documents } =
                        self.texts(SHARED_TOKENS, OWN_TOKENS, PROMPTS)?;
                    let parts = documents.chunks(PROMPTS / 8).map(|documents| Texts {
                        query: query.clone(),
                        documents: documents.to_vec(),
                    });
                    self.together(&parts.collect::<Vec<_>>())
                })
                .collect::<Result<Vec<_>>>()?;
            self.report("threads", times)?;
        }
        if is_wanted("thousand") {
            // Short ones, so that it ends; beside it, 100 of the same kind.
            for count in [100, 1000] {
                memory::reset_peak()?;
                let texts = self.texts(30, 20, count)?;
                let before = self.backend.statistics();
                let time = self.score(&texts, 2)?;
                let after = self.backend.statistics();
                let tokens = after.prompt_tokens + after.generated_tokens
                    - before.prompt_tokens
                    - before.generated_tokens;
                let rate = tokens as f64 / time.as_secs_f64();
                let more = json!({"seconds": time.as_secs_f64(), "tokens_per_second": rate});
                println!("{}", self.memory(&format!("{count} documents"), more)?);
            }
        }
        Ok(())
    }

    fn texts(&mut self, shared: usize, own: usize, count: usize) -> Result<Texts> {
        let template = PromptTemplate::erank();
        let tokens = |bench: &Self, query: &str, document: &str| -> Result<usize> {
            let prompt = template.bind("", query);
            let options = ScoringOptions::default();
            Ok(bench.backend.encode(&prompt, document, &options)?.1.ids.len())
        };
        let frame = tokens(self, "", "")?;
        let query = self.words.text(shared - frame / 2);
        let documents = (0..count).map(|_| self.words.text(own - frame.div_ceil(2))).collect();
        let texts = Texts { query, documents };
        assert_eq!(tokens(self, &texts.query, &texts.documents[0])?, shared + own);
        Ok(texts)
    }

    fn score(&self, texts: &Texts, new_tokens: usize) -> Result<Duration> {
        let begin = Instant::now();
        score(&self.backend, texts, new_tokens)?;
        Ok(begin.elapsed())
    }

    /// Each of `texts` on a thread of its own, all at once.
    fn together(&self, texts: &[Texts]) -> Result<Duration> {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let calls: Vec<_> = texts
                .iter()
                .map(|texts| {
                    scope.spawn(|| {
                        score(&self.backend, texts, NEW_TOKENS).map_err(|e| e.to_string())
                    })
                })
                .collect();
            for call in calls {
                call.join().map_err(|_| "a thread panicked")??;
            }
            Ok(begin.elapsed())
        })
    }

    fn report(&self, name: &str, times: Vec<Duration>) -> Result<()> {
        let seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        let value = median(times).as_secs_f64();
        let more = json!({"value": value, "unit": "s", "runs": seconds});
        println!("{}", self.memory(name, more)?);
        Ok(())
    }

    /// A line with the peak of memory, and what it may be.
    fn memory(&self, name: &str, more: Value) -> Result<Value> {
        let weights = self.shape.weight_bytes() as f64;
        let limit = weights * 1.15 + CACHE_BYTES as f64 + 300e6;
        let mut line = json!({
            "shape": self.shape.name,
            "name": name,
            "kernels": self.backend.description(),
            "peak_bytes": memory::peak()?,
            "peak_limit_bytes": limit as u64,
        });
        if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
            line.extend(more);
        }
        Ok(line)
    }
}

fn score(backend: &CandleBackend, texts: &Texts, new_tokens: usize) -> Result<()> {
    let template = PromptTemplate::erank();
    let prompt: BoundPrompt<'_> = template.bind("", &texts.query);
    let documents: Vec<&str> = texts.documents.iter().map(String::as_str).collect();
    let mut options = ScoringOptions::default();
    options.mode = Mode::Reason { max_tokens: new_tokens };
    let mut count = Count::default();
    let job = Job::new(prompt, &documents).with_options(options);
    backend.score(&job, &mut count)?;
    assert_eq!(count.done, documents.len());
    Ok(())
}

/// One document alone, with and without guesses: where every guess is right, and where none is.
fn alone(shape: Shape) -> Result<()> {
    for behaviour in [Behaviour::Random, Behaviour::Repeats] {
        for draft_tokens in [0, 4, 8] {
            let backend = load(shape, behaviour, draft_tokens)?;
            let words = Words::of(backend.tokenizer())?;
            let mut bench = Bench { shape, backend, words };
            let mut times = Vec::new();
            for _ in 0..RUNS {
                let texts = bench.texts(SHARED_TOKENS, OWN_TOKENS, 1)?;
                // Once for the cache, so that what is timed is nearly all decoding.
                bench.score(&texts, 1)?;
                times.push(bench.score(&texts, NEW_TOKENS)?);
            }
            let after = bench.backend.statistics();
            let seconds = median(times).as_secs_f64();
            println!(
                "{}",
                json!({
                    "shape": shape.name,
                    "name": "alone",
                    "behaviour": format!("{behaviour:?}"),
                    "draft_tokens": draft_tokens,
                    "value": NEW_TOKENS as f64 / seconds,
                    "unit": "tokens/s",
                    "drafted": after.drafted_tokens,
                    "accepted": after.accepted_tokens,
                })
            );
        }
    }
    Ok(())
}
