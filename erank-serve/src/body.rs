//! The bytes of a request's body and of its reply, within limits of time and memory.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::problem::Problem;
use crate::settings::Settings;

/// The bytes of a reply that hyper takes at a time. It copies them to a buffer of its own, which [`Memory`] does not
/// count.
const CHUNK: usize = 32 << 10;
/// The time in which the unread rest of a body is discarded.
const DISCARD_TIME: Duration = Duration::from_secs(10);
/// The longest pause between two parts of a body that is discarded.
const DISCARD_PAUSE: Duration = Duration::from_secs(2);

/// The memory for the bodies of all requests, or for their unread replies, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Memory(Arc<Semaphore>);

/// A part of the [`Memory`]. Dropping it frees the bytes.
pub(crate) type Share = OwnedSemaphorePermit;

impl Memory {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes memory.
    ///
    /// # Errors
    /// Returns 503 if there is not enough.
    pub(crate) fn take(&self, bytes: usize) -> Result<Share, Problem> {
        let taken = Arc::clone(&self.0).try_acquire_many_owned(permits(bytes));
        taken.map_err(|_| full())
    }

    /// Takes memory, and waits for it for at most this time.
    ///
    /// # Errors
    /// Returns 503 if there is not enough by then.
    async fn take_within(&self, bytes: usize, time: Duration) -> Result<Share, Problem> {
        let taken = Arc::clone(&self.0).acquire_many_owned(permits(bytes));
        // The semaphore is never closed.
        timeout(time, taken).await.ok().and_then(Result::ok).ok_or_else(full)
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn full() -> Problem {
    let message = "the service holds too many bytes of requests or unread replies; try again later";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, message)
}

/// A body with its share of the memory.
pub(crate) struct ReadBody {
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory: Share,
}

/// Reads a body of JSON.
///
/// The memory is taken from `memory` as the bytes arrive. Many clients that send the beginning of a body therefore take
/// as much memory as one that sends a whole one.
///
/// # Errors
/// Returns 415 for another content type, 413 for too many bytes, 408 if the body does not arrive in time, 503 if the
/// bodies of all requests take too much memory, and 400 if the connection fails.
pub(crate) async fn read_json(
    headers: &HeaderMap,
    body: Body,
    settings: &Settings,
    memory: &Memory,
) -> Result<ReadBody, Problem> {
    check_content_type(headers)?;
    let limit = settings.max_body_bytes;
    let too_large = || {
        let message = format!("the body has more than {limit} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let read = async {
        let (mut bytes, mut share) = (Vec::new(), memory.take(0)?);
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| {
                Problem::new(StatusCode::BAD_REQUEST, "the connection failed amid the body")
            })?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            share.merge(memory.take(chunk.len())?);
            bytes.extend_from_slice(&chunk);
        }
        Ok(ReadBody { bytes, memory: share })
    };
    timeout(settings.body_time, read).await.unwrap_or_else(|_| {
        let seconds = settings.body_time.as_secs_f64();
        let message = format!("the body did not arrive within {seconds} s");
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, message))
    })
}

/// Checks that the body is plain JSON. A web page of another site can send other content types without asking.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let message = "the service reads no compressed bodies; leave content-encoding out";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let name = given.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if name.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "send JSON with the header content-type: application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

/// A request's body. When it is dropped early, its rest is read and discarded.
///
/// hyper closes a connection with unread bytes. The client's system then drops the reply that tells the client why its
/// request was refused.
pub(crate) struct DiscardedBody(Option<Incoming>);

impl DiscardedBody {
    pub(crate) fn new(body: Incoming) -> Self {
        Self(Some(body))
    }
}

impl HttpBody for DiscardedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for DiscardedBody {
    fn drop(&mut self) {
        let rest = self.0.take().filter(|body| !body.is_end_stream());
        // There is no runtime any more when the process ends.
        if let (Some(rest), Ok(runtime)) = (rest, tokio::runtime::Handle::try_current()) {
            runtime.spawn(timeout(DISCARD_TIME, discard(rest)));
        }
    }
}

/// Reads a body until its end, an error, or a long pause.
async fn discard(mut body: Incoming) {
    while let Ok(Some(Ok(_))) =
        timeout(DISCARD_PAUSE, poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))).await
    {}
}

/// A reply with its share of the memory, which is free once the client has read the reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) json: String,
    pub(crate) memory: Share,
}

impl Reply {
    /// Creates a reply, and waits for memory for at most this time. A short reply needs none, because hyper takes it at
    /// once. Clients that leave long replies unread therefore delay no short ones.
    ///
    /// # Errors
    /// Returns 503 if there is not enough memory by then.
    pub(crate) async fn new(
        json: String,
        memory: &Memory,
        time: Duration,
    ) -> Result<Self, Problem> {
        let bytes = if json.len() > CHUNK { json.len() } else { 0 };
        Ok(Self { memory: memory.take_within(bytes, time).await?, json })
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let body = ReplyBody { rest: self.json.into(), _memory: self.memory };
        ([(header::CONTENT_TYPE, "application/json")], Body::new(body)).into_response()
    }
}

struct ReplyBody {
    rest: Bytes,
    _memory: Share,
}

impl HttpBody for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let count = self.rest.len().min(CHUNK);
        let chunk = self.rest.split_to(count);
        Poll::Ready((count > 0).then(|| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reply_holds_its_memory_until_it_is_read() {
        let memory = Memory::new(100_000);
        let reply = |bytes| Reply::new("x".repeat(bytes), &memory, Duration::from_millis(1));
        let long = reply(80_000).await.unwrap();
        let mut body = long.into_response().into_body().into_data_stream();
        let mut read = 0;
        while let Some(chunk) = body.next().await {
            assert!(reply(CHUNK + 1).await.is_err() && reply(CHUNK).await.is_ok());
            read += chunk.unwrap().len();
        }
        assert_eq!(read, 80_000);
        drop(body);
        assert!(reply(100_000).await.is_ok());
    }
}
