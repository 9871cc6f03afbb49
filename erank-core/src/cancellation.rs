//! Cancellation of running work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A flag that cancels running work, on request from any thread or at a deadline. Clones share the
/// flag.
///
/// ```
/// use std::time::{Duration, Instant};
/// use erank_core::CancellationToken;
///
/// let all = CancellationToken::with_deadline(Instant::now() + Duration::from_secs(60));
/// let one = all.child_token();
/// one.cancel();
/// assert!(one.is_cancelled() && !all.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancellationToken {
    cancelled: Arc<AtomicBool>,
    deadline: Option<Instant>,
    parent: Option<Arc<CancellationToken>>,
}

impl CancellationToken {
    /// Creates a token that stays active until [`cancel`](Self::cancel) is called on it or on a clone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a token that is also cancelled from `deadline` on.
    pub fn with_deadline(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::default() }
    }

    /// Creates a token that is cancelled with this one. Cancelling the child does not cancel the parent
    /// or its other children.
    #[must_use]
    pub fn child_token(&self) -> Self {
        Self { parent: Some(Arc::new(self.clone())), ..Self::default() }
    }

    /// Cancels the work of this token, of its clones and of its children.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns whether the work should end.
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
    fn cancel_reaches_clones_and_deadline_cancels() {
        let token = CancellationToken::new();
        let clone = token.clone();
        assert!(!clone.is_cancelled());
        token.cancel();
        assert!(clone.is_cancelled());
        assert!(CancellationToken::with_deadline(Instant::now()).is_cancelled());
        assert!(
            !CancellationToken::with_deadline(Instant::now() + Duration::from_secs(600))
                .is_cancelled()
        );
    }

    #[test]
    fn cancel_reaches_children_but_not_parents() {
        let parent = CancellationToken::new();
        let (child, sibling) = (parent.child_token(), parent.child_token());
        child.cancel();
        assert!(child.is_cancelled() && !parent.is_cancelled() && !sibling.is_cancelled());
        parent.cancel();
        assert!(sibling.is_cancelled());
        assert!(CancellationToken::with_deadline(Instant::now()).child_token().is_cancelled());
    }
}
