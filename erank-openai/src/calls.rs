//! Requests that are tried again: with backoff and jitter, at another endpoint if there is one, until
//! they succeed, are refused, have used up their attempts, or are stopped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde_json::Value;

use crate::api::Reply;
use crate::error::RequestError;
use crate::fleet::{FAILURES_TO_EJECT, Fleet, Permit, Subject, Verdict};
use crate::http::{Http, Session};
use crate::server::{Capabilities, Known, Survey};

/// The pause before the first retry; each further one is twice as long. Up to as much again is added
/// at random, so that requests that failed together do not come back together.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What all jobs of a backend share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) http: Http,
    pub(crate) fleet: Fleet,
    pub(crate) survey: Survey,
    /// Times that a request is sent.
    pub(crate) attempts: usize,
    /// How many things were asked about.
    subjects: AtomicU64,
    /// The first token of an answer's text.
    first_ids: Mutex<BTreeMap<String, u32>>,
}

impl Shared {
    pub(crate) fn new(http: Http, fleet: Fleet, survey: Survey, attempts: usize) -> Self {
        Self {
            http,
            fleet,
            survey,
            attempts,
            subjects: AtomicU64::new(0),
            first_ids: Mutex::default(),
        }
    }
}

/// What a job sends its requests through. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    shared: Arc<Shared>,
    session: Session,
    subject: Subject,
    stopped: Arc<AtomicBool>,
}

impl Calls {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        let (shared, session) = (Arc::clone(shared), shared.http.session());
        Self { shared, session, subject: Subject(0), stopped: Arc::default() }.about_another()
    }

    /// The same, about another document than all before.
    pub(crate) fn about_another(&self) -> Self {
        let number = self.shared.subjects.fetch_add(1, Ordering::Relaxed);
        Self { subject: Subject(number), ..self.clone() }
    }

    /// Ends all requests, those under way included.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.session.shut_down();
    }

    /// Keeps the connections for the next job.
    pub(crate) fn finish(self) {
        if !self.is_stopped() {
            self.shared.http.give_back(self.session);
        }
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        &self.shared.fleet
    }

    /// Whether there is nobody to send a request to, whatever it is about.
    pub(crate) fn all_are_down(&self) -> bool {
        self.fleet().is_down(self.shared.attempts)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// What the endpoints can do.
    pub(crate) fn capabilities(&self) -> Result<Known, RequestError> {
        self.retried(|endpoint| self.shared.survey.at(endpoint))
    }

    /// The reply to a POST request; null from a server without this route.
    pub(crate) fn post_if_there(&self, route: &str, body: &Value) -> Result<Value, RequestError> {
        self.retried(|endpoint| {
            self.shared.survey.at(endpoint)?;
            match endpoint.post(route, body) {
                Err(RequestError::Refused { status: 404 | 405, .. }) => Ok(Value::Null),
                result => result,
            }
        })
    }

    /// The id of a text's first token, asked once; `None` if the server does not say.
    pub(crate) fn first_id(&self, known: &Capabilities, text: &str) -> Option<u32> {
        let ids = || self.shared.first_ids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = ids().get(text) {
            return Some(*id);
        }
        let id = known.first_id(self, text).ok()??;
        ids().insert(text.to_owned(), id);
        Some(id)
    }

    /// What was generated for a POST request.
    pub(crate) fn generate(&self, route: &str, body: &Value) -> Result<Reply, RequestError> {
        self.retried(|endpoint| {
            self.shared.survey.at(endpoint)?;
            endpoint.generate(route, body)
        })
    }

    /// Sends a request once to one endpoint, if that one has room, and only learns how it is.
    pub(crate) fn warm_up(&self, endpoint: usize, route: &str, body: &Value) {
        if let Some(permit) = self.fleet().acquire_at(self.subject, endpoint) {
            let endpoint = Endpoint { calls: self, permit: &permit, tries: 1 };
            let result = self.shared.survey.at(&endpoint).and_then(|_| endpoint.post(route, body));
            self.report(permit, &result);
        }
    }

    fn retried<T>(
        &self,
        ask: impl Fn(&Endpoint<'_>) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_jitter()
            .without_max_times()
            .build();
        let (mut avoid, mut sent, mut failed) = (None, 0, 0);
        loop {
            let permit = self.fleet().acquire(self.subject, avoid, &|| self.is_stopped());
            let permit = permit.ok_or(RequestError::Stopped)?;
            avoid = Some(permit.index());
            sent += 1;
            let result = ask(&Endpoint { calls: self, permit: &permit, tries: 1 });
            let url = permit.url().to_owned();
            self.report(permit, &result);
            let error = match result {
                Err(_) if self.is_stopped() => return Err(RequestError::Stopped),
                Err(error) => error,
                reply => return reply,
            };
            if error.is_fatal() && !self.fleet().all_refuse() {
                continue;
            }
            if !error.is_transient() {
                return Err(error);
            }
            failed += 1;
            if failed >= self.budget(&error) || self.all_are_down() {
                return Err(RequestError::GaveUp { attempts: sent, last: Box::new(error) });
            }
            let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            let (why, seconds) = (error.summary(), pause.as_secs_f64());
            tracing::debug!(url, sent, why, seconds, "the request will try again");
            self.wait(pause)?;
        }
    }

    /// How often a request may fail, if it failed like this the last time. An outage is not the
    /// document's fault: it may last for as many trials as the endpoints get before all are down,
    /// unless nobody was ever there.
    fn budget(&self, error: &RequestError) -> usize {
        let attempts = self.shared.attempts;
        let is_known = self.fleet().was_reached();
        match error.is_outage() && is_known {
            true => attempts.saturating_add(FAILURES_TO_EJECT).saturating_mul(self.fleet().len()),
            false => attempts,
        }
    }

    /// Tells the fleet how a request went.
    fn report<T>(&self, permit: Permit<'_>, result: &Result<T, RequestError>) {
        let verdict = self.verdict(result);
        if let (Verdict::Refuses, Err(error)) = (verdict, result) {
            tracing::warn!(
                url = permit.url(),
                why = error.summary(),
                "the endpoint refuses its work"
            );
        }
        permit.report(verdict);
    }

    fn verdict<T>(&self, result: &Result<T, RequestError>) -> Verdict {
        match result {
            // A request that was cut off says nothing of the server.
            Err(_) if self.is_stopped() => Verdict::Unknown,
            Err(RequestError::Unreachable { .. }) => Verdict::Unreachable,
            Err(RequestError::Overloaded { status: 503, retry_after: None, .. }) => {
                Verdict::Unready
            }
            Err(RequestError::Overloaded { retry_after, .. }) => {
                Verdict::Overloaded { retry_after: *retry_after }
            }
            Err(error) if error.is_fatal() => Verdict::Refuses,
            Err(RequestError::Refused { status: 403, .. }) => Verdict::Fails,
            Err(error) if error.is_transient() => Verdict::Fails,
            _ => Verdict::Works,
        }
    }

    /// Sleeps, but not beyond a stop.
    fn wait(&self, pause: Duration) -> Result<(), RequestError> {
        const POLL: Duration = Duration::from_millis(20);
        let end = Instant::now() + pause;
        while !self.is_stopped() {
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(POLL)),
                _ => return Ok(()),
            }
        }
        Err(RequestError::Stopped)
    }
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint<'a> {
    calls: &'a Calls,
    permit: &'a Permit<'a>,
    /// How often it is asked if it fails, but not while it is down.
    tries: usize,
}

