//! Server-sent events that report the reasoning, the documents and the progress of a request.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use erank_core::{AnswerFormat, AnswerProbability, Completion, DocumentError, ScoreKind};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::body::{Memory, Reply, Share};
use crate::problem::Problem;
use crate::reply::{Scale, add_answer};

/// The time between two signs of life. A write to a client that has left fails, which ends the request.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// The bytes of an event besides its data.
const EVENT_BYTES: usize = 128;

/// An event with its share of the memory.
pub(crate) struct Event {
    name: &'static str,
    data: String,
    memory: Option<Share>,
}

/// Sends the events of a request. Clones send to the same client.
#[derive(Clone)]
pub(crate) struct Sender {
    events: mpsc::UnboundedSender<Event>,
    memory: Memory,
    is_full: Arc<AtomicBool>,
}

/// Receives the events of a request.
pub(crate) type Receiver = mpsc::UnboundedReceiver<Event>;

/// Returns both ends of a channel, whose unread events take their bytes from `memory`.
pub(crate) fn channel(memory: Memory) -> (Sender, Receiver) {
    let (events, receiver) = mpsc::unbounded_channel();
    (Sender { events, memory, is_full: Arc::default() }, receiver)
}

impl Sender {
    /// Sends an event. If the memory is full, this event and all later ones are lost.
    pub(crate) fn send(&self, name: &'static str, data: &Value) {
        if self.is_full() {
            return;
        }
        let data = data.to_string();
        match self.memory.take(data.len() + EVENT_BYTES) {
            Ok(memory) => {
                let _ = self.events.send(Event { name, data, memory: Some(memory) });
            }
            Err(_) => self.is_full.store(true, Ordering::Relaxed),
        }
    }

    /// Returns whether events are lost.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }
}

/// Returns a reply of events: `started`, the `events`, and then `result` or `error`.
pub(crate) fn reply(
    started: &Value,
    events: Receiver,
    result: impl Future<Output = Outcome> + Send + 'static,
) -> Response {
    let started = Event { name: "started", data: started.to_string(), memory: None };
    let running = stream::unfold((State::Running(events, Box::pin(result)), None), next);
    let all = stream::iter([(started.name, started.data)]).chain(running);
    let all =
        all.map(|(name, data)| Ok::<_, Infallible>(sse::Event::default().event(name).data(data)));
    Sse::new(all).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("wait")).into_response()
}

type Outcome = Result<Reply, Problem>;

/// The state of a stream of events.
enum State {
    Running(Receiver, Pin<Box<dyn Future<Output = Outcome> + Send>>),
    /// The work is done, and events of it may be left.
    Draining(Receiver, Outcome),
    Ended,
}

/// Returns the next event's name and data, the state after it, and the event's memory.
///
/// hyper asks for the next event once it has written most of the last one, whose memory is free then.
async fn next(
    (state, _written): (State, Option<Share>),
) -> Option<((&'static str, String), (State, Option<Share>))> {
    let (mut events, outcome) = match state {
        State::Running(mut events, mut result) => {
            tokio::select! {
                biased;
                Some(Event { name, data, memory }) = events.recv() => {
                    return Some(((name, data), (State::Running(events, result), memory)));
                }
                outcome = &mut result => (events, outcome),
            }
        }
        State::Draining(events, outcome) => (events, outcome),
        State::Ended => return None,
    };
    Some(match (events.try_recv(), outcome) {
        (Ok(Event { name, data, memory }), outcome) => {
            ((name, data), (State::Draining(events, outcome), memory))
        }
        (Err(_), Ok(reply)) => (("result", reply.json), (State::Ended, Some(reply.memory))),
        (Err(_), Err(problem)) => (("error", problem.json().to_string()), (State::Ended, None)),
    })
}

/// Describes a finished document. Its score is that before fusion.
pub(crate) fn document(
    answers: &AnswerFormat,
    index: usize,
    outcome: Result<&Completion, &DocumentError>,
) -> Value {
    let failed = |error: &DocumentError| json!({"index": index, "error": error});
    let completion = match outcome {
        Ok(completion) => completion,
        Err(error) => return failed(error),
    };
    let answer = match answers.parse(completion, AnswerProbability::default()) {
        Ok(answer) => answer,
        Err(error) => return failed(&error.into()),
    };
    let kind = ScoreKind::default_for(answers);
    let score = match kind.score(&answer) {
        Ok(score) => score,
        Err(error) => return failed(&error.into()),
    };
    let scale = Scale { answers, is_fused: false };
    let mut result = json!({
        "index": index,
        "sample": completion.sample,
        "relevance_score": scale.of(score),
        "relevance": kind.relevance(&answer, answers),
        "truncated": completion.query_truncated || completion.document_truncated,
        "finish_reason": completion.finish_reason,
        "tokens": completion.usage,
    });
    add_answer(&mut result, answers, &answer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_events_are_bounded() {
        let memory = Memory::new(10 * EVENT_BYTES);
        let (sender, mut receiver) = channel(memory.clone());
        let (slow, _unread) = channel(memory);
        let data = json!("a thought");
        for _ in 0..100 {
            sender.send("thought", &data);
            assert!(!sender.is_full() && receiver.try_recv().is_ok());
        }
        (0..100).for_each(|_| slow.send("thought", &data));
        assert!(slow.is_full() && !sender.is_full());
    }
}
