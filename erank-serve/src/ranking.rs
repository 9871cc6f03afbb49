//! The queue, and the reranker of a request.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use erank_core::tags::{THINK_CLOSE, THINK_OPEN};
use erank_core::{
    AnswerFormat, BackendError, CancellationToken, Completion, ConfigError, Document,
    DocumentError, DocumentFailure, Fusion, Job, Ranking, Request, RerankError, Reranker,
    RerankerBuilder, ScoringBackend, Sink, TokenCounts,
};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::events::{self, Sender};
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::reply::document_error;
use crate::request::RerankRequest;
use crate::settings::Settings;

/// The least time between two reports of a request's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Computes rankings on threads of its own, a limited number at a time.
pub(crate) struct Ranker {
    pub(crate) backend: Arc<dyn ScoringBackend>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) metrics: Arc<Metrics>,
    /// A place for each request that runs or waits.
    queue: Arc<Semaphore>,
    /// A place for each request that runs.
    running: Arc<Semaphore>,
}

/// A place in the queue.
pub(crate) type Place = OwnedSemaphorePermit;

impl Ranker {
    pub(crate) fn new(
        backend: Arc<dyn ScoringBackend>,
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let running = settings.max_running.clamp(1, Semaphore::MAX_PERMITS);
        let places = running.saturating_add(settings.max_waiting).min(Semaphore::MAX_PERMITS);
        let queue = Arc::new(Semaphore::new(places));
        Self { backend, settings, metrics, queue, running: Arc::new(Semaphore::new(running)) }
    }

    /// Returns the error of a full queue if there is no place in it.
    pub(crate) fn check_queue(&self) -> Result<(), Problem> {
        match self.queue.available_permits() {
            0 => Err(Problem::queue_full()),
            _ => Ok(()),
        }
    }

    /// Checks the options of a request, so that it need not wait for its error.
    pub(crate) fn check(&self, request: &RerankRequest) -> Result<(), Problem> {
        let built = configure(&*self.backend, &self.settings, request).build();
        built.map(drop).map_err(|error| config_problem(&error))
    }

    /// Takes a place in the queue.
    pub(crate) fn enter(&self) -> Result<Place, Problem> {
        let place = Arc::clone(&self.queue).try_acquire_owned();
        place.map_err(|_| Problem::queue_full())
    }

    /// Ranks a request's documents. Dropping the future cancels the work.
    ///
    /// At `deadline`, the documents without a score are unscored. `events` receives what happens until then.
    pub(crate) async fn rank(
        self: Arc<Self>,
        request: Arc<RerankRequest>,
        place: Place,
        deadline: Instant,
        events: Option<Sender>,
    ) -> Result<Ranking, Problem> {
        let cancellation = CancelOnDrop(CancellationToken::with_deadline(deadline));
        let waiting = self.metrics.waiting();
        let running = Arc::clone(&self.running).acquire_owned();
        // After the deadline, the backend reports all documents as cancelled.
        let running = tokio::time::timeout_at(deadline.into(), running).await.ok();
        drop(waiting);
        let token = cancellation.0.clone();
        let work = tokio::task::spawn_blocking(move || {
            // The places are free only once the thread is, however the request ended.
            let (_place, _running) = (place, running);
            let _computing = self.metrics.running();
            rerank(&*self.backend, &self.settings, &request, events, &token)
        });
        work.await.unwrap_or_else(|_| {
            let message = "the backend panicked; the service goes on";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message))
        })
    }
}

/// Cancels a request when its future is dropped, which happens if the client leaves.
struct CancelOnDrop(CancellationToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Returns a builder of a reranker with the request's options.
fn configure<B: ScoringBackend>(
    backend: B,
    settings: &Settings,
    request: &RerankRequest,
) -> RerankerBuilder<B> {
    let mut builder =
        Reranker::builder(backend).template(settings.template.clone()).options(request.options);
    if let Some(windows) = request.windows {
        builder = builder.windows(windows);
    }
    if let Some(first_stage_weight) = request.first_stage_weight {
        builder = builder.fusion(Fusion::ZScore { first_stage_weight });
    }
    if let Some(min_score) = request.min_score {
        builder = builder.min_score(min_score);
    }
    builder
}

/// Names the field of a request that a reranker cannot be built with.
fn config_problem(error: &ConfigError) -> Problem {
    let field = match error {
        ConfigError::Zero("max_document_tokens") => "max_tokens_per_doc",
        ConfigError::Zero("max_prompt_tokens") => "truncate_prompt_tokens",
        ConfigError::Zero(name) | ConfigError::Sampling { name, .. } => name,
        ConfigError::FirstStageWeight(_) => "first_stage_weight",
        ConfigError::MinScore(_) | ConfigError::MinScoreWithoutScale => "min_score",
        ConfigError::EqualSamples => "samples",
        _ => return Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
    };
    // The error names the option itself, by the name that the library has for it.
    let message = match error {
        ConfigError::Zero(name) => error.to_string().replace(name, field),
        error => error.to_string(),
    };
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, message).with_field(field)
}

