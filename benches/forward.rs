//! Measures the forward pass on models of real shapes with random weights, and compares it with the
//! machine's roofline.
//!
//! ```sh
//! cargo run --release -p erank-benches --bin forward -- \
//!     [SHAPE [weights=FORMAT|file=FILE] [cache=CACHE] [tokens=NUMBER] [layers=NUMBER] [runs=NUMBER] [FIGURE…]]
//! ```
//!
//! - SHAPE is 0.6B, 4B, 14B or 32B.
//! - FIGURE is `prefill` (one prompt of 512 tokens), or `decode-1`, `decode-8` or `decode-32` (one step of 1, 8 or 32
//!   rows after 512 tokens each). By default, all four are measured.
//! - `tokens` replaces the 512 tokens. A longer prompt is read in steps of 512 tokens, as the engine reads it.
//! - `layers` replaces the shape's number of layers. The time of a layer does not depend on it.
//! - `runs` replaces the seven runs. One run before them warms up.
//! - CACHE is BF16, F32 or INT8. The default is BF16, or F32 for weights in F32.
//! - FORMAT is a format of weights, such as `q8_0`. The default is that of the checkpoint, BF16.
//! - FILE is a GGUF file of this shape, whose tensors may have several formats. Its size counts as the bytes of its
//!   weights.
//!
//! Prints a line of JSON per figure: shape, name, value in tokens per second, `limit` and `fraction`. The limit is the
//! throughput at the longer of two times: reading the weights and the cache once at the memory bandwidth, or doing all
//! multiplications, attention's included, at the arithmetic peak. `bound` names the resource that sets the limit.
//! `peak_bytes` is the largest resident memory so far, with 1 GB for measuring the bandwidth. Bandwidth and peak are
//! measured between the runs. `ERANK_INSTRUCTION_SET` forces other kernels.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use erank_benches::checkpoint::{Behaviour, SHAPES, Shape};
use erank_benches::memory;
use erank_benches::roofline::{Work, compare};
use erank_candle::internals::measure::Memory;
use erank_candle::internals::{
    BLOCK_TOKENS, BlockAllocator, BlockId, KvCache, LoadedModel, Row, load,
};
use erank_candle::{CandleSettings, Checkpoint, KvCacheFormat};
use serde_json::json;

/// The names of the figures on the command line.
const FIGURES: [&str; 4] = ["prefill", "decode-1", "decode-8", "decode-32"];

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    // The whole measurement runs in the thread pool, as a step of the engine does.
    rayon::ThreadPoolBuilder::new().build()?.install(measure)
}

fn measure() -> Result<()> {
    let shape = match std::env::args().nth(1) {
        Some(name) => Shape::of(&name).ok_or("the shapes are 0.6B, 4B, 14B and 32B")?,
        None => SHAPES[0],
    };
    let setting = |name| std::env::args().find_map(|a| a.strip_prefix(name).map(str::to_owned));
    let (format, file) = (setting("weights="), setting("file="));
    let shape = match setting("layers=") {
        Some(layers) => shape.with_layers(layers.parse()?),
        None => shape,
    };
    let prompt = setting("tokens=").map_or(Ok(512), |number| number.parse())?;
    let runs = setting("runs=").map_or(Ok(7), |number| number.parse())?;
    let mut settings = CandleSettings::default();
    settings.weights = format.map(|format| format.parse()).transpose()?;
    if let Some(name) = setting("cache=") {
        let formats = [KvCacheFormat::F32, KvCacheFormat::Bf16, KvCacheFormat::Int8];
        let format = formats.into_iter().find(|format| format.name().eq_ignore_ascii_case(&name));
        settings.kv_cache = Some(format.ok_or("the caches are F32, BF16 and INT8")?);
    }
    let checkpoint = match &file {
        Some(file) => Checkpoint::open(file)?,
        None => shape.checkpoint(Behaviour::Random, settings.weights)?,
    };
    let begin = Instant::now();
    let model = load(&checkpoint, &settings)?;
    let seconds = begin.elapsed().as_secs_f64();
    println!("{}", json!({"shape": shape.name, "name": "loading", "value": seconds, "unit": "s"}));
    let weight_bytes = match &file {
        Some(file) => std::fs::metadata(file)?.len() as f64,
        None => shape.weight_bytes() as f64 / 2.0 * model.weights.bytes_per_weight(),
    };
    let bytes_of_step = weight_bytes * shape.bytes_of_step() as f64 / shape.weight_bytes() as f64;
    let file = file.as_deref().and_then(|file| Path::new(file).file_stem()?.to_str());
    let file = file.map(str::to_owned);
    let memory = Memory::new(1 << 30)?;
    let kv_cache = settings.kv_cache.map_or("default", KvCacheFormat::name);
    let bench = Bench { shape, model, prompt, runs, kv_cache, file, bytes_of_step, memory };

    let names: Vec<String> = std::env::args().skip(2).filter(|name| !name.contains('=')).collect();
    if let Some(name) = names.iter().find(|name| !FIGURES.contains(&name.as_str())) {
        return Err(
            format!("there is no figure {name:?}; the figures are {}", FIGURES.join(", ")).into()
        );
    }
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    if is_wanted("prefill") {
        bench.prefill()?;
    }
    for rows in [1, 8, 32] {
        if is_wanted(&format!("decode-{rows}")) {
            bench.decode(rows)?;
        }
    }
    Ok(())
}

