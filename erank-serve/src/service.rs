//! The service: its routes, and the way from a request to the reply.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use erank_core::{Mode, ScoringBackend};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::body::{Memory, Reply, Share, read_json};
use crate::connection::Connection;
use crate::events;
use crate::guard::{RequestId, guard};
use crate::metrics::{EngineMetric, Metrics};
use crate::page::page;
use crate::problem::Problem;
use crate::ranking::{Place, Ranker};
use crate::reply::reply;
use crate::request::{ReplyForm, RerankRequest};
use crate::settings::Settings;

const OPENAPI: &str = include_str!("openapi.json");
const ROUTES: &str = "POST /v1/rerank, /v2/rerank, /rerank; GET /, /v1/models, /info, /health, /ready, /metrics, \
    /openapi.json";
/// The time between two signs of life to a client that has closed its side of the connection.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);

/// A reranking service. Clones share its queue and its metrics.
#[derive(Clone)]
pub struct Service {
    pub(crate) settings: Arc<Settings>,
    pub(crate) metrics: Arc<Metrics>,
    ranker: Arc<Ranker>,
    /// The memory for the bodies of all requests.
    bodies: Memory,
    /// The memory for the unread replies of all requests.
    replies: Memory,
    is_stopping: Arc<AtomicBool>,
    /// The time of the start, in seconds since 1970.
    created: u64,
}

impl Service {
    /// Creates a service with a backend.
    pub fn new(backend: impl ScoringBackend + 'static, settings: Settings) -> Self {
        Self::with_metrics(Arc::new(backend), settings, Metrics::new(None))
    }

    /// Creates a service whose metrics include numbers of the backend, which `engine` returns whenever they are asked
    /// for.
    pub fn with_engine_metrics(
        backend: Arc<dyn ScoringBackend>,
        settings: Settings,
        engine: impl Fn() -> Vec<EngineMetric> + Send + Sync + 'static,
    ) -> Self {
        Self::with_metrics(backend, settings, Metrics::new(Some(Arc::new(engine))))
    }

    #[expect(clippy::disallowed_methods, reason = "a date, not a duration")]
    fn with_metrics(
        backend: Arc<dyn ScoringBackend>,
        settings: Settings,
        metrics: Metrics,
    ) -> Self {
        let (settings, metrics) = (Arc::new(settings), Arc::new(metrics));
        let ranker = Ranker::new(backend, Arc::clone(&settings), Arc::clone(&metrics));
        let memory = || Memory::new(settings.max_total_body_bytes);
        let (bodies, replies) = (memory(), memory());
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            settings,
            metrics,
            ranker: Arc::new(ranker),
            bodies,
            replies,
            is_stopping: Arc::default(),
            created: created.as_secs(),
        }
    }

    /// Returns the routes. They can be merged into, or nested in, another axum program.
    pub fn router(&self) -> Router {
        let mut router = Router::new();
        // Clients with a base address that ends with a slash send two, or send one after the path.
        for path in ["/v1/rerank", "/v2/rerank", "/rerank"] {
            for path in [path.to_owned(), format!("/{path}"), format!("{path}/")] {
                router = router.route(&path, post(rerank));
            }
        }
        router
            .route("/", get(page))
            .route("/v1/models", get(models))
            .route("/info", get(info))
            .route("/health", get(health))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/openapi.json", get(openapi))
            .method_not_allowed_fallback(wrong_method)
            .fallback(unknown_route)
            .layer(axum::middleware::from_fn_with_state(self.clone(), guard))
            .with_state(self.clone())
    }

    /// Makes `/ready` reply 503, so that a load balancer sends no further requests. Call it before a shutdown.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    fn model(&self) -> &str {
        self.ranker.backend.name()
    }
}

async fn unknown_route() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no such route; the routes are {ROUTES}"))
}

