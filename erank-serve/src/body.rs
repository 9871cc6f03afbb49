//! The bytes of a request's body, within limits of time and memory.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::Problem;
use crate::settings::Settings;

/// A body with its share of the memory for all bodies.
pub(crate) struct ReadBody {
    pub(crate) bytes: Vec<u8>,
    /// Freed when the request is answered.
    pub(crate) memory: Option<OwnedSemaphorePermit>,
}

/// Reads a body of JSON.
///
/// The memory is taken from `memory`, which counts bytes, as the bytes arrive. Many clients that send the beginning of
/// a body therefore take as much memory as one that sends a whole one.
///
/// # Errors
/// Returns 415 for another content type, 413 for too many bytes, 408 if the body does not arrive in time, 503 if the
/// bodies of all requests take too much memory, and 400 if the connection fails.
pub(crate) async fn read_json(
    headers: &HeaderMap,
    body: Body,
    settings: &Settings,
    memory: &Arc<Semaphore>,
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
        let (mut bytes, mut permit) = (Vec::new(), None::<OwnedSemaphorePermit>);
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| {
                Problem::new(StatusCode::BAD_REQUEST, "the connection failed amid the body")
            })?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            let count = u32::try_from(chunk.len()).map_err(|_| too_large())?;
            let taken = Arc::clone(memory).try_acquire_many_owned(count).map_err(|_| {
                let message = "the service holds too many bytes of requests; try again later";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, message)
            })?;
            match &mut permit {
                Some(permit) => permit.merge(taken),
                None => permit = Some(taken),
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(ReadBody { bytes, memory: permit })
    };
    tokio::time::timeout(settings.body_time, read).await.unwrap_or_else(|_| {
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
