//! Measures the engine on a model of a real shape with random weights.
//!
//! ```sh
//! cargo run --release -p erank-benches --bin engine -- [0.6B|4B|14B|32B] [NAME…] [weights=FORMAT] [cache=MIB]
//! ```
//!
//! Each NAME selects a measurement. Without one, all of them run except `long` and `one-pass`.
//!
//! - `job`: seconds of a call with 32 documents. The prompts share a prefix of 150 tokens and have 350 more
//!   tokens each; the model thinks for 64 tokens about each document, then the answer is forced.
//! - `cold`: seconds of the same work with a different query for every document, so no prefix is shared.
//! - `threads`: seconds of the job, split into eight calls at the same time.
//! - `budget`: seconds to read prompts until the KV cache is full.
//! - `alone`: tokens per second of decoding one document, with 0, 4 and 8 speculative tokens.
//! - `growth`: seconds of a call with more or fewer documents, document tokens, thought tokens and threads.
//! - `long` or `long=COUNT`: seconds of a call with COUNT (1,000 by default) of the job's documents, and the
//!   peak memory of every tenth of it. 1,000 documents take half an hour to an hour on two cores.
//! - `one-pass` or `one-pass=COUNT`: documents per second of a reranker of one pass (a prompt like
//!   Qwen3-Reranker's, no thought), for COUNT (100 by default) documents of 128, 512 and 2,048 tokens. The
//!   prompts share 100 tokens. With documents of 128 tokens, two more figures have an instruction of 400 more
//!   tokens: once the same for all documents, once a different one for each, so that no prefix is shared.
//!
//! `weights` measures a GGUF file in another format than BF16, such as `q8_0`, which is written once beside the
//! checkpoint. `cache` sets the budget of the KV cache in MiB, 4096 by default. The checkpoint (1.2,
//! 8, 30 or 66 GB) is written once to the folder for temporary files.
//!
//! Each measurement prints lines of JSON on standard output: shape, name, value, unit, and details. `limit`
//! is the time that the multiplications of all computed tokens take at the arithmetic peak, which is measured
//! just before and just after the run; `fraction` is the limit divided by the value. A measurement fails if
//! the process had more in memory than weights × 1.15 + the cache's budget + 300 MB.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use erank_benches::checkpoint::{Behaviour, SHAPES, Shape};
use erank_benches::words::Words;
use erank_benches::{median, memory};
use erank_candle::internals::BLOCK_TOKENS;
use erank_candle::internals::measure::matrix_peak;
use erank_candle::{CandleBackend, CandleSettings, Statistics, WeightFormat};
use erank_core::{
    AnswerFormat, BoundPrompt, FinishReason, Mode, PromptTemplate, ScoringBackend, ScoringOptions,
    Sink,
};
use erank_core::{Completion, DocumentError, Job};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PROMPTS: usize = 32;
const SHARED_TOKENS: usize = 150;
const OWN_TOKENS: usize = 350;
const NEW_TOKENS: usize = 64;
const RUNS: usize = 3;
/// Tokens that the prompts of `one-pass` share: the frame, the instruction and the query.
const ONE_PASS_SHARED_TOKENS: usize = 100;
/// A prompt with the parts of Qwen3-Reranker's. The tokenizer of the demonstration model has no token for `no`
/// or `yes`, so the answers are 0 and 1.
const ONE_PASS_PROMPT: &str = "<|im_start|>system\nJudge the Document.<|im_end|>\n<|im_start|>user\n\
    <Instruct>: {instruction}\n<Query>: {query}\n<Document>: {doc}<|im_end|>\n<|im_start|>assistant\n";
/// The measurements that run by default.
const ALL: [&str; 6] = ["job", "cold", "threads", "budget", "alone", "growth"];
/// Bytes by which the peak memory of a long call's second half may exceed that of its first half.
const MEMORY_TOLERANCE: u64 = 32 << 20;

