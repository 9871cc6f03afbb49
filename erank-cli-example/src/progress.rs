//! A progress line on standard error: how far, how fast, how long still.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use erank_core::Progress;
use erank_core::TokenCounts;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use crate::text;

/// Where standard error is no terminal, progress is a line this often.
const PAUSE: Duration = Duration::from_secs(60);

/// A progress line: renewed in place on a terminal, written now and then elsewhere.
#[derive(Clone)]
pub(crate) struct Meter {
    bar: ProgressBar,
    /// When a line was written last.
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

    /// Ranking begins now: what came before does not count.
    pub(crate) fn begin(&self) {
        self.bar.reset();
    }

    /// Shows how far the work is; never stops it.
    pub(crate) fn show(&self, progress: &Progress) -> ControlFlow<()> {
        self.show_counts(progress.documents_done, progress.documents, progress.tokens);
        ControlFlow::Continue(())
    }

    /// Shows that so many documents are done, of so many.
    pub(crate) fn show_counts(&self, done: usize, documents: usize, tokens: TokenCounts) {
        let speed = || speed(done, documents, tokens, self.bar.elapsed());
        if !self.bar.is_hidden() {
            self.bar.set_length(documents as u64);
            self.bar.set_message(speed());
            self.bar.set_position(done as u64);
            return;
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.elapsed() >= PAUSE {
            *written = Instant::now();
            text::note(&format!("{done}/{documents} documents{}", speed()));
        }
    }

    /// Removes the line.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Tokens per second, and the time left if the other documents go on as those `done`.
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
    fn speed_is_that_of_the_time_given() {
        let speed = |tokens, done, elapsed| {
            speed(done, 40, TokenCounts::new(tokens, 0), Duration::from_secs(elapsed))
        };
        assert_eq!(speed(24_000, 10, 20), ", 1,200 tokens/s, 60 seconds left");
        assert_eq!(speed(24_000, 0, 20), ", 1,200 tokens/s");
        assert_eq!(speed(0, 40, 5), ", 0 tokens/s, 0 seconds left");
        // Nothing is divided by a time that has not passed.
        assert_eq!(speed(5, 0, 0), ", 5,000 tokens/s");
    }

    #[test]
    fn the_clock_starts_when_ranking_does() {
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
