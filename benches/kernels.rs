//! Measures the projections alone, at the shapes of a model's layers, and compares them with the limits of the
//! machine.
//!
//! ```sh
//! cargo run --release -p erank-benches --bin kernels -- [0.6B|4B]
//! ```
//!
//! Prints a line of JSON per shape and number of rows. `floor` is the shortest possible time, the longer of two:
//! reading the matrix at the bandwidth of memory, or multiplying at the peak of the micro-kernel. Both are
//! measured between the runs. `ERANK_INSTRUCTION_SET` forces an instruction set.

use erank_benches::ceilings::{Work, compare};
use erank_benches::checkpoint::{SHAPES, Shape};
use erank_candle::measure::{Memory, Projections};
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const RUNS: usize = 7;
/// Bytes of weights, more than any cache holds.
const BYTES: usize = 512 << 20;

fn main() -> Result<()> {
    rayon::ThreadPoolBuilder::new().build()?.install(measure)
}

fn measure() -> Result<()> {
    let shape = match std::env::args().nth(1) {
        Some(name) => Shape::of(&name).ok_or("the shapes are 0.6B and 4B")?,
        None => SHAPES[0],
    };
    let memory = Memory::new(1 << 30)?;
    for (name, inputs, outputs) in shape.projections() {
        for rows in [1, 8, 32, 512] {
            // With many rows, one matrix takes long enough to measure.
            let bytes = if rows < 512 { BYTES } else { 0 };
            let mut projections = Projections::new(None, rows, (inputs, outputs), bytes)?;
            projections.run();
            let size = (inputs * outputs) as f64;
            let count = projections.count() as f64;
            let work =
                Work { bytes: count * 2.0 * size, operations: count * 2.0 * size * rows as f64 };
            let reached = compare(RUNS, &memory, &work, || Ok(projections.run()))?;
            let seconds = reached.seconds / count;
            println!(
                "{}",
                json!({
                    "shape": shape.name,
                    "name": name,
                    "rows": rows,
                    "value": seconds * 1e6,
                    "unit": "µs",
                    "floor": reached.floor / count * 1e6,
                    "fraction": reached.fraction,
                    "limit": reached.limit,
                    "gflops": 2.0 * size * rows as f64 / seconds / 1e9,
                    "gbytes": 2.0 * size / seconds / 1e9,
                    "peak_gflops": reached.peak / 1e9,
                    "bandwidth_gbytes": reached.bandwidth / 1e9,
                })
            );
        }
    }
    Ok(())
}