fn main() -> Result<()> {
    let Arguments { shape, weights, kv_cache_memory_bytes, names, long, one_pass } =
        Arguments::read()?;
    let mut settings = CandleSettings::default();
    settings.weights = weights;
    let (with_own_settings, with_defaults): (Vec<_>, Vec<_>) =
        names.iter().partition(|name| ["alone", "growth"].contains(&name.as_str()));
    if !with_defaults.is_empty() {
        let begin = Instant::now();
        memory::reset_peak()?;
        let mut bench = Bench::load(shape, Behaviour::Random, kv_cache_memory_bytes, settings)?;
        let seconds = begin.elapsed().as_secs_f64();
        bench.print("loading", memory::peak()?, json!({"value": seconds, "unit": "s"}))?;
        // Reads all weights into memory.
        let warm_up = bench.texts(2, OWN_TOKENS)?;
        bench.score(&warm_up, 2, |_| ())?;
        for name in with_defaults {
            match name.as_str() {
                "job" => bench.job()?,
                "cold" => bench.cold()?,
                "threads" => bench.threads()?,
                "budget" => bench.budget()?,
                "one-pass" => bench.one_pass(one_pass)?,
                _ => bench.long(long)?,
            }
        }
    }
    // These load the model again, with other settings.
    for name in with_own_settings {
        match name.as_str() {
            "alone" => measure_speculation(shape, kv_cache_memory_bytes)?,
            _ => measure_call_sizes(shape, kv_cache_memory_bytes)?,
        }
    }
    Ok(())
}

struct Arguments {
    shape: Shape,
    weights: Option<WeightFormat>,
    kv_cache_memory_bytes: usize,
    names: Vec<String>,
    /// Number of documents of `long`.
    long: usize,
    /// Number of documents of `one-pass`.
    one_pass: usize,
}

impl Arguments {
    fn read() -> Result<Self> {
        let mut read = Self {
            shape: SHAPES[0],
            weights: None,
            kv_cache_memory_bytes: 4 << 30,
            names: vec![],
            long: 1000,
            one_pass: 100,
        };
        for argument in std::env::args().skip(1) {
            if let Some(format) = argument.strip_prefix("weights=") {
                read.weights = Some(format.parse()?);
                continue;
            }
            let (name, number) = match argument.split_once('=') {
                Some((name, number)) => {
                    let number = number.parse().map_err(|_| format!("{argument}: not a number"))?;
                    (name, Some(number))
                }
                None => (argument.as_str(), None),
            };
            match (name, number) {
                ("cache", Some(mebibytes)) => read.kv_cache_memory_bytes = mebibytes << 20,
                ("long", count) => {
                    read.long = count.unwrap_or(read.long);
                    read.names.push(name.to_owned());
                }
                ("one-pass", count) => {
                    read.one_pass = count.unwrap_or(read.one_pass);
                    read.names.push(name.to_owned());
                }
                (name, None) if ALL.contains(&name) => read.names.push(name.to_owned()),
                (name, None) => {
                    let shape = Shape::of(name);
                    read.shape = shape
                        .ok_or_else(|| format!("{name} is neither a shape nor a measurement"))?;
                }
                _ => {
                    return Err(
                        format!("{argument}: only cache, long and one-pass take a number").into()
                    );
                }
            }
        }
        if read.names.is_empty() {
            read.names = ALL.map(str::to_owned).to_vec();
        }
        Ok(read)
    }
}

/// Counts completions, and asserts that each one ends as expected.
struct Count<F> {
    finish_reason: FinishReason,
    done: usize,
    each: F,
}

impl<F: FnMut(usize)> Sink for Count<F> {
    fn completed(&mut self, _: usize, outcome: std::result::Result<Completion, DocumentError>) {
        let completion = outcome.expect("a completion");
        assert_eq!(completion.finish_reason, self.finish_reason, "{}", completion.text);
        self.done += 1;
        (self.each)(self.done);
    }
}

/// A query and documents whose prompts have an exact number of tokens.
struct Texts {
    query: String,
    documents: Vec<String>,
}

/// The duration of a run, and the tokens that the engine computed in it.
struct Run {
    seconds: f64,
    /// Prompt tokens that were not in the cache, and generated tokens.
    tokens: u64,
    generated_tokens: u64,
    /// Operations per second of the kernels with all operands in the nearest cache, measured just before
    /// and just after the run.
    peak_operations: f64,
}

