//! Runs beside what the machine can do at most.
//!
//! Neighbours on a host change its speed within minutes. So each run has ceilings of its own, measured just
//! before and just after it, and what counts is the median of the fractions that the runs reach.

use std::error::Error;
use std::time::Duration;

use erank_candle::internals::measure::{Memory, matrix_peak};

use crate::median;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long the peak is measured each time.
const PEAK_TIME: Duration = Duration::from_millis(100);

/// What one run has to do at least.
pub struct Work {
    /// Bytes to read once.
    pub bytes: f64,
    /// Multiplications and additions.
    pub operations: f64,
}

/// Medians of several runs.
pub struct Reached {
    /// Seconds of a run.
    pub seconds: f64,
    /// Seconds that it takes at least: the longer of two, reading its bytes at the bandwidth, or its
    /// operations at the peak.
    pub floor: f64,
    /// A run's floor, divided by the seconds that it took.
    pub fraction: f64,
    /// Operations per second of the kernels' tile with all it reads in the nearest cache.
    pub peak: f64,
    /// Bytes per second that are read from memory.
    pub bandwidth: f64,
    /// Which of the two bounds the floor.
    pub limit: &'static str,
}

/// Calls `run` so many times, on rayon's current threads.
///
/// # Errors
/// Those of `run`, and if the machine does not have the instruction set that is asked for.
pub fn compare(
    runs: usize,
    memory: &Memory,
    work: &Work,
    mut run: impl FnMut() -> Result<Duration>,
) -> Result<Reached> {
    let ceilings =
        || -> Result<(f64, f64)> { Ok((matrix_peak(None, PEAK_TIME)?, memory.read_bandwidth())) };
    let (mut seconds, mut floors, mut fractions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut peaks, mut bandwidths) = (Vec::new(), Vec::new());
    let mut before = ceilings()?;
    for _ in 0..runs {
        let time = run()?.as_secs_f64();
        let after = ceilings()?;
        let (peak, bandwidth) = (before.0.max(after.0), before.1.max(after.1));
        let floor = (work.bytes / bandwidth).max(work.operations / peak);
        seconds.push(time);
        floors.push(floor);
        fractions.push(floor / time);
        peaks.push(peak);
        bandwidths.push(bandwidth);
        before = after;
    }
    let (peak, bandwidth) = (median(peaks), median(bandwidths));
    let is_reading = work.bytes / bandwidth > work.operations / peak;
    Ok(Reached {
        seconds: median(seconds),
        floor: median(floors),
        fraction: median(fractions),
        peak,
        bandwidth,
        limit: if is_reading { "memory" } else { "arithmetic" },
    })
}
