//! The client of one job. It sends requests through the load balancer, with retries.
//!
//! A failed request is retried with exponential backoff and jitter, at another endpoint if there is one,
//! until it succeeds, is rejected, reaches the maximum number of attempts, or is cancelled.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use serde_json::{Value, json};

use crate::api::{Response, TOKENIZE};
use crate::capabilities::{Capabilities, CapabilityCache};
use crate::endpoint::{Endpoint, INITIAL_BACKOFF};
use crate::error::RequestError;
use crate::http::{HttpClient, Session};
use crate::load_balancer::{CONSECUTIVE_FAILURES, LoadBalancer, Outcome, Permit, TaskId};
use crate::settings::ServerKind;

/// The maximum pause between two attempts, before jitter. The pause starts at [`INITIAL_BACKOFF`] and
/// doubles. Jitter adds up to the same time again, so that requests that failed together are not retried
/// together.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// The state that all jobs of a backend share.
#[derive(Debug)]
pub(crate) struct Shared {
    http: HttpClient,
    balancer: LoadBalancer,
    capabilities: CapabilityCache,
    /// The maximum number of times that a request is sent.
    max_attempts: usize,
    /// The next [`TaskId`].
    next_task: AtomicU64,
    /// The id of the first token of each answer's text.
    first_token_ids: Mutex<BTreeMap<String, u32>>,
}

impl Shared {
    pub(crate) fn new(
        http: HttpClient,
        balancer: LoadBalancer,
        capabilities: CapabilityCache,
        max_attempts: usize,
    ) -> Self {
        Self {
            http,
            balancer,
            capabilities,
            max_attempts,
            next_task: AtomicU64::new(0),
            first_token_ids: Mutex::default(),
        }
    }

    /// Returns the capabilities, if any endpoint was probed.
    pub(crate) fn known_capabilities(&self) -> Option<&Arc<Capabilities>> {
        self.capabilities.get()
    }
}

/// Sends the requests of one task of a job. Clones share the job's session.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    session: Session,
    task: TaskId,
}

