//! Measures the forward pass on models of true shapes with random weights, beside what the machine
//! can do at most.
//!
//! ```sh
//! cargo run --release -p erank-benches --bin forward -- [0.6B|4B [FIGURE…]]
//! ```
//!
//! Figures are `prefill`, `decode-1`, `decode-8` and `decode-32`; by default all.
//!
//! Prints a line of JSON per figure: shape, name, value in tokens per second, floor, and the floor's
//! fraction reached. A floor is the longer of two times: reading the weights and the cache once at the
//! bandwidth measured in the same run, or doing the multiplications at the peak measured in the same
//! run. `ERANK_INSTRUCTION_SET` chooses other kernels.

use std::error::Error;
use std::time::{Duration, Instant};

use erank_benches::checkpoint::{Behaviour, SHAPES, Shape};
use erank_benches::median;
use erank_candle::Checkpoint;
use erank_candle::kv_cache::{BLOCK_TOKENS, BlockId, KvCache};
use erank_candle::measure::Memory;
use erank_candle::model::{Qwen3, Row};
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const PROMPT: usize = 512;
const RUNS: usize = 7;

fn main() -> Result<()> {
    // As the engine does: one visit to the threads for a whole step.
    rayon::ThreadPoolBuilder::new().build()?.install(measure)
}

fn measure() -> Result<()> {
    let shape = match std::env::args().nth(1) {
        Some(name) => Shape::of(&name).ok_or("the shapes are 0.6B and 4B")?,
        None => SHAPES[0],
    };
    let folder = shape.folder(Behaviour::Random);
    shape.write(&folder, Behaviour::Random)?;
    let begin = Instant::now();
    let model = Qwen3::load(&Checkpoint::open(folder)?, None, None)?;
    let seconds = begin.elapsed().as_secs_f64();
    println!("{}", json!({"shape": shape.name, "name": "loading", "value": seconds, "unit": "s"}));
    let bench = Bench { shape, model, memory: Memory::new(1 << 30)? };

    let names: Vec<String> = std::env::args().skip(2).collect();
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    if is_wanted("prefill") {
        bench.report("prefill 512", 1, PROMPT, || bench.prefill())?;
    }
    for rows in [1, 8, 32] {
        if is_wanted(&format!("decode-{rows}")) {
            bench.report(&format!("decode {rows}"), rows, 1, || bench.decode(rows))?;
        }
    }
    Ok(())
}

struct Bench {
    shape: Shape,
    model: Qwen3,
    memory: Memory,
}

impl Bench {
    /// Measures, with the ceilings before and after.
    fn report(
        &self,
        name: &str,
        rows: usize,
        tokens: usize,
        mut run: impl FnMut() -> Result<Vec<Duration>>,
    ) -> Result<()> {
        let ceilings = || -> Result<(f64, f64)> {
            let time = Duration::from_millis(500);
            Ok((erank_candle::measure::matrix_peak(None, time)?, self.memory.read_bandwidth()))
        };
        let before = ceilings()?;
        let seconds = median(run()?).as_secs_f64();
        let after = ceilings()?;
        let (peak, bandwidth) = (before.0.max(after.0), before.1.max(after.1));

        let context = if tokens == 1 { rows * PROMPT * self.shape.token_bytes() } else { 0 };
        let reading = (self.shape.weight_bytes() + context) as f64 / bandwidth;
        let computing = self.shape.operations(rows * tokens, rows) / peak;
        let floor = reading.max(computing);
        println!(
            "{}",
            json!({
                "shape": self.shape.name,
                "name": name,
                "kernels": self.model.instruction_set(),
                "value": (rows * tokens) as f64 / seconds,
                "unit": "tokens/s",
                "floor": (rows * tokens) as f64 / floor,
                "fraction": floor / seconds,
                "limit": if reading > computing { "memory" } else { "arithmetic" },
                "peak_gflops": peak / 1e9,
                "bandwidth_gbytes": bandwidth / 1e9,
            })
        );
        Ok(())
    }

    fn prefill(&self) -> Result<Vec<Duration>> {
        let (cache, blocks) = self.cache(1)?;
        let ids: Vec<u32> = (0..PROMPT as u32).map(|i| i * 7 % 1000).collect();
        let row = Row { tokens: &ids, position: 0, blocks: &blocks[0], logits: 1 };
        self.time(&cache, &[row])
    }

    fn decode(&self, rows: usize) -> Result<Vec<Duration>> {
        let (cache, blocks) = self.cache(rows)?;
        for (i, blocks) in blocks.iter().enumerate() {
            let ids: Vec<u32> = (0..PROMPT).map(|token| ((token * 7 + i) % 1000) as u32).collect();
            self.model.forward(&[Row { tokens: &ids, position: 0, blocks, logits: 0 }], &cache)?;
        }
        let rows: Vec<Row<'_>> = blocks
            .iter()
            .map(|blocks| Row { tokens: &[11], position: PROMPT, blocks, logits: 1 })
            .collect();
        self.time(&cache, &rows)
    }

    fn time(&self, cache: &KvCache, rows: &[Row<'_>]) -> Result<Vec<Duration>> {
        let expected = self.model.forward(rows, cache)?.to_vec2::<f32>()?;
        let mut times = Vec::with_capacity(RUNS);
        for _ in 0..RUNS {
            let begin = Instant::now();
            let logits = self.model.forward(rows, cache)?;
            times.push(begin.elapsed());
            // What is timed is the right answer, every time.
            assert_eq!(logits.to_vec2::<f32>()?, expected);
        }
        Ok(times)
    }

    /// A cache with room for `rows` sequences, and each one's blocks.
    fn cache(&self, rows: usize) -> Result<(KvCache, Vec<Vec<BlockId>>)> {
        let each = (PROMPT + 1).div_ceil(BLOCK_TOKENS);
        let mut cache = self.model.new_cache(rows * each)?;
        let all: Vec<BlockId> = std::iter::from_fn(|| cache.take()).collect();
        Ok((cache, all.chunks(each).map(<[BlockId]>::to_vec).collect()))
    }
}
