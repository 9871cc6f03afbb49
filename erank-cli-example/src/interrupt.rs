//! Ctrl-C: the first press ends the work so that what is done is kept, the second the
//! command.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use erank_core::CancellationToken;

use crate::error::Exit;
use crate::text;

/// What Ctrl-C does.
pub(crate) struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Set while there is work of which something could be printed.
    work: OnceLock<CancellationToken>,
    pressed: AtomicBool,
}

impl Interrupt {
    /// From here on Ctrl-C comes here. Until work [`begin`](Self::begin)s it ends the command.
    pub(crate) fn install() -> Self {
        let shared = Arc::new(Shared::default());
        let of_handler = Arc::clone(&shared);
        // If this is refused, Ctrl-C ends the command as it would any other.
        let _ = ctrlc::set_handler(move || of_handler.press());
        Self { shared }
    }

    /// What ends the work that begins now: Ctrl-C, or the end of the time it has.
    pub(crate) fn begin(&self, time: Option<Duration>) -> CancellationToken {
        let deadline = time.and_then(|time| Instant::now().checked_add(time));
        self.shared
            .work
            .get_or_init(|| {
                deadline.map_or_else(CancellationToken::new, CancellationToken::with_deadline)
            })
            .clone()
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn was_pressed(&self) -> bool {
        self.shared.pressed.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn press(&self) {
        let again = self.pressed.swap(true, Ordering::Relaxed);
        match self.work.get() {
            Some(stop) if !again => {
                stop.cancel();
                text::note("Stopping with what is done; Ctrl-C again quits at once.");
            }
            _ => process::exit(Exit::Interrupted as i32),
        }
    }
}
