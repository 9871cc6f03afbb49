//! Requests that are tried again: with backoff and jitter, at another endpoint if there is one, until
//! they succeed, are refused, have used up their attempts, or are stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde_json::Value;

use crate::api::Reply;
use crate::error::RequestError;
use crate::fleet::{Fleet, Permit, Verdict};
use crate::http::{Http, Session};

/// The pause before the first retry; each further one is twice as long. Up to as much again is added
/// at random, so that requests that failed together do not come back together.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a job sends its requests through. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    http: Arc<Http>,
    fleet: Arc<Fleet>,
    session: Session,
    attempts: usize,
    stopped: Arc<AtomicBool>,
}

impl Calls {
    pub(crate) fn new(http: &Arc<Http>, fleet: &Arc<Fleet>, attempts: usize) -> Self {
        Self {
            http: Arc::clone(http),
            fleet: Arc::clone(fleet),
            session: http.session(),
            attempts,
            stopped: Arc::default(),
        }
    }

    /// Ends all requests, those under way included.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.session.shut_down();
    }

    /// Keeps the connections for the next job.
    pub(crate) fn finish(self) {
        if !self.is_stopped() {
            self.http.give_back(self.session);
        }
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The reply to a GET request.
    pub(crate) fn get(&self, route: &str) -> Result<Value, RequestError> {
        self.retried(route, None, Ok)
    }

    /// The reply to a POST request.
    pub(crate) fn post(&self, route: &str, body: Value) -> Result<Value, RequestError> {
        self.retried(route, Some(&body), Ok)
    }

    /// What was generated for a POST request.
    pub(crate) fn generate(&self, route: &str, body: Value) -> Result<Reply, RequestError> {
        self.retried(route, Some(&body), Reply::read)
    }

    /// Sends a request once to one endpoint, if that one has room, and only learns how it is.
    pub(crate) fn warm_up(&self, endpoint: usize, route: &str, body: &Value) {
        if let Some(permit) = self.fleet.acquire_at(endpoint) {
            let result = self.attempt(&permit, route, Some(body), &Ok);
            permit.report(self.verdict(&result));
        }
    }

    fn retried<T>(
        &self,
        route: &str,
        body: Option<&Value>,
        read: impl Fn(Value) -> Result<T, String>,
    ) -> Result<T, RequestError> {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_jitter()
            .with_max_times(self.attempts - 1)
            .build();
        let (mut avoid, mut sent) = (None, 0);
        loop {
            let permit = self.fleet.acquire(avoid, &|| self.is_stopped());
            let permit = permit.ok_or(RequestError::Stopped)?;
            avoid = Some(permit.index());
            sent += 1;
            let result = self.attempt(&permit, route, body, &read);
            permit.report(self.verdict(&result));
            match result {
                Err(_) if self.is_stopped() => return Err(RequestError::Stopped),
                Err(error) if error.is_transient() => match pauses.next() {
                    // While nobody answers, the trials of all waiting requests count as each one's.
                    Some(pause) if !self.fleet.is_down(self.attempts) => self.wait(pause)?,
                    _ => {
                        return Err(RequestError::GaveUp { attempts: sent, last: Box::new(error) });
                    }
                },
                result => return result,
            }
        }
    }

    fn attempt<T>(
        &self,
        permit: &Permit<'_>,
        route: &str,
        body: Option<&Value>,
        read: &impl Fn(Value) -> Result<T, String>,
    ) -> Result<T, RequestError> {
        let url = format!("{}{route}", permit.url());
        let reply = self.http.send(&self.session, &url, body)?;
        read(reply).map_err(|problem| RequestError::Malformed { url, problem })
    }

    fn verdict<T>(&self, result: &Result<T, RequestError>) -> Verdict {
        match result {
            // A request that was cut off says nothing of the server.
            Err(_) if self.is_stopped() => Verdict::Unknown,
            Err(RequestError::Overloaded { retry_after, .. }) => {
                Verdict::Overloaded { retry_after: *retry_after }
            }
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
