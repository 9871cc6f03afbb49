//! A progress line on standard error: how far, how fast, how long still.

use std::ops::ControlFlow;
use std::time::Duration;

use erank_core::Progress;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

/// A progress line. It is not shown unless standard error is a terminal.
#[derive(Clone)]
pub(crate) struct Meter {
    bar: ProgressBar,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} documents{msg}") {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Ranking begins now: what came before does not count.
    pub(crate) fn begin(&self) {
        self.bar.reset();
    }

    /// Shows how far the work is; never stops it.
    pub(crate) fn show(&self, progress: &Progress) -> ControlFlow<()> {
        if !self.bar.is_hidden() {
            self.bar.set_length(progress.documents as u64);
            let tokens = progress.tokens.prompt + progress.tokens.generated;
            let (done, all) = (progress.documents_done, progress.documents);
            self.bar.set_message(speed(tokens, done, all, self.bar.elapsed()));
            self.bar.set_position(progress.documents_done as u64);
        }
        ControlFlow::Continue(())
    }

    /// Removes the line.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Tokens per second, and the time left if the other documents go on as those `done`.
fn speed(tokens: usize, done: usize, documents: usize, elapsed: Duration) -> String {
    let rate = tokens as f64 / elapsed.as_secs_f64().max(1e-3);
    let rate = format!(", {} tokens/s", HumanCount(rate as u64));
    if done == 0 {
        return rate;
    }
    let left = documents.saturating_sub(done);
    let left = elapsed.mul_f64(left as f64 / done as f64);
    format!("{rate}, {} left", HumanDuration(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_that_of_the_time_given() {
        let speed = |tokens, done, elapsed| speed(tokens, done, 40, Duration::from_secs(elapsed));
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
