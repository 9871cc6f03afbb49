//! Error replies.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use erank_core::{BackendError, RerankError};
use serde_json::{Value, json};

/// The number of characters of a message. A request's text that a message quotes is no longer.
pub(crate) const MAX_MESSAGE_CHARS: usize = 300;

/// The number of characters of a name that a message quotes besides other things.
pub(crate) const MAX_NAME_CHARS: usize = 60;

/// Returns the beginning of a text.
pub(crate) fn cut(mut text: String, max_chars: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(max_chars) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// An error reply: a status, a message, and the field that caused the error.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    message: String,
    field: Option<String>,
    /// Whether the request was one of text-embeddings-inference, whose errors have another form.
    is_tei: bool,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let message = cut(message.into(), MAX_MESSAGE_CHARS);
        Self { status, message, field: None, is_tei: false }
    }

    pub(crate) fn of_field(field: &str, problem: impl std::fmt::Display) -> Self {
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{field}: {problem}"));
        problem.with_field(field)
    }

    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn with_field(self, field: &str) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    pub(crate) fn for_tei(self) -> Self {
        Self { is_tei: true, ..self }
    }

    pub(crate) fn queue_full() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "the queue is full; try again later")
    }

    /// Converts a backend's error. Its source goes to the log only, because it may hold secrets.
    pub(crate) fn of_backend(error: &RerankError) -> Self {
        tracing::error!(cause = erank_core::error::chain(&error.source), "the backend failed");
        let status = match error.source {
            BackendError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.source.to_string())
    }

    /// Returns the reply's JSON. `message` is for clients of Cohere, `detail` for those of Jina, and `error` for those
    /// of vLLM and OpenAI.
    pub(crate) fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::BAD_REQUEST
            | StatusCode::UNPROCESSABLE_ENTITY
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE => "invalid_request",
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "authentication",
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "not_found",
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => "overloaded",
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "timeout",
            _ => "backend",
        };
        let message = &self.message;
        if self.is_tei {
            let kind = match kind {
                "invalid_request" => "validation",
                kind => kind,
            };
            return json!({"error": message, "error_type": kind});
        }
        json!({
            "message": message,
            "detail": message,
            "field": self.field,
            "error": {"message": message, "type": kind, "code": self.status.as_u16()},
        })
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let header = match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                (header::RETRY_AFTER, HeaderValue::from_static("1"))
            }
            StatusCode::UNAUTHORIZED => {
                (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            }
            // The body was not read to its end, so the connection cannot serve another request.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                (header::CONNECTION, HeaderValue::from_static("close"))
            }
            _ => return response,
        };
        response.headers_mut().insert(header.0, header.1);
        response
    }
}