struct Bench {
    shape: Shape,
    model: LoadedModel,
    /// Tokens of a prompt.
    prompt: usize,
    /// Measured runs of each figure.
    runs: usize,
    kv_cache: &'static str,
    /// The name of the GGUF file, without its ending.
    file: Option<String>,
    /// Bytes of the weights that a step reads.
    bytes_of_step: f64,
    memory: Memory,
}

impl Bench {
    /// Measures reading one prompt.
    fn prefill(&self) -> Result<()> {
        let (cache, blocks) = self.cache(1)?;
        let ids: Vec<u32> = (0..self.prompt as u32).map(|i| i * 7 % 1000).collect();
        let chunks = ids.chunks(CandleSettings::default().max_num_batched_tokens.get());
        let mut position = 0;
        let steps: Vec<_> = chunks
            .map(|tokens| {
                let row = Row { tokens, position, blocks: &blocks[0], logits: 1 };
                position += tokens.len();
                vec![row]
            })
            .collect();
        self.report(&format!("prefill {}", self.prompt), &cache, &steps)
    }

    /// Measures one decoding step of several sequences.
    fn decode(&self, rows: usize) -> Result<()> {
        let (cache, blocks) = self.cache(rows)?;
        for (i, blocks) in blocks.iter().enumerate() {
            let ids: Vec<u32> =
                (0..self.prompt).map(|token| ((token * 7 + i) % 1000) as u32).collect();
            self.model
                .model
                .forward(&[Row { tokens: &ids, position: 0, blocks, logits: 0 }], &cache)?;
        }
        let rows: Vec<Row<'_>> = blocks
            .iter()
            .map(|blocks| Row { tokens: &[11], position: self.prompt, blocks, logits: 1 })
            .collect();
        self.report(&format!("decode {}", rows.len()), &cache, &[rows])
    }

    /// Measures some steps, one after another.
    fn report(&self, name: &str, cache: &KvCache, steps: &[Vec<Row<'_>>]) -> Result<()> {
        let rows = || steps.iter().flatten();
        let tokens: usize = rows().map(|row| row.tokens.len()).sum();
        let cached: usize = rows().map(|row| row.position).sum();
        let format = self.model.weights;
        let bytes = self.bytes_of_step * steps.len() as f64
            + (cached * (self.model.model.shape().block_bytes / BLOCK_TOKENS)) as f64;
        let positions: usize =
            rows().flat_map(|row| (1..=row.tokens.len()).map(|token| row.position + token)).sum();
        let operations = self.shape.operations(tokens, rows().count())
            + self.shape.attention_operations(positions);
        let work = Work { bytes, operations };
        let forward = || -> Result<Vec<f32>> {
            let mut logits = Vec::new();
            for rows in steps {
                logits = self.model.model.forward(rows, cache)?;
            }
            Ok(logits)
        };

        let expected = forward()?;
        let reached = compare(self.runs, &self.memory, format, &work, || {
            // Measuring the bandwidth fills the caches with other data, those of page tables too. A step of the engine follows
            // another step.
            self.model.model.forward(&steps[0], cache)?;
            let begin = Instant::now();
            let logits = forward()?;
            let time = begin.elapsed();
            // Every timed run must compute the same logits.
            assert_eq!(logits, expected);
            Ok(time)
        })?;
        println!(
            "{}",
            json!({
                "shape": self.shape.name,
                "layers": self.shape.layers(),
                "name": name,
                "kernels": self.model.kernels,
                "weights": format.name(),
                "cache": self.kv_cache,
                "context": steps[0][0].position,
                "file": self.file,
                "value": tokens as f64 / reached.seconds,
                "unit": "tokens/s",
                "limit": tokens as f64 / reached.limit_seconds,
                "fraction": reached.fraction,
                "bound": reached.bound,
                "peak_gflops": reached.peak / 1e9,
                "bandwidth_gbytes": reached.bandwidth / 1e9,
                "peak_bytes": memory::peak()?,
            })
        );
        Ok(())
    }

    /// Returns a cache for `rows` sequences, and the blocks of each sequence.
    fn cache(&self, rows: usize) -> Result<(KvCache, Vec<Vec<BlockId>>)> {
        let each = (self.prompt + 1).div_ceil(BLOCK_TOKENS);
        let cache = self.model.model.new_cache(rows * each)?;
        let mut allocator = BlockAllocator::new(cache.blocks());
        let all: Vec<BlockId> = std::iter::from_fn(|| allocator.allocate()).collect();
        Ok((cache, all.chunks(each).map(<[BlockId]>::to_vec).collect()))
    }
}