impl Run {
    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

struct Bench {
    shape: Shape,
    format: WeightFormat,
    kv_cache_memory_bytes: usize,
    backend: CandleBackend,
    words: Words,
}

impl Bench {
    fn load(
        shape: Shape,
        behaviour: Behaviour,
        kv_cache_memory_bytes: usize,
        mut settings: CandleSettings,
    ) -> Result<Self> {
        let checkpoint = shape.checkpoint(behaviour, settings.weights)?;
        settings.kv_cache_memory_bytes = Some(kv_cache_memory_bytes);
        let backend = CandleBackend::load(&checkpoint, &settings)?;
        let format = settings.weights.unwrap_or(WeightFormat::Bf16);
        Ok(Self {
            shape,
            format,
            kv_cache_memory_bytes,
            words: Words::of(backend.tokenizer())?,
            backend,
        })
    }

    fn job(&mut self) -> Result<()> {
        self.repeat_thoughts("job", |bench| Ok(vec![bench.texts(PROMPTS, OWN_TOKENS)?]))
    }

    /// Measures one call per document, each with a different query, so that no prefix is shared.
    fn cold(&mut self) -> Result<()> {
        self.repeat_thoughts("cold", |bench| {
            (0..PROMPTS).map(|_| bench.texts(1, OWN_TOKENS)).collect()
        })
    }

    /// Measures the job as eight calls at the same time.
    fn threads(&mut self) -> Result<()> {
        self.repeat_thoughts("threads", |bench| {
            let Texts { query, documents } = bench.texts(PROMPTS, OWN_TOKENS)?;
            let parts = documents.chunks(PROMPTS / 8);
            Ok(parts.map(|part| Texts { query: query.clone(), documents: part.to_vec() }).collect())
        })
    }

    /// Measures calls with a thought about each document, as [`repeat`](Self::repeat) does.
    fn repeat_thoughts(
        &mut self,
        name: &str,
        calls: impl Fn(&mut Self) -> Result<Vec<Texts>>,
    ) -> Result<()> {
        let score = |bench: &Self, texts: &Texts| bench.score(texts, NEW_TOKENS, |_| ());
        self.repeat(name, calls, score, |seconds| json!({"runs": seconds}))
    }

    /// Measures calls that run at the same time, each on its own thread, and reports the median run. `more` returns
    /// details from the seconds of all runs.
    fn repeat<C: Send + Sync>(
        &mut self,
        name: &str,
        calls: impl Fn(&mut Self) -> Result<Vec<C>>,
        score: impl Fn(&Self, &C) -> Result<()> + Sync,
        more: impl FnOnce(&[f64]) -> Value,
    ) -> Result<()> {
        memory::reset_peak()?;
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let calls = calls(self)?;
            runs.push(self.run(|bench| {
                let score = |call: &C| score(bench, call).map_err(|e| e.to_string());
                let score = &score;
                std::thread::scope(|scope| {
                    let threads: Vec<_> =
                        calls.iter().map(|call| scope.spawn(move || score(call))).collect();
                    for thread in threads {
                        thread.join().map_err(|_| "a thread panicked")??;
                    }
                    Ok(())
                })
            })?);
        }
        runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        self.report(name, &runs[RUNS / 2], memory::peak()?, more(&seconds))
    }

    /// Measures reading more prompts than the cache can hold.
    fn budget(&mut self) -> Result<()> {
        memory::reset_peak()?;
        let texts = self.texts(self.documents_to_fill() + 1, OWN_TOKENS)?;
        let run = self.run(|bench| bench.score(&texts, 2, |_| ()))?;
        let Statistics { prefix_blocks, total_blocks, .. } = self.backend.statistics();
        let more = json!({"prefix_blocks": prefix_blocks, "total_blocks": total_blocks});
        self.report("budget", &run, memory::peak()?, more)?;
        // Prompts fill the cache. Only blocks of thoughts were freed, as no later prompt can share them.
        assert!(prefix_blocks * 10 > total_blocks * 9, "the cache is not full");
        Ok(())
    }

