//! What several measurements share.

pub mod ceilings;
pub mod checkpoint;
pub mod memory;
pub mod words;

use std::time::Duration;

/// The median of some durations; the upper one of two in the middle.
pub fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations.get(durations.len() / 2).copied().unwrap_or_default()
}
