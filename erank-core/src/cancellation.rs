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
    node: Arc<Node>,
}

#[derive(Debug, Default)]
struct Node {
    cancelled: AtomicBool,
    deadline: Option<Instant>,
    parent: Option<Arc<Node>>,
}

impl CancellationToken {
    /// Creates a token that stays active until [`cancel`](Self::cancel) is called on it or on a clone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a token that is also cancelled from `deadline` on.
    pub fn with_deadline(deadline: Instant) -> Self {
        Self::of(Some(deadline), None)
    }

    /// Creates a token that is cancelled with this one. Cancelling the child does not cancel the parent
    /// or its other children.
    #[must_use]
    pub fn child_token(&self) -> Self {
        Self::of(None, Some(Arc::clone(&self.node)))
    }

    fn of(deadline: Option<Instant>, parent: Option<Arc<Node>>) -> Self {
        Self { node: Arc::new(Node { cancelled: AtomicBool::new(false), deadline, parent }) }
    }

    /// Cancels the work of this token, of its clones and of its children.
    pub fn cancel(&self) {
        self.node.cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns whether the work should end.
    pub fn is_cancelled(&self) -> bool {
        std::iter::successors(Some(&*self.node), |node| node.parent.as_deref()).any(|node| {
            node.cancelled.load(Ordering::Relaxed)
                || node.deadline.is_some_and(|deadline| Instant::now() >= deadline)
        })
    }
}

impl Drop for Node {
    /// Drops the ancestors that nothing else refers to one by one, because a recursion over many would overflow the
    /// stack.
    fn drop(&mut self) {
        let mut parent = self.parent.take();
        while let Some(mut node) = parent.and_then(Arc::into_inner) {
            parent = node.parent.take();
        }
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

    #[test]
    fn deeply_nested_children_do_not_overflow_the_stack() {
        let root = CancellationToken::new();
        let mut token = root.clone();
        for _ in 0..400_000 {
            token = token.child_token();
        }
        assert!(!token.is_cancelled());
        root.cancel();
        assert!(token.is_cancelled());
    }
}
