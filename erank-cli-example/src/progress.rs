//! A progress line on standard error: how far, how fast, how long still.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use erank_core::Progress;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

/// A progress line. It is not shown unless standard error is a terminal.
#[derive(Clone)]
pub(crate) struct Meter {
    bar: ProgressBar,
    begin: Instant,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} documents{msg}") {
            bar.set_style(style);
        }
        Self { bar, begin: Instant::now() }
    }

    /// Shows how far the work is; never stops it.
    pub(crate) fn show(&self, progress: &Progress) -> ControlFlow<()> {
        if !self.bar.is_hidden() {
            self.bar.set_length(progress.documents as u64);
            self.bar.set_message(speed(progress, self.begin.elapsed()));
            self.bar.set_position(progress.documents_done as u64);
        }
        ControlFlow::Continue(())
    }

    /// Removes the line.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Tokens per second, and the time left if the documents go on as they did.
fn speed(progress: &Progress, elapsed: Duration) -> String {
    let tokens = progress.tokens.prompt + progress.tokens.generated;
    let rate = tokens as f64 / elapsed.as_secs_f64().max(1e-3);
    let rate = format!(", {} tokens/s", HumanCount(rate as u64));
    if progress.documents_done == 0 {
        return rate;
    }
    let left = progress.documents.saturating_sub(progress.documents_done);
    let left = elapsed.mul_f64(left as f64 / progress.documents_done as f64);
    format!("{rate}, {} left", HumanDuration(left))
}
