//! A progress line on standard error. It shows documents, tokens per second, and the remaining time.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use erank_core::Progress;
use erank_core::TokenCounts;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use crate::text;

/// Interval between progress lines if standard error is not a terminal.
const INTERVAL: Duration = Duration::from_secs(60);

/// A progress line. On a terminal it is updated in place; elsewhere a line is written at intervals.
#[derive(Clone)]
pub(crate) struct Meter {
    bar: ProgressBar,
    /// The time of the last line.
    written: Arc<Mutex<Instant>>,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} documents{msg}") {
            bar.set_style(style);
        }
        Self { bar, written: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Starts the clock, so that the time before, such as loading, does not count.
    pub(crate) fn begin(&self) {
        self.bar.reset();
    }

    /// Shows the progress of a reranker. Never cancels the work.
    pub(crate) fn show(&self, progress: &Progress) -> ControlFlow<()> {
        self.show_counts(progress.documents_done, progress.documents, progress.tokens);
        ControlFlow::Continue(())
    }

    /// Shows that `done` of `documents` are done.
    pub(crate) fn show_counts(&self, done: usize, documents: usize, tokens: TokenCounts) {
        let speed = || speed(done, documents, tokens, self.bar.elapsed());
        if !self.bar.is_hidden() {
            self.bar.set_length(documents as u64);
            self.bar.set_message(speed());
            self.bar.set_position(done as u64);
            return;
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.elapsed() >= INTERVAL {
            *written = Instant::now();
            text::note(&format!("{done}/{documents} documents{}", speed()));
        }
    }

    /// Removes the line from the terminal.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Returns tokens per second, and the remaining time at the rate of the documents that are `done`.
fn speed(done: usize, documents: usize, tokens: TokenCounts, elapsed: Duration) -> String {
    let rate = (tokens.prompt + tokens.generated) as f64 / elapsed.as_secs_f64().max(1e-3);
    let rate = format!(", {} tokens/s", HumanCount(rate as u64));
    if done == 0 {
        return rate;
    }
    let left = elapsed.mul_f64(documents.saturating_sub(done) as f64 / done as f64);
    format!("{rate}, {} left", HumanDuration(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_shows_rate_and_remaining_time() {
        let speed = |tokens, done, elapsed| {
            speed(done, 40, TokenCounts::new(tokens, 0), Duration::from_secs(elapsed))
        };
        assert_eq!(speed(24_000, 10, 20), ", 1,200 tokens/s, 60 seconds left");
        assert_eq!(speed(24_000, 0, 20), ", 1,200 tokens/s");
        assert_eq!(speed(0, 40, 5), ", 0 tokens/s, 0 seconds left");
        // If no time has passed, the rate must not be divided by zero.
        assert_eq!(speed(5, 0, 0), ", 5,000 tokens/s");
    }

    #[test]
    fn begin_restarts_the_clock() {
        let meter = Meter::new();
        std::thread::sleep(Duration::from_millis(300));
        for _query in 0..2 {
            meter.begin();
            assert!(meter.bar.elapsed() < Duration::from_millis(250));
            std::thread::sleep(Duration::from_millis(300));
            meter.finish();
        }
    }
}