impl Endpoint<'_> {
    /// The same, for one of several requests that only together are of use.
    pub(crate) fn patient(&self) -> Self {
        const TRIES: usize = 3;
        Self { tries: TRIES, ..*self }
    }

    pub(crate) fn index(&self) -> usize {
        self.permit.index()
    }

    pub(crate) fn url(&self) -> &str {
        self.permit.url()
    }

    /// The reply to a GET request.
    pub(crate) fn get(&self, route: &str) -> Result<Value, RequestError> {
        self.send(route, None, Ok)
    }

    /// The reply to a POST request.
    pub(crate) fn post(&self, route: &str, body: &Value) -> Result<Value, RequestError> {
        self.send(route, Some(body), Ok)
    }

    /// What was generated for a POST request.
    pub(crate) fn generate(&self, route: &str, body: &Value) -> Result<Reply, RequestError> {
        self.send(route, Some(body), Reply::read)
    }

    /// What the server wrote, for an error.
    pub(crate) fn presentable(&self, said: &str) -> String {
        self.calls.shared.http.presentable(said)
    }

    pub(crate) fn malformed(&self, route: &str, problem: &str) -> RequestError {
        // It may quote what the server wrote.
        let problem = self.presentable(problem);
        RequestError::Malformed { url: format!("{}{route}", self.url()), problem }
    }

    fn send<T>(
        &self,
        route: &str,
        body: Option<&Value>,
        read: impl Fn(Value) -> Result<T, String>,
    ) -> Result<T, RequestError> {
        let url = format!("{}{route}", self.url());
        for _ in 1..self.tries {
            match self.send_once(&url, route, body, &read) {
                Err(error) if error.is_transient() && !error.is_outage() => {
                    self.calls.wait(FIRST_PAUSE)?;
                }
                result => return result,
            }
        }
        self.send_once(&url, route, body, &read)
    }

    fn send_once<T>(
        &self,
        url: &str,
        route: &str,
        body: Option<&Value>,
        read: &impl Fn(Value) -> Result<T, String>,
    ) -> Result<T, RequestError> {
        let reply = self.calls.shared.http.send(&self.calls.session, url, body)?;
        read(reply).map_err(|problem| self.malformed(route, &problem))
    }
}
