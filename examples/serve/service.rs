//! The service: its routes, its limits, and the way from a request's body to the reply's.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use erank_core::{AsyncReranker, CancellationToken, Request};
use serde_json::{Value, json};

use crate::wire::{Problem, RerankRequest, reply};

/// Limits of one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of the body.
    pub(crate) body_bytes: usize,
    /// Number of documents.
    pub(crate) documents: usize,
    /// Bytes of the query, of the instruction, and of each document. The model reads 2,048 tokens of each.
    pub(crate) text_bytes: usize,
    /// Time from the request's arrival. Documents that are not scored by then are returned as unscored.
    pub(crate) time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let time = Duration::from_secs(600);
        Self { body_bytes: 8 << 20, documents: 1000, text_bytes: 256 << 10, time }
    }
}

/// State that all requests share.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) reranker: AsyncReranker,
    /// The model's name, which a request may state and every reply does.
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
    let cancellation = CancellationToken::with_deadline(Instant::now() + service.limits.time);
    let (mut request, warnings) = RerankRequest::read(&body?, &service.limits)?;
    request.check_model(&service.model)?;
    let texts: Vec<String> = request.documents.drain(..).map(String::from).collect();
    let kept = request.return_documents.unwrap_or(false).then(|| texts.clone());
    let mut work = Request::new(std::mem::take(&mut request.query), texts);
    work.instruction = request.instruction.take().map(Into::into);
    // If the client disconnects, axum drops this function's future, which cancels the request.
    let ranking = service
        .reranker
        .try_rerank_with_cancellation(work, &cancellation)
        .map_err(|_| Problem::queue_full())?
        .await
        .map_err(|error| Problem::of_backend(&error))?;
    Ok(Json(reply(&service.model, request.top_n, kept.as_deref(), &ranking, warnings)))
}
