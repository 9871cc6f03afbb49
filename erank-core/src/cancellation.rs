//! Cancellation of running work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Tells running work to end: by hand, from any thread, or at a deadline.
///
/// ```
/// use std::time::{Duration, Instant};
/// use erank_core::CancellationToken;
///
/// let stop = CancellationToken::with_deadline(Instant::now() + Duration::from_secs(60));
/// let one_of_several = stop.child_token();
/// one_of_several.cancel();
/// assert!(one_of_several.is_cancelled() && !stop.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancellationToken {
    cancelled: Arc<AtomicBool>,
    deadline: Option<Instant>,
    parent: Option<Arc<CancellationToken>>,
}

impl CancellationToken {
    /// A handle that ends nothing until [`cancel`](Self::cancel) is called on it or a clone.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle that is also set from `deadline` on.
    pub fn with_deadline(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::default() }
    }

    /// A handle that is set when this one is, and can be set without it: for one of several pieces
    /// of work that end together.
    #[must_use]
    pub fn child_token(&self) -> Self {
        Self { parent: Some(Arc::new(self.clone())), ..Self::default() }
    }

    /// Ends the work that this handle or a clone was given to.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the work should end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
            || self.parent.as_ref().is_some_and(|parent| parent.is_cancelled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn stop_is_seen_by_clones_and_at_the_deadline() {
        let stop = CancellationToken::new();
        let clone = stop.clone();
        assert!(!clone.is_cancelled());
        stop.cancel();
        assert!(clone.is_cancelled());
        assert!(CancellationToken::with_deadline(Instant::now()).is_cancelled());
        assert!(
            !CancellationToken::with_deadline(Instant::now() + Duration::from_secs(600))
                .is_cancelled()
        );
    }

    #[test]
    fn a_child_stops_with_its_parent_but_not_the_other_way_round() {
        let parent = CancellationToken::new();
        let (child, sibling) = (parent.child_token(), parent.child_token());
        child.cancel();
        assert!(child.is_cancelled() && !parent.is_cancelled() && !sibling.is_cancelled());
        parent.cancel();
        assert!(sibling.is_cancelled());
        assert!(CancellationToken::with_deadline(Instant::now()).child_token().is_cancelled());
    }
}
