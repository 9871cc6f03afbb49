//! Ctrl-C. The first press cancels the work, so that its results are kept. The second press quits.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use erank_core::CancellationToken;

use crate::error::Exit;
use crate::text;

/// The handler of Ctrl-C.
pub(crate) struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Cancels the work. It is set once there are results to print.
    work: OnceLock<CancellationToken>,
    pressed: AtomicBool,
}

impl Interrupt {
    /// Installs the handler. Until work [`begin`](Self::begin)s, Ctrl-C quits.
    pub(crate) fn install() -> Self {
        let shared = Arc::new(Shared::default());
        let handler = Arc::clone(&shared);
        // If the system refuses the handler, Ctrl-C keeps its default action.
        let _ = ctrlc::set_handler(move || handler.press());
        Self { shared }
    }

    /// Begins the work. Ctrl-C cancels the returned token, and so does the end of `time`.
    pub(crate) fn begin(&self, time: Option<Duration>) -> CancellationToken {
        let deadline = time.and_then(|time| Instant::now().checked_add(time));
        self.shared
            .work
            .get_or_init(|| {
                deadline.map_or_else(CancellationToken::new, CancellationToken::with_deadline)
            })
            .clone()
    }

    /// Returns whether Ctrl-C was pressed.
    pub(crate) fn was_pressed(&self) -> bool {
        self.shared.pressed.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Cancels the work on the first press, and quits on the second.
    fn press(&self) {
        let again = self.pressed.swap(true, Ordering::Relaxed);
        match self.work.get() {
            Some(cancellation) if !again => {
                cancellation.cancel();
                text::note(
                    "Stopping. Results so far are kept; press Ctrl-C again to quit at once.",
                );
            }
            _ => process::exit(Exit::Interrupted as i32),
        }
    }
}