    /// Measures many documents in one call, compares their throughput with the job's, and asserts that
    /// memory stays constant.
    fn long(&mut self, count: usize) -> Result<()> {
        // The cache must be full by the middle of the call; otherwise its filling would look like a leak.
        // The job that runs first fills a part of it.
        let fewest = (2 * self.documents_to_fill().saturating_sub(PROMPTS)).max(10);
        if count < fewest {
            return Err(format!("long needs {fewest} documents with a cache of this size").into());
        }
        let texts = self.texts(PROMPTS, OWN_TOKENS)?;
        let job = self.run(|bench| bench.score(&texts, NEW_TOKENS, |_| ()))?;

        let texts = self.texts(count, OWN_TOKENS)?;
        let mut peaks = Vec::new();
        memory::reset_peak()?;
        let run = self.run(|bench| {
            bench.score(&texts, NEW_TOKENS, |done| {
                if done * 10 / count > peaks.len() {
                    peaks.push(memory::peak().and_then(|peak| memory::reset_peak().map(|()| peak)));
                }
            })
        })?;
        let peaks = peaks.into_iter().collect::<std::io::Result<Vec<u64>>>()?;
        let (first, second) = peaks.split_at(peaks.len() / 2);
        let [first, second] = [first, second].map(|half| half.iter().copied().max().unwrap_or(0));
        let more = json!({
            "documents": count,
            "of_job": run.tokens_per_second() / job.tokens_per_second(),
            "peak_bytes_by_tenth": peaks,
        });
        self.report("long", &run, first.max(second), more)?;
        assert!(
            second <= first + MEMORY_TOLERANCE,
            "the second half took {second} bytes, the first {first}"
        );
        Ok(())
    }

    /// Measures documents of three lengths with one pass each, then long instructions.
    fn one_pass(&mut self, documents: usize) -> Result<()> {
        let cases =
            [(0, 128, true), (0, 512, true), (0, 2048, true), (400, 128, true), (400, 128, false)];
        for (instruction_tokens, own_tokens, is_shared) in cases {
            // Documents with instructions of their own are calls one after another.
            let (calls, of_call) = if is_shared { (1, documents) } else { (documents, 1) };
            self.repeat(
                "one-pass",
                |bench| {
                    let texts = |_| bench.one_pass_texts(instruction_tokens, of_call, own_tokens);
                    Ok(vec![(0..calls).map(texts).collect::<Result<Vec<_>>>()?])
                },
                |bench, calls| {
                    calls.iter().try_for_each(|(instruction, texts)| {
                        bench.score_in_one_pass(instruction, texts)
                    })
                },
                |seconds| {
                    let rates: Vec<f64> = seconds.iter().map(|s| documents as f64 / s).collect();
                    let shared_tokens = match is_shared {
                        true => ONE_PASS_SHARED_TOKENS + instruction_tokens,
                        false => 0,
                    };
                    json!({
                        "documents": documents,
                        "own_tokens": own_tokens,
                        "shared_tokens": shared_tokens,
                        "documents_per_second": rates[RUNS / 2],
                        "runs": rates,
                    })
                },
            )?;
        }
        Ok(())
    }

    /// Returns an instruction, a query and `count` documents. Each prompt has [`ONE_PASS_SHARED_TOKENS`] and
    /// the instruction's tokens before the document's own tokens and the frame's end.
    fn one_pass_texts(
        &mut self,
        instruction_tokens: usize,
        count: usize,
        own_tokens: usize,
    ) -> Result<(String, Texts)> {
        let template = one_pass_template()?;
        let options = ScoringOptions::qwen3_reranker();
        let tokens = |bench: &Self, instruction: &str, query: &str| -> Result<usize> {
            let prompt = template.bind(instruction, query);
            Ok(bench.backend.encode(&prompt, "", &options)?.1.ids.len())
        };
        let instruction = self.words.text(instruction_tokens);
        let frame = tokens(self, &instruction, "")?;
        let total = ONE_PASS_SHARED_TOKENS + instruction_tokens;
        let query = self.words.text(total.checked_sub(frame).ok_or("the frame is too long")?);
        let difference = tokens(self, &instruction, &query)?.abs_diff(total);
        assert!(difference <= 2, "the prompts differ by {difference} tokens from {total}");
        let documents = (0..count).map(|_| self.words.text(own_tokens)).collect();
        Ok((instruction, Texts { query, documents }))
    }

