//! Measures the projections alone, at the shapes of a model's layers, and compares them with the limits of
//! the machine.
//!
//! ```sh
//! cargo run --release -p erank-benches --bin kernels -- [0.6B|4B|14B|32B] [weights=q8_0]
//! ```
//!
//! Prints a line of JSON per shape and number of rows. The limit is the longer of two times: reading the
//! matrix at the bandwidth, or multiplying at the peak. Both are measured between the runs.
//! `ERANK_INSTRUCTION_SET` chooses other kernels.

use erank_benches::checkpoint::{SHAPES, Shape};
use erank_benches::roofline::{Work, compare};
use erank_candle::WeightFormat;
use erank_candle::internals::measure::{Memory, Projections};
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const RUNS: usize = 7;
/// More than any cache holds.
const BYTES: usize = 512 << 20;

fn main() -> Result<()> {
    rayon::ThreadPoolBuilder::new().build()?.install(measure)
}

fn measure() -> Result<()> {
    let (mut shape, mut format) = (SHAPES[0], WeightFormat::Bf16);
    for argument in std::env::args().skip(1) {
        match argument.strip_prefix("weights=") {
            Some(name) => format = name.parse()?,
            None => shape = Shape::of(&argument).ok_or("the shapes are 0.6B, 4B, 14B and 32B")?,
        }
    }
    let bytes_per_weight = format.bytes_per_weight();
    let memory = Memory::new(1 << 30)?;
    for (name, inputs, outputs) in shape.projections() {
        for rows in [1, 8, 32, 512] {
            // With many rows, one matrix is enough to take its time.
            let weights = if rows < 512 { (BYTES as f64 / bytes_per_weight) as usize } else { 0 };
            let mut projections = Projections::new(None, format, rows, (inputs, outputs), weights)?;
            projections.run();
            let size = (inputs * outputs) as f64;
            let count = projections.count() as f64;
            let work = Work {
                bytes: count * bytes_per_weight * size,
                operations: count * 2.0 * size * rows as f64,
            };
            let reached = compare(RUNS, &memory, format, &work, || Ok(projections.run()))?;
            let seconds = reached.seconds / count;
            println!(
                "{}",
                json!({
                    "shape": shape.name,
                    "weights": format.name(),
                    "name": name,
                    "rows": rows,
                    "value": seconds * 1e6,
                    "unit": "µs",
                    "limit": reached.limit_seconds / count * 1e6,
                    "fraction": reached.fraction,
                    "bound": reached.bound,
                    "gflops": 2.0 * size * rows as f64 / seconds / 1e9,
                    "gbytes": bytes_per_weight * size / seconds / 1e9,
                    "peak_gflops": reached.peak / 1e9,
                    "bandwidth_gbytes": reached.bandwidth / 1e9,
                })
            );
        }
    }
    Ok(())
}
