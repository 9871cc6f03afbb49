//! A caller of the engine, with its waiting sequences.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;

use erank_core::{CancellationToken, Completion, DocumentError, TokenCounts};

use super::sequence::{Sequence, TextPiece};

/// The identity of a caller.
pub(super) type CallerId = u64;

/// A message from the engine to a caller.
pub(super) enum Event {
    /// Tokens were computed.
    Advanced(TokenCounts),
    /// A sequence has more text.
    Text(TextPiece),
    /// A sequence of the document at this index has ended.
    Completed(usize, Result<Completion, DocumentError>),
    /// A step with sequences of this caller failed. No further event follows.
    Failed(String),
}

/// A caller with the sequences that wait for room in the batch.
pub(super) struct Caller {
    pub(super) id: CallerId,
    pub(super) cancellation: CancellationToken,
    events: Sender<Event>,
    /// The sequences to admit, the next one first.
    pub(super) waiting: VecDeque<Sequence>,
}

impl Caller {
    pub(super) fn new(
        id: CallerId,
        cancellation: CancellationToken,
        events: Sender<Event>,
    ) -> Self {
        Self { id, cancellation, events, waiting: VecDeque::new() }
    }

    /// Sends an event. If the caller has left, nothing is sent; the scheduler removes the caller later.
    pub(super) fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}