impl Client {
    /// Creates the client of a new job.
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        let (shared, session) = (Arc::clone(shared), shared.http.session());
        Self { shared, session, task: TaskId(0) }.for_new_task()
    }

    /// Returns a client of the same job for a new task.
    pub(crate) fn for_new_task(&self) -> Self {
        let number = self.shared.next_task.fetch_add(1, Ordering::Relaxed);
        Self { task: TaskId(number), ..self.clone() }
    }

    /// Cancels all requests of the job, including the open ones.
    pub(crate) fn cancel(&self) {
        self.session.cancel();
    }

    /// Returns the connections to the pool, for the next job.
    pub(crate) fn finish(self) {
        self.shared.http.recycle(self.session);
    }

    pub(crate) fn balancer(&self) -> &LoadBalancer {
        &self.shared.balancer
    }

    /// Returns whether every endpoint is down, for every request.
    pub(crate) fn is_down(&self) -> bool {
        self.balancer().is_down(self.shared.max_attempts)
    }

    /// Returns the capabilities of the endpoints. Probes one if none was probed.
    pub(crate) fn capabilities(&self) -> Result<Arc<Capabilities>, RequestError> {
        self.retry(|endpoint| self.shared.capabilities.probe(endpoint))
    }

    /// Sends a generation request.
    pub(crate) fn generate(&self, route: &str, body: &Value) -> Result<Response, RequestError> {
        self.retry(|endpoint| {
            self.shared.capabilities.probe(endpoint)?;
            endpoint.generate(route, body)
        })
    }

    /// Sends a request once to one endpoint, if it can accept one. The outcome only updates the
    /// endpoint's state.
    pub(crate) fn warm_up(&self, endpoint: usize, route: &str, body: &Value) {
        if let Some(permit) = self.balancer().try_acquire_endpoint(self.task, endpoint) {
            let endpoint = self.endpoint(&permit);
            let probed = self.shared.capabilities.probe(&endpoint);
            let result = probed.and_then(|_| endpoint.post(route, body));
            self.report(permit, &result);
        }
    }

    /// Returns the id of the first token of `text`, cached. Returns `None` if the server does not report it.
    pub(crate) fn first_token_id(&self, server: &Capabilities, text: &str) -> Option<u32> {
        let ids = || self.shared.first_token_ids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = ids().get(text) {
            return Some(*id);
        }
        let body = server.request(json!({"prompt": text, "add_special_tokens": false}));
        let response = self.post_optional(TOKENIZE, &body).ok()?;
        let id = u32::try_from(response["tokens"][0].as_u64()?).ok()?;
        ids().insert(text.to_owned(), id);
        Some(id)
    }

    /// Returns the number of tokens of `text` by the server's tokenizer. Returns `None` if the server does
    /// not report it.
    pub(crate) fn count_tokens(
        &self,
        server: &Capabilities,
        text: &str,
    ) -> Result<Option<usize>, RequestError> {
        match server.kind {
            ServerKind::Other => Ok(None),
            ServerKind::LlamaCpp => {
                let body = json!({"content": text, "add_special": false, "parse_special": true});
                let response = self.post_optional(TOKENIZE, &body)?;
                Ok(response["tokens"].as_array().map(Vec::len))
            }
            ServerKind::Vllm | ServerKind::Sglang => {
                let body = server.request(json!({"prompt": text, "add_special_tokens": false}));
                let response = self.post_optional(TOKENIZE, &body)?;
                Ok(response["count"].as_u64().and_then(|count| usize::try_from(count).ok()))
            }
        }
    }

    /// Sends a POST request. Returns null if the server lacks the route.
    fn post_optional(&self, route: &str, body: &Value) -> Result<Value, RequestError> {
        self.retry(|endpoint| {
            self.shared.capabilities.probe(endpoint)?;
            match endpoint.post(route, body) {
                Err(RequestError::Rejected { status: 404 | 405, .. }) => Ok(Value::Null),
                result => result,
            }
        })
    }

    fn endpoint<'a>(&'a self, permit: &'a Permit<'a>) -> Endpoint<'a> {
        Endpoint::new(&self.shared.http, &self.session, permit)
    }

    /// Sends a request until it succeeds or must not be retried.
    fn retry<T>(
        &self,
        send: impl Fn(&Endpoint<'_>) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let mut backoff = ExponentialBuilder::default()
            .with_min_delay(INITIAL_BACKOFF)
            .with_max_delay(MAX_BACKOFF)
            .with_jitter()
            .without_max_times()
            .build();
        let (mut avoid, mut sent, mut failed) = (None, 0, 0);
        loop {
            let permit = self.balancer().acquire(self.task, avoid, &|| self.session.is_cancelled());
            let permit = permit.ok_or(RequestError::Cancelled)?;
            avoid = Some(permit.index());
            sent += 1;
            let result = send(&self.endpoint(&permit));
            let url = permit.url().to_owned();
            self.report(permit, &result);
            let error = match result {
                Err(_) if self.session.is_cancelled() => return Err(RequestError::Cancelled),
                Err(error) => error,
                response => return response,
            };
            if error.is_fatal() && !self.balancer().all_reject() {
                continue;
            }
            if !error.is_transient() {
                return Err(error);
            }
            failed += 1;
            if failed >= self.max_failures(&error) || self.is_down() {
                return Err(RequestError::RetriesExhausted {
                    attempts: sent,
                    last: Box::new(error),
                });
            }
            let pause = backoff.next().unwrap_or(MAX_BACKOFF);
            let (why, seconds) = (error.summary(), pause.as_secs_f64());
            tracing::debug!(url, sent, why, seconds, "request will be retried");
            self.session.sleep(pause)?;
        }
    }

    /// Returns the number of failures after which a request is given up, if the last failure was `error`. An
    /// outage is not the document's fault. So it may last for as many attempts as the endpoints get before
    /// all of them are down. If no endpoint was ever reached, an outage counts like any other failure.
    fn max_failures(&self, error: &RequestError) -> usize {
        let max_attempts = self.shared.max_attempts;
        match error.is_outage() && self.balancer().was_reached() {
            true => {
                let per_endpoint = max_attempts.saturating_add(CONSECUTIVE_FAILURES);
                per_endpoint.saturating_mul(self.balancer().len())
            }
            false => max_attempts,
        }
    }

    /// Reports the outcome of a request to the load balancer.
    fn report<T>(&self, permit: Permit<'_>, result: &Result<T, RequestError>) {
        let outcome = self.outcome(result);
        if let (Outcome::Rejected, Err(error)) = (outcome, result) {
            let (url, why) = (permit.url(), error.summary());
            tracing::warn!(url, why, "endpoint rejects every request");
        }
        permit.report(outcome);
    }

    fn outcome<T>(&self, result: &Result<T, RequestError>) -> Outcome {
        match result {
            // A cancelled request shows nothing about the endpoint.
            Err(_) if self.session.is_cancelled() => Outcome::Unknown,
            Err(RequestError::Unreachable { .. }) => Outcome::Unreachable,
            Err(RequestError::Overloaded { status: 503, retry_after: None, .. }) => {
                Outcome::NotReady
            }
            Err(RequestError::Overloaded { retry_after, .. }) => {
                Outcome::Overloaded { retry_after: *retry_after }
            }
            Err(error) if error.is_fatal() => Outcome::Rejected,
            Err(RequestError::Rejected { status: 403, .. }) => Outcome::Failure,
            Err(error) if error.is_transient() => Outcome::Failure,
            _ => Outcome::Success,
        }
    }
}
