//! Compares runs with the machine's roofline: its memory bandwidth and its arithmetic peak.
//!
//! Other work on the same host changes both within minutes. So every run has its own limit, from measurements
//! just before and just after the run. The result is the median of the fractions that the runs reach.

use std::error::Error;
use std::time::Duration;

use erank_candle::internals::measure::{Memory, matrix_peak};

use erank_candle::WeightFormat;

use crate::median;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Duration of one measurement of the peak.
const PEAK_TIME: Duration = Duration::from_millis(100);

/// The least work that one run must do.
pub struct Work {
    /// Bytes to read once.
    pub bytes: f64,
    /// Multiplications and additions.
    pub operations: f64,
}

/// Medians over several runs.
pub struct Reached {
    /// Seconds of a run.
    pub seconds: f64,
    /// The least seconds of a run. It is the longer of two times: reading its bytes at the bandwidth, or
    /// doing its operations at the peak.
    pub limit_seconds: f64,
    /// A run's limit divided by its seconds.
    pub fraction: f64,
    /// Operations per second of the kernels' micro-kernel with all operands in the nearest cache.
    pub peak: f64,
    /// Bytes per second that are read from memory.
    pub bandwidth: f64,
    /// The resource that sets the limit: `"memory"` or `"arithmetic"`.
    pub bound: &'static str,
}

/// Calls `run` `runs` times on rayon's current threads, and compares the durations that it returns with the
/// roofline. The arithmetic peak is that of the micro-kernel for weights of `format`.
///
/// # Errors
/// Returns any error of `run`, or an error if the machine lacks the forced instruction set.
pub fn compare(
    runs: usize,
    memory: &Memory,
    format: WeightFormat,
    work: &Work,
    mut run: impl FnMut() -> Result<Duration>,
) -> Result<Reached> {
    let roofline = || -> Result<(f64, f64)> {
        Ok((matrix_peak(None, format, PEAK_TIME)?, memory.read_bandwidth()))
    };
    let (mut seconds, mut limits, mut fractions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut peaks, mut bandwidths) = (Vec::new(), Vec::new());
    let mut before = roofline()?;
    for _ in 0..runs {
        let time = run()?.as_secs_f64();
        let after = roofline()?;
        let (peak, bandwidth) = (before.0.max(after.0), before.1.max(after.1));
        let limit = (work.bytes / bandwidth).max(work.operations / peak);
        seconds.push(time);
        limits.push(limit);
        fractions.push(limit / time);
        peaks.push(peak);
        bandwidths.push(bandwidth);
        before = after;
    }
    let (peak, bandwidth) = (median(peaks), median(bandwidths));
    let is_memory_bound = work.bytes / bandwidth > work.operations / peak;
    Ok(Reached {
        seconds: median(seconds),
        limit_seconds: median(limits),
        fraction: median(fractions),
        peak,
        bandwidth,
        bound: if is_memory_bound { "memory" } else { "arithmetic" },
    })
}
