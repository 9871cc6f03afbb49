//! Server-sent events that report the reasoning, the documents and the progress of a request.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use erank_core::{AnswerFormat, AnswerProbability, Completion, DocumentError, ScoreKind};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::problem::Problem;
use crate::ranking::Event;
use crate::reply::{Scale, add_answer};

/// The time between two signs of life. A write to a client that has left fails, which ends the request.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Returns a reply of events: `started`, the `events`, and then `result` or `error`.
pub(crate) fn reply(
    started: Value,
    answers: AnswerFormat,
    events: mpsc::UnboundedReceiver<Event>,
    result: impl Future<Output = Result<Value, Problem>> + Send + 'static,
) -> Response {
    let running = stream::unfold(State::Running(events, Box::pin(result)), State::next);
    let running = running.map(move |item| match item {
        Item::Event(event) => to_json(&answers, event),
        Item::End(Ok(reply)) => ("result", reply),
        Item::End(Err(problem)) => ("error", problem.json()),
    });
    let all = stream::iter([("started", started)]).chain(running);
    let all = all.map(|(name, data)| {
        Ok::<_, Infallible>(sse::Event::default().event(name).data(data.to_string()))
    });
    Sse::new(all).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("wait")).into_response()
}

type Outcome = Result<Value, Problem>;

/// The state of a stream of events.
enum State {
    Running(mpsc::UnboundedReceiver<Event>, Pin<Box<dyn Future<Output = Outcome> + Send>>),
    /// The work is done, and events of it may be left.
    Draining(mpsc::UnboundedReceiver<Event>, Outcome),
    Ended,
}

enum Item {
    Event(Event),
    End(Outcome),
}

impl State {
    /// Returns the next item, and the state after it.
    async fn next(self) -> Option<(Item, Self)> {
        let (mut events, outcome) = match self {
            Self::Running(mut events, mut result) => {
                tokio::select! {
                    biased;
                    Some(event) = events.recv() => {
                        return Some((Item::Event(event), Self::Running(events, result)));
                    }
                    outcome = &mut result => (events, outcome),
                }
            }
            Self::Draining(events, outcome) => (events, outcome),
            Self::Ended => return None,
        };
        Some(match events.try_recv() {
            Ok(event) => (Item::Event(event), Self::Draining(events, outcome)),
            Err(_) => (Item::End(outcome), Self::Ended),
        })
    }
}

/// Returns an event's name and data.
fn to_json(answers: &AnswerFormat, event: Event) -> (&'static str, Value) {
    match event {
        Event::Thought { index, sample, text } => {
            ("thought", json!({"index": index, "sample": sample, "text": text}))
        }
        Event::Progress(progress) => ("progress", json!(progress)),
        Event::Document { index, outcome } => ("document", document(answers, index, outcome)),
    }
}

/// Describes a finished document. Its score is that before fusion.
fn document(
    answers: &AnswerFormat,
    index: usize,
    outcome: Result<Box<Completion>, Value>,
) -> Value {
    let completion = match outcome {
        Ok(completion) => completion,
        Err(error) => return json!({"index": index, "error": error}),
    };
    let answer = match answers.parse(&completion, AnswerProbability::default()) {
        Ok(answer) => answer,
        Err(error) => {
            return json!({"index": index, "error": DocumentError::from(error)});
        }
    };
    let kind = ScoreKind::default_for(answers);
    let score = match kind.score(&answer) {
        Ok(score) => score,
        Err(error) => return json!({"index": index, "error": DocumentError::from(error)}),
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
