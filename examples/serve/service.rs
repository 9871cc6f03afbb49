//! The service: from a request's body to the reply's.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use erank_core::{AsyncReranker, CancellationToken, Request};
use serde_json::{Value, json};

use crate::wire::{Problem, RerankRequest, reply};

/// What a request may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) body_bytes: usize,
    pub(crate) documents: usize,
    /// Of the query, and of each document. The model reads 2,048 tokens of either.
    pub(crate) text_bytes: usize,
    /// From the request's arrival; then the documents still open are without a score.
    pub(crate) time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let time = Duration::from_secs(600);
        Self { body_bytes: 8 << 20, documents: 1000, text_bytes: 256 << 10, time }
    }
}

#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) reranker: AsyncReranker,
    /// The name that it goes by.
    pub(crate) model: String,
    pub(crate) limits: Limits,
}

impl Service {
    pub(crate) fn router(self) -> Router {
        let body_limit = DefaultBodyLimit::max(self.limits.body_bytes);
        Router::new()
            .route("/v1/rerank", post(rerank))
            .route("/v2/rerank", post(rerank))
            .route("/health", get(health))
            .layer(body_limit)
            .with_state(self)
    }
}

async fn health(State(service): State<Service>) -> Json<Value> {
    Json(json!({"status": "ok", "model": service.model}))
}

async fn rerank(
    State(service): State<Service>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Problem> {
    let stop = CancellationToken::with_deadline(Instant::now() + service.limits.time);
    let (mut request, warnings) = RerankRequest::read(&body?, &service.limits)?;
    request.check_model(&service.model)?;
    let texts: Vec<String> = request.documents.drain(..).map(String::from).collect();
    let kept = request.return_documents.unwrap_or(false).then(|| texts.clone());
    let work = Request::new(std::mem::take(&mut request.query), texts);
    // If the client goes away, axum drops this function's future, and with it the work.
    let ranking = service
        .reranker
        .try_rerank_with_cancellation(work, &stop)
        .map_err(|_| Problem::busy())?
        .await
        .map_err(|error| Problem::of_backend(&error))?;
    Ok(Json(reply(&service.model, request.top_n, kept.as_deref(), &ranking, warnings)))
}