/// Ranks the documents with a reranker that has the request's options.
fn rerank(
    backend: &dyn ScoringBackend,
    settings: &Settings,
    request: &RerankRequest,
    events: Option<Sender>,
    cancellation: &CancellationToken,
) -> Result<Ranking, Problem> {
    let documents = request.documents.iter().map(|given| {
        let mut document = Document::new(given.text.as_str());
        document.id = given.id.as_deref().map(Into::into);
        document.first_stage_score = given.score;
        document
    });
    let mut work = Request::new(request.query.as_str(), documents);
    let instruction = request.instruction.as_deref().or(settings.instruction.as_deref());
    work.instruction = instruction.map(Into::into);

    let build = |error: ConfigError| config_problem(&error);
    let failed = |error: RerankError| Problem::of_backend(&error);
    let reranker = configure(backend, settings, request).build().map_err(build)?;
    let Some(events) = events else {
        return reranker.rerank_with_cancellation(&work, cancellation).map_err(failed);
    };
    let (_, failures) = reranker.candidates(&work);
    for DocumentFailure { index, error, .. } in failures {
        let error = document_error(&request.documents[index], &error);
        events.send("document", &json!({"index": index, "error": error}));
    }
    let answers = settings.template.answers();
    let reporting = Reporting { backend, events: events.clone(), answers, request };
    let last = Mutex::new(None::<Instant>);
    let progress_events = events.clone();
    let reranker = configure(reporting, settings, request)
        .on_progress(move |progress| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let is_end = progress.documents_done == progress.documents;
            if is_end || last.is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL) {
                *last = Some(Instant::now());
                progress_events.send("progress", &json!(progress));
            }
            match progress_events.is_full() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
        .build()
        .map_err(build)?;
    let ranking = reranker.rerank_with_cancellation(&work, cancellation).map_err(failed);
    if events.is_full() {
        let message = "the service holds too many unread events; read faster, or try again later";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, message));
    }
    ranking
}

/// A backend that sends the results of another one to `events` as well.
struct Reporting<'a> {
    backend: &'a dyn ScoringBackend,
    events: Sender,
    answers: &'a AnswerFormat,
    request: &'a RerankRequest,
}

impl Reporting<'_> {
    /// Returns the index in the request of each text of a job. A window that is only a part of its document has none,
    /// because its answer is not the document's.
    fn indices(&self, job: &Job<'_>) -> Vec<Option<usize>> {
        // The texts are parts of the request's documents, in the same order.
        let mut documents = self.request.documents.iter().enumerate();
        let mut whole = documents.next();
        let index_of = |text: &&str| {
            while let Some((index, document)) = whole {
                let (bytes, part) = (document.text.as_bytes().as_ptr_range(), text.as_ptr());
                if bytes.contains(&part) {
                    return (document.text.len() == text.len()).then_some(index);
                }
                whole = documents.next();
            }
            None
        };
        job.documents.iter().map(index_of).collect()
    }
}

impl ScoringBackend for Reporting<'_> {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let (indices, ended) = (self.indices(job), HashSet::new());
        let mut sink = ReportingSink { report: self, indices, ended, sink };
        self.backend.score(job, &mut sink)
    }

    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        self.backend.token_ends(text, max_tokens)
    }
}

struct ReportingSink<'a> {
    report: &'a Reporting<'a>,
    indices: Vec<Option<usize>>,
    /// The documents, by their index in the job, and the samples whose reasoning has ended.
    ended: HashSet<(usize, usize)>,
    sink: &'a mut dyn Sink,
}

impl Sink for ReportingSink<'_> {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        let Reporting { events, answers, .. } = self.report;
        if let Some(&Some(index)) = self.indices.get(index) {
            events.send("document", &events::document(answers, index, outcome.as_ref()));
        }
        self.sink.completed(index, outcome);
    }

    fn tokens_processed(&mut self, tokens: TokenCounts) {
        self.sink.tokens_processed(tokens);
    }

    fn wants_text(&self) -> bool {
        true
    }

    fn text_generated(&mut self, index: usize, sample: usize, piece: &str) {
        self.sink.text_generated(index, sample, piece);
        let Some(&Some(of_request)) = self.indices.get(index) else { return };
        if self.ended.contains(&(index, sample)) {
            return;
        }
        let (thought, is_end) = match piece.split_once(THINK_CLOSE) {
            Some((thought, _)) => (thought, true),
            None => (piece, false),
        };
        if is_end {
            self.ended.insert((index, sample));
        }
        let text = thought.replace(THINK_OPEN, "");
        if !text.is_empty() {
            let thought = json!({"index": of_request, "sample": sample, "text": text});
            self.report.events.send("thought", &thought);
        }
    }
}
