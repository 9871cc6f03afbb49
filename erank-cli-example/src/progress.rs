//! A progress line on standard error: how far, how fast, how long still.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use erank_core::Progress;
use erank_core::backend::TokenCounts;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use crate::text;

/// Where standard error is no terminal, progress is a line this often.
const PAUSE: Duration = Duration::from_secs(60);

/// A progress line: renewed in place on a terminal, written now and then elsewhere.
#[derive(Clone)]
pub(crate) struct Meter {
    bar: ProgressBar,
    begin: Instant,
    /// When a line was written last.
    written: Arc<Mutex<Instant>>,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} documents{msg}") {
            bar.set_style(style);
        }
        let begin = Instant::now();
        Self { bar, begin, written: Arc::new(Mutex::new(begin)) }
    }

    /// Shows how far the work is; never stops it.
    pub(crate) fn show(&self, progress: &Progress) -> ControlFlow<()> {
        self.show_counts(progress.documents_done, progress.documents, progress.tokens);
        ControlFlow::Continue(())
    }

    /// Shows that so many documents are done, of so many.
    pub(crate) fn show_counts(&self, done: usize, documents: usize, tokens: TokenCounts) {
        let speed = || speed(done, documents, tokens, self.begin.elapsed());
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

/// Tokens per second, and the time left if the documents go on as they did.
fn speed(done: usize, documents: usize, tokens: TokenCounts, elapsed: Duration) -> String {
    let rate = (tokens.prompt + tokens.generated) as f64 / elapsed.as_secs_f64().max(1e-3);
    let rate = format!(", {} tokens/s", HumanCount(rate as u64));
    if done == 0 {
        return rate;
    }
    let left = elapsed.mul_f64(documents.saturating_sub(done) as f64 / done as f64);
    format!("{rate}, {} left", HumanDuration(left))
}