async fn wrong_method() -> Problem {
    let message = format!("the route has another method; the routes are {ROUTES}");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn health(State(service): State<Service>) -> Json<Value> {
    Json(json!({"status": "ok", "model": service.model()}))
}

async fn ready(State(service): State<Service>) -> Result<Json<Value>, Problem> {
    if service.is_stopping.load(Ordering::Relaxed) {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the service stops"));
    }
    Ok(Json(json!({"status": "ready", "model": service.model()})))
}

async fn models(State(service): State<Service>) -> Json<Value> {
    let model = |id: &str| json!({"id": id, "object": "model", "created": service.created, "owned_by": "erank"});
    let aliases = service.settings.aliases.iter().map(|alias| model(alias));
    let mut data = vec![model(service.model())];
    data.extend(aliases);
    Json(json!({"object": "list", "data": data}))
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

async fn metrics(State(service): State<Service>) -> Result<Response, Problem> {
    let text = service.metrics.text().map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written")
    })?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// Describes the service as text-embeddings-inference does, and what the page needs to know.
async fn info(State(service): State<Service>) -> Json<Value> {
    let Settings { template, instruction, options, .. } = &*service.settings;
    let (smallest, largest) = template.answers().value_range();
    let answers = template.answers().answers();
    let (labels, values): (Vec<&str>, Vec<u32>) = answers.unzip();
    let settings = &service.settings;
    Json(json!({
        "model_id": service.model(),
        "model_sha": null,
        "model_dtype": null,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": settings.max_running.saturating_add(settings.max_waiting),
        "max_input_length": options.max_document_tokens,
        "max_client_batch_size": settings.max_documents,
        "auto_truncate": true,
        "version": env!("CARGO_PKG_VERSION"),
        "erank": {
            "answers": {"smallest": smallest, "largest": largest, "values": values, "labels": labels},
            "thinks": !template.answers().is_bare() && options.mode != Mode::AnswerOnly,
            "default_instruction": instruction.as_deref().unwrap_or(template.default_instruction()),
            "max_documents": settings.max_documents,
            "max_samples": settings.max_samples,
            "windows": settings.windows.map(|windows| {
                json!({"tokens": windows.tokens, "max_windows": windows.max_windows})
            }),
            "max_body_bytes": settings.max_body_bytes,
            "max_text_bytes": settings.max_query_bytes,
            "max_seconds": settings.request_time.as_secs_f64(),
            "needs_key": !settings.api_keys.is_empty(),
        },
    }))
}

async fn rerank(State(service): State<Service>, request: Request) -> Result<Response, Problem> {
    // With another server than `serve`, there is no such connection, and the time begins here.
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let begin = connection.as_ref().map_or_else(Instant::now, |c| c.first_byte());
    // The guard has added the identifier.
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
    // A client learns that the queue is full before it has sent the documents.
    service.ranker.check_queue()?;
    let (parts, body) = request.into_parts();
    let body = read_json(&parts.headers, body, &service.settings, &service.bodies).await?;
    let request = RerankRequest::read(&body.bytes, service.model(), &service.settings)?;
    let is_tei = request.reply.form != ReplyForm::Cohere;
    let in_form = move |problem: Problem| if is_tei { problem.for_tei() } else { problem };
    service.ranker.check(&request).map_err(in_form)?;
    let request = Arc::new(request);
    let place = service.ranker.enter().map_err(in_form)?;
    let deadline = begin + request.time;
    let mut memory = body.memory;
    drop(body.bytes);
    // Objects that the reply returns are kept besides the texts of the documents.
    let returned = request.documents.iter().filter_map(|document| document.returned.as_deref());
    memory.merge(service.bodies.take(returned.map(|object| object.get().len()).sum())?);

    if request.is_stream && !is_tei {
        let started = json!({
            "id": id,
            "model": service.model(),
            "documents": request.documents.len(),
        });
        let (sender, receiver) = events::channel(service.replies.clone());
        let work = compute(service, id, request, place, deadline, memory, Some(sender));
        return Ok(events::reply(&started, receiver, work));
    }
    let work = compute(service, id, request, place, deadline, memory, None);
    let mut work: Work = Box::pin(async move { work.await.map_err(in_form) });
    let closed = async {
        match &connection {
            Some(connection) => connection.client_closed().await,
            None => std::future::pending().await,
        }
        // A reply within this time has its own status.
        tokio::time::sleep(SIGN_OF_LIFE).await;
    };
    tokio::select! {
        biased;
        reply = &mut work => reply.map(Reply::into_response),
        () = closed => Ok(reply_with_signs_of_life(work)),
    }
}

type Work = Pin<Box<dyn Future<Output = Result<Reply, Problem>> + Send>>;

/// Ranks a request's documents and returns the reply.
async fn compute(
    service: Service,
    id: String,
    request: Arc<RerankRequest>,
    place: Place,
    deadline: Instant,
    memory: Share,
    events: Option<events::Sender>,
) -> Result<Reply, Problem> {
    let ranker = Arc::clone(&service.ranker);
    let ranking = ranker.rank(Arc::clone(&request), place, deadline, events).await?;
    service.metrics.ranked(&ranking);
    let answers = service.settings.template.answers();
    let json = reply(&id, service.model(), answers, &request, &ranking)?;
    let reply = Reply::new(json, &service.replies, service.settings.body_time).await;
    drop(memory);
    reply
}

/// Returns a reply for a client that has closed its side of the connection.
///
/// Such a client either waits for the reply or has left. Spaces before the JSON, which JSON allows, tell the two apart:
/// if the client has left, a write fails, which drops the reply and cancels the work. The status is 200 even if the
/// work fails later.
fn reply_with_signs_of_life(work: Work) -> Response {
    let spaces = stream::iter([" ".to_owned()]);
    let rest = stream::unfold(Signs::Working(work), |signs| async {
        let Signs::Working(mut work) = signs else { return None };
        Some(tokio::select! {
            reply = &mut work => match reply {
                Ok(Reply { json, memory }) => (json, Signs::Ended(Some(memory))),
                Err(problem) => (problem.json().to_string(), Signs::Ended(None)),
            },
            () = tokio::time::sleep(SIGN_OF_LIFE) => (" ".to_owned(), Signs::Working(work)),
        })
    });
    let body = Body::from_stream(spaces.chain(rest).map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The state of a reply with signs of life.
enum Signs {
    Working(Work),
    /// The server asks for more only once it has written most of the reply, whose memory is free then.
    Ended(#[expect(dead_code, reason = "dropping it frees the memory")] Option<Share>),
}
