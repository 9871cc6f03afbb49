//! Requests, replies and errors as JSON. A reply has the fields that Jina's clients read and those that
//! Cohere's clients read; both ignore the others.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use erank_core::{BackendError, Ranking, RerankError};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::service::Limits;

const FIELDS: [&str; 6] =
    ["model", "query", "instruction", "documents", "top_n", "return_documents"];

#[derive(Debug, Deserialize)]
pub(crate) struct RerankRequest {
    model: Option<String>,
    pub(crate) query: String,
    /// The goal of the search, or a definition of relevance.
    pub(crate) instruction: Option<String>,
    pub(crate) documents: Vec<Document>,
    pub(crate) top_n: Option<usize>,
    pub(crate) return_documents: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string, or an object with a string `text`")]
pub(crate) enum Document {
    Text(String),
    Object { text: String },
}

impl From<Document> for String {
    fn from(document: Document) -> Self {
        match document {
            Document::Text(text) | Document::Object { text } => text,
        }
    }
}

impl RerankRequest {
    /// Parses and checks a request's body. Returns a warning for each unknown field, which is ignored.
    pub(crate) fn read(body: &[u8], limits: &Limits) -> Result<(Self, Vec<String>), Problem> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let request: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let (field, error) = (error.path().to_string(), error.inner());
            match field.as_str() {
                _ if !error.is_data() => {
                    let message = format!("the body is not valid JSON: {error}");
                    Problem::new(StatusCode::BAD_REQUEST, message)
                }
                // This is the path of the whole body. A field is missing, and the message names the field.
                "." => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
                field => Problem::of_field(field, error.to_string()),
            }
        })?;
        json.end().map_err(|e| Problem::new(StatusCode::BAD_REQUEST, e.to_string()))?;
        request.check(limits)?;
        let given: BTreeMap<String, IgnoredAny> = serde_json::from_slice(body).unwrap_or_default();
        let unknown = given.keys().filter(|name| !FIELDS.contains(&name.as_str()));
        Ok((request, unknown.map(|name| format!("unknown field {name:?} is ignored")).collect()))
    }

    fn check(&self, limits: &Limits) -> Result<(), Problem> {
        let wrong = |field: &str, problem: String| Err(Problem::of_field(field, problem));
        let limit = limits.text_bytes;
        let too_long = |bytes| format!("it has {bytes} bytes; the limit is {limit}");
        if self.query.trim().is_empty() {
            return wrong("query", "it is empty".into());
        }
        if self.query.len() > limit {
            return wrong("query", too_long(self.query.len()));
        }
        if let Some(bytes) = self.instruction.as_ref().map(String::len).filter(|b| *b > limit) {
            return wrong("instruction", too_long(bytes));
        }
        match self.documents.len() {
            0 => return wrong("documents", "it is empty; send at least one document".into()),
            count if count > limits.documents => {
                let problem = format!("it has {count} entries; the limit is {}", limits.documents);
                return wrong("documents", problem);
            }
            _ => {}
        }
        for (index, document) in self.documents.iter().enumerate() {
            let (Document::Text(text) | Document::Object { text }) = document;
            if text.len() > limit {
                return wrong(&format!("documents[{index}]"), too_long(text.len()));
            }
        }
        match self.top_n {
            Some(0) => wrong("top_n", "it is 0; send at least 1, or omit it".into()),
            _ => Ok(()),
        }
    }

    /// Checks that the request names no other model than `served`.
    pub(crate) fn check_model(&self, served: &str) -> Result<(), Problem> {
        match &self.model {
            Some(model) if model != served => {
                let message = format!("unknown model {model:?}; this service has {served:?}");
                Err(Problem {
                    field: Some("model".into()),
                    ..Problem::new(StatusCode::NOT_FOUND, message)
                })
            }
            _ => Ok(()),
        }
    }
}

/// Returns the reply to a request.
///
/// A document without a score is not among the results, because any number there would be invented. It is
/// listed with its error in `unscored`, and among the warnings, which Cohere's clients show.
pub(crate) fn reply(
    model: &str,
    top_n: Option<usize>,
    texts: Option<&[String]>,
    ranking: &Ranking,
    mut warnings: Vec<String>,
) -> Value {
    let results = ranking.documents.iter().take(top_n.unwrap_or(usize::MAX)).map(|document| {
        // The score is N × P(N), at most 10; clients expect a number from 0 to 1.
        let mut result = json!({"index": document.index, "relevance_score": document.score / 10.0});
        if let Some(texts) = texts {
            result["document"] = json!({"text": texts[document.index]});
        }
        result
    });
    let results: Vec<Value> = results.collect();
    let unscored = ranking.unscored.iter();
    warnings.extend(unscored.map(|d| format!("document {} has no score: {}", d.index, d.error)));
    let (prompt, generated) = (ranking.tokens.prompt, ranking.tokens.generated);
    let documents = ranking.scored_count + ranking.unscored.len();
    json!({
        "object": "list",
        "model": model,
        "results": results,
        "unscored": ranking.unscored,
        "usage": {"prompt_tokens": prompt, "total_tokens": prompt + generated},
        "meta": {
            "api_version": {"version": "2"},
            // Cohere bills one search unit for a query with up to 100 documents.
            "billed_units": {"search_units": documents.div_ceil(100)},
            "tokens": {"input_tokens": prompt, "output_tokens": generated},
            "warnings": warnings,
        },
    })
}

/// An error reply. Its JSON has a message and the field that caused the error.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    message: String,
    field: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), field: None }
    }

    fn of_field(field: &str, problem: String) -> Self {
        let message = format!("{field}: {problem}");
        Self { field: Some(field.into()), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, message) }
    }

    pub(crate) fn queue_full() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "the queue is full; try again later")
    }

    /// Converts a backend's error. Its source goes to the service's log only, as it may hold secrets.
    pub(crate) fn of_backend(error: &RerankError) -> Self {
        let cause = std::error::Error::source(&error.source);
        eprintln!("{}: {}", error.source, cause.map(ToString::to_string).unwrap_or_default());
        let status = match error.source {
            BackendError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.source.to_string())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, message, field } = self;
        let body = Json(json!({"message": message, "field": field}));
        let can_be_retried = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if can_be_retried.contains(&status) {
            return (status, [(header::RETRY_AFTER, "1")], body).into_response();
        }
        (status, body).into_response()
    }
}