    fn score_in_one_pass(&self, instruction: &str, texts: &Texts) -> Result<()> {
        let template = one_pass_template()?;
        let count = Count { finish_reason: FinishReason::Answered, done: 0, each: |_| () };
        let prompt = template.bind(instruction, &texts.query);
        self.score_prompts(prompt, &texts.documents, ScoringOptions::qwen3_reranker(), count)
    }

    /// Returns a number of documents that need more blocks than the cache has.
    fn documents_to_fill(&self) -> usize {
        self.backend.statistics().total_blocks / (OWN_TOKENS / BLOCK_TOKENS) + 1
    }

    /// Returns a query and `count` documents. Each prompt shares [`SHARED_TOKENS`] tokens with the others
    /// and has `own_tokens` more.
    fn texts(&mut self, count: usize, own_tokens: usize) -> Result<Texts> {
        let template = PromptTemplate::erank();
        let tokens = |bench: &Self, query: &str, document: &str| -> Result<usize> {
            let prompt = template.bind("", query);
            let options = ScoringOptions::default();
            Ok(bench.backend.encode(&prompt, document, &options)?.1.ids.len())
        };
        let frame = tokens(self, "", "")?;
        let query = self.words.text(SHARED_TOKENS - frame / 2);
        let own = own_tokens - frame.div_ceil(2);
        let documents = (0..count).map(|_| self.words.text(own)).collect();
        let texts = Texts { query, documents };
        assert_eq!(tokens(self, &texts.query, &texts.documents[0])?, SHARED_TOKENS + own_tokens);
        Ok(texts)
    }

    /// Scores all documents in one call, and calls `each` with the number of documents done.
    fn score(&self, texts: &Texts, new_tokens: usize, each: impl FnMut(usize)) -> Result<()> {
        let template = PromptTemplate::erank();
        let mut options = ScoringOptions::default();
        options.mode = Mode::Reason { max_tokens: new_tokens };
        let count = Count { finish_reason: FinishReason::Forced, done: 0, each };
        self.score_prompts(template.bind("", &texts.query), &texts.documents, options, count)
    }

    /// Scores documents with one prompt in one call.
    fn score_prompts(
        &self,
        prompt: BoundPrompt<'_>,
        documents: &[String],
        options: ScoringOptions,
        mut count: Count<impl FnMut(usize)>,
    ) -> Result<()> {
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        let job = Job::new(prompt, &documents).with_options(options);
        self.backend.score(&job, &mut count)?;
        assert_eq!(count.done, documents.len());
        Ok(())
    }

    fn run(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<Run> {
        let peak = || matrix_peak(None, self.format, Duration::from_millis(500));
        let peak_before = peak()?;
        let before = self.backend.statistics();
        let begin = Instant::now();
        work(self)?;
        let seconds = begin.elapsed().as_secs_f64();
        let after = self.backend.statistics();
        let generated_tokens = after.generated_tokens - before.generated_tokens;
        let tokens = after.prompt_tokens - before.prompt_tokens + generated_tokens;
        let peak_operations = peak()?.max(peak_before);
        Ok(Run { seconds, tokens, generated_tokens, peak_operations })
    }

    fn report(&self, name: &str, run: &Run, peak_bytes: u64, more: Value) -> Result<()> {
        let logits = run.generated_tokens as usize;
        let operations = self.shape.operations(run.tokens as usize, logits);
        let limit = operations / run.peak_operations;
        let mut line = json!({
            "value": run.seconds,
            "unit": "s",
            "limit": limit,
            "fraction": limit / run.seconds,
            "tokens_per_second": run.tokens_per_second(),
            "peak_gflops": run.peak_operations / 1e9,
        });
        extend(&mut line, more);
        self.print(name, peak_bytes, line)
    }

    /// Prints a line of JSON, and asserts that the peak memory is within the limit.
    fn print(&self, name: &str, peak_bytes: u64, more: Value) -> Result<()> {
        let weights = self.shape.weight_bytes() as f64 / 2.0 * self.format.bytes_per_weight();
        let limit = (weights * 1.15 + self.kv_cache_memory_bytes as f64 + 300e6) as u64;
        let mut line = json!({
            "shape": self.shape.name,
            "name": name,
            "kernels": self.backend.description(),
            "peak_bytes": peak_bytes,
            "peak_limit_bytes": limit,
        });
        extend(&mut line, more);
        println!("{line}");
        assert!(peak_bytes <= limit, "{name}: {peak_bytes} bytes in memory, the limit is {limit}");
        Ok(())
    }
}

fn one_pass_template() -> Result<PromptTemplate> {
    Ok(PromptTemplate::whole(ONE_PASS_PROMPT, AnswerFormat::range(0..=1)?.bare())?)
}

fn extend(line: &mut Value, more: Value) {
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
}

/// Measures decoding of one document with several numbers of speculative tokens, on weights that make every
/// guess right and on random weights.
fn measure_speculation(shape: Shape, kv_cache_memory_bytes: usize) -> Result<()> {
    for behaviour in [Behaviour::Random, Behaviour::Repeats] {
        for speculative_tokens in [0, 4, 8] {
            memory::reset_peak()?;
            let mut settings = CandleSettings::default();
            settings.speculative_tokens = speculative_tokens;
            let mut bench = Bench::load(shape, behaviour, kv_cache_memory_bytes, settings)?;
            let mut times = Vec::new();
            for _ in 0..RUNS {
                let texts = bench.texts(1, OWN_TOKENS)?;
                // Reads the prompt into the cache, so that nearly all of the measured time is decoding.
                bench.score(&texts, 1, |_| ())?;
                let begin = Instant::now();
                bench.score(&texts, NEW_TOKENS, |_| ())?;
                times.push(begin.elapsed().as_secs_f64());
            }
            let after = bench.backend.statistics();
            let line = json!({
                "behaviour": format!("{behaviour:?}"),
                "speculative_tokens": speculative_tokens,
                "value": NEW_TOKENS as f64 / median(times),
                "unit": "tokens/s",
                "drafted": after.drafted_tokens,
                "accepted": after.accepted_tokens,
            });
            bench.print("alone", memory::peak()?, line)?;
        }
    }
    Ok(())
}

/// The size of a measured call.
#[derive(Clone, Copy)]
struct Call {
    documents: usize,
    own_tokens: usize,
    new_tokens: usize,
    threads: NonZeroUsize,
}

/// Measures calls that differ from one usual call in documents, document tokens, thought tokens or threads.
fn measure_call_sizes(shape: Shape, kv_cache_memory_bytes: usize) -> Result<()> {
    let threads = std::thread::available_parallelism()?;
    let usual = Call { documents: 8, own_tokens: OWN_TOKENS, new_tokens: NEW_TOKENS, threads };
    let mut calls: Vec<Call> =
        [1, 2, 4, 8, 16].map(|documents| Call { documents, ..usual }).to_vec();
    calls.extend([90, 700].map(|own_tokens| Call { own_tokens, ..usual }));
    calls.extend([16, 256].map(|new_tokens| Call { new_tokens, ..usual }));
    calls.push(Call { threads: NonZeroUsize::MIN, ..usual });
    for calls in calls.chunk_by(|a, b| a.threads == b.threads) {
        memory::reset_peak()?;
        let mut settings = CandleSettings::default();
        settings.threads = Some(calls[0].threads);
        let mut bench = Bench::load(shape, Behaviour::Random, kv_cache_memory_bytes, settings)?;
        let warm_up = bench.texts(2, OWN_TOKENS)?;
        bench.score(&warm_up, 2, |_| ())?;
        for Call { documents, own_tokens, new_tokens, threads } in calls {
            let texts = bench.texts(*documents, *own_tokens)?;
            let begin = Instant::now();
            bench.score(&texts, *new_tokens, |_| ())?;
            let line = json!({
                "documents": documents,
                "own_tokens": own_tokens,
                "new_tokens": new_tokens,
                "threads": threads,
                "value": begin.elapsed().as_secs_f64(),
                "unit": "s",
            });
            bench.print("growth", memory::peak()?, line)?;
        }
    }
    Ok(())
}
