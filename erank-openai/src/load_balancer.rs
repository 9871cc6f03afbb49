//! The load balancer. It selects an endpoint for each request, limits the concurrent requests of each
//! endpoint, and ejects endpoints that fail.
//!
//! Each endpoint has a limit of concurrent requests with additive increase and multiplicative decrease
//! (AIMD). The limit grows by one per round of successes, and halves when the endpoint reports an overload.
//! This is not taken from a crate, because the crates for it are asynchronous (`tower` and `tokio`).
//!
//! An endpoint that fails [`CONSECUTIVE_FAILURES`] times in a row is ejected for a time that doubles with
//! every further failure. Afterwards the endpoint is half-open. It gets a single trial request, and recovers
//! if that succeeds. If the endpoint is reachable, repeated failures of one document count once, because the
//! document may be their cause. This is not taken from a crate, because the blocking circuit breaker crates
//! count every failure and do not distinguish the causes.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The number of consecutive failures after which an endpoint is ejected.
pub(crate) const CONSECUTIVE_FAILURES: usize = 3;
/// The first ejection time. It doubles with every further failure.
const BASE_EJECTION_TIME: Duration = Duration::from_millis(500);
const MAX_EJECTION_TIME: Duration = Duration::from_secs(30);
/// The maximum pause that a server's `Retry-After` can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// The concurrency limit of a new endpoint.
const INITIAL_LIMIT: usize = 8;
/// The maximum number of failed tasks to remember per endpoint. Only an outage has more.
const MAX_FAILED_TASKS: usize = 100;
/// The interval at which a waiting thread checks for cancellation.
const POLL: Duration = Duration::from_millis(20);

/// The endpoints of a backend, shared by all its jobs.
#[derive(Debug)]
pub(crate) struct LoadBalancer {
    urls: Vec<String>,
    max_concurrency: usize,
    states: Mutex<Vec<EndpointState>>,
    /// Notified whenever a request ends.
    released: Condvar,
}

/// Identifies the task of a request. A task is one document with all its samples, or the requests that a job
/// sends for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskId(pub(crate) u64);

#[derive(Debug, Clone)]
struct EndpointState {
    in_flight: usize,
    /// The AIMD limit of concurrent requests.
    limit: f64,
    /// The number of consecutive failures that count.
    failures: usize,
    /// The distinct tasks that these failures belong to.
    failed_tasks: Vec<TaskId>,
    /// Whether the last failure was a failed connection.
    unreachable: bool,
    /// Whether the endpoint rejects every request.
    rejects: bool,
    /// Whether the endpoint ever accepted a connection.
    was_reached: bool,
    /// The end of the ejection.
    ejected_until: Option<Instant>,
    /// The end of the pause that the server asked for.
    retry_after: Option<Instant>,
    /// The time when the limit was last lowered. A request that was sent before this time does not lower the
    /// limit again.
    limit_lowered_at: Instant,
    /// The time when the endpoint was last ejected. Until it recovers, a failure of a request that was sent
    /// before this time does not count.
    ejected_at: Instant,
}

impl EndpointState {
    fn new(max_concurrency: usize) -> Self {
        Self {
            in_flight: 0,
            limit: INITIAL_LIMIT.min(max_concurrency) as f64,
            failures: 0,
            failed_tasks: Vec::new(),
            unreachable: false,
            rejects: false,
            was_reached: false,
            ejected_until: None,
            retry_after: None,
            limit_lowered_at: Instant::now(),
            ejected_at: Instant::now(),
        }
    }

    /// Returns whether the endpoint is ejected or half-open.
    fn is_ejected(&self) -> bool {
        self.rejects || self.failures >= CONSECUTIVE_FAILURES
    }

    /// Returns the number of concurrent requests allowed. It is one if the endpoint is half-open.
    fn allowed(&self) -> usize {
        if self.is_ejected() { 1 } else { self.limit as usize }
    }

    fn can_accept(&self, now: Instant) -> bool {
        let is_over = |until: Option<Instant>| until.is_none_or(|until| until <= now);
        is_over(self.ejected_until) && is_over(self.retry_after) && self.in_flight < self.allowed()
    }

    /// Returns whether the endpoint is down. It is down if it rejects every request, or if it has failed at
    /// least `trials` times since its first ejection. The failures must be of several tasks, or the last one
    /// must be a failure to connect.
    fn is_down(&self, trials: usize) -> bool {
        let is_endpoint_fault = self.unreachable || self.failed_tasks.len() >= CONSECUTIVE_FAILURES;
        self.rejects || (self.failures >= CONSECUTIVE_FAILURES + trials && is_endpoint_fault)
    }

    /// Ends an ejection, because the endpoint answered. A pause that the endpoint asked for stays in force.
    fn recover(&mut self) {
        self.failures = 0;
        self.failed_tasks.clear();
        (self.unreachable, self.rejects, self.was_reached) = (false, false, true);
        self.ejected_until = None;
    }

    /// Raises the limit by one per round of successes, if the limit was in full use.
    fn raise_limit(&mut self, max_concurrency: usize) {
        if self.in_flight + 1 >= self.limit as usize {
            self.limit = (self.limit + 1.0 / self.limit).min(max_concurrency as f64);
        }
    }

    /// Halves the limit, unless it was lowered after the request began.
    fn lower_limit(&mut self, began: Instant) {
        if began >= self.limit_lowered_at {
            self.limit = (self.limit / 2.0).max(1.0);
            self.limit_lowered_at = Instant::now();
        }
    }

    /// Counts a failure. Returns the ejection time if the endpoint is now ejected.
    fn fail(&mut self, task: TaskId) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        if !self.failed_tasks.contains(&task) && self.failed_tasks.len() < MAX_FAILED_TASKS {
            self.failed_tasks.push(task);
        }
        let further = self.failures.checked_sub(CONSECUTIVE_FAILURES)?;
        let time = BASE_EJECTION_TIME * 2_u32.pow(further.min(16) as u32);
        Some(self.eject(time.min(MAX_EJECTION_TIME)))
    }

    fn eject(&mut self, time: Duration) -> Duration {
        self.ejected_at = Instant::now();
        self.ejected_until = Some(self.ejected_at + time);
        time
    }
}

/// The outcome of a request, as the load balancer classifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The endpoint works.
    Success,
    /// The endpoint works, but is overloaded.
    Overloaded { retry_after: Option<Duration> },
    /// The endpoint accepts no connection.
    Unreachable,
    /// The request failed, perhaps because of its document.
    Failure,
    /// The endpoint is not ready. This is a failure that may also be an overload.
    NotReady,
    /// The endpoint rejects every request.
    Rejected,
    /// The request was cancelled, so its outcome is unknown.
    Unknown,
}

impl LoadBalancer {
    /// Creates a load balancer for at least one URL, with at most `max_concurrency` concurrent requests to
    /// each.
    pub(crate) fn new(urls: Vec<String>, max_concurrency: usize) -> Self {
        let states = Mutex::new(vec![EndpointState::new(max_concurrency); urls.len()]);
        Self { urls, max_concurrency, states, released: Condvar::new() }
    }

    /// Returns the number of endpoints.
    pub(crate) fn len(&self) -> usize {
        self.urls.len()
    }

    /// Returns the number of concurrent requests that all endpoints together allow. It is at least one. Even
    /// if all endpoints are ejected, one trial request must be possible.
    pub(crate) fn capacity(&self) -> usize {
        self.states().iter().map(EndpointState::allowed).sum::<usize>().max(1)
    }

    /// Returns whether every endpoint is ejected and has failed at least `trials` times since its first
    /// ejection. The failures must be of several tasks, or failures to connect. An endpoint that rejects
    /// every request counts as well.
    pub(crate) fn is_down(&self, trials: usize) -> bool {
        self.states().iter().all(|state| state.is_down(trials))
    }

    /// Returns whether every endpoint rejects every request.
    pub(crate) fn all_reject(&self) -> bool {
        self.states().iter().all(|state| state.rejects)
    }

    /// Returns whether any endpoint ever accepted a connection.
    pub(crate) fn was_reached(&self) -> bool {
        self.states().iter().any(|state| state.was_reached)
    }

    /// Waits for an endpoint that can accept a request. Prefers any endpoint to `avoid`, and then the one
    /// with the least load. Returns `None` once `is_cancelled`.
    pub(crate) fn acquire(
        &self,
        task: TaskId,
        avoid: Option<usize>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Option<Permit<'_>> {
        let mut states = self.states();
        while !is_cancelled() {
            let now = Instant::now();
            let free = (0..states.len()).filter(|&index| states[index].can_accept(now));
            let load = |index: usize| states[index].in_flight as f64 / states[index].limit;
            let best = free.min_by(|&a, &b| {
                (avoid == Some(a)).cmp(&(avoid == Some(b))).then(load(a).total_cmp(&load(b)))
            });
            if let Some(index) = best {
                states[index].in_flight += 1;
                return Some(self.permit(index, task, now));
            }
            let waited = self.released.wait_timeout(states, POLL);
            states = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }

    /// Returns a permit for one endpoint, or `None` if it cannot accept a request now.
    pub(crate) fn try_acquire_endpoint(&self, task: TaskId, index: usize) -> Option<Permit<'_>> {
        let (mut states, now) = (self.states(), Instant::now());
        states.get(index)?.can_accept(now).then(|| {
            states[index].in_flight += 1;
            self.permit(index, task, now)
        })
    }

    fn permit(&self, index: usize, task: TaskId, began: Instant) -> Permit<'_> {
        Permit { balancer: self, index, task, began, outcome: Outcome::Unknown }
    }

    fn states(&self) -> MutexGuard<'_, Vec<EndpointState>> {
        // A panic in another thread cannot leave the numbers in an invalid state.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the endpoint's state with the outcome of a request, and logs a change.
    fn release(&self, permit: &Permit<'_>) {
        let (index, url) = (permit.index, self.urls[permit.index].as_str());
        let mut states = self.states();
        let others_accept =
            states.iter().enumerate().any(|(n, other)| n != index && !other.rejects);
        let state = &mut states[index];
        state.in_flight -= 1;
        let was_ejected = state.is_ejected();
        let ejection = self.apply(state, permit, others_accept);
        let (failures, is_ejected) = (state.failures, state.is_ejected());
        drop(states);
        self.released.notify_all();
        if let Some(time) = ejection {
            let seconds = time.as_secs_f64();
            tracing::warn!(url, failures, seconds, "endpoint ejected");
        } else if was_ejected && !is_ejected {
            tracing::info!(url, "endpoint recovered");
        }
    }

    /// Applies an outcome to the endpoint's state. Returns the ejection time if the endpoint is now
    /// ejected.
    fn apply(
        &self,
        state: &mut EndpointState,
        permit: &Permit<'_>,
        others_accept: bool,
    ) -> Option<Duration> {
        let (began, was_ejected) = (permit.began, state.is_ejected());
        match permit.outcome {
            Outcome::Unknown => None,
            Outcome::Success => {
                state.recover();
                state.raise_limit(self.max_concurrency);
                None
            }
            Outcome::Overloaded { retry_after } => {
                state.recover();
                state.lower_limit(began);
                let until = retry_after.map(|pause| Instant::now() + pause.min(MAX_RETRY_AFTER));
                state.retry_after = state.retry_after.max(until);
                None
            }
            // The request was sent before the ejection.
            Outcome::Unreachable | Outcome::Failure | Outcome::NotReady
                if was_ejected && began < state.ejected_at =>
            {
                None
            }
            Outcome::Unreachable => {
                state.unreachable = true;
                state.fail(permit.task)
            }
            Outcome::Failure | Outcome::NotReady => {
                (state.was_reached, state.unreachable) = (true, false);
                if permit.outcome == Outcome::NotReady && !was_ejected {
                    state.lower_limit(began);
                }
                match state.failed_tasks.contains(&permit.task) {
                    true => None,
                    false => state.fail(permit.task),
                }
            }
            Outcome::Rejected => {
                (state.was_reached, state.rejects) = (true, true);
                others_accept.then(|| state.eject(MAX_EJECTION_TIME))
            }
        }
    }
}

/// A permit to send one request to one endpoint. Dropping it reports the [`Outcome`].
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    balancer: &'a LoadBalancer,
    index: usize,
    task: TaskId,
    began: Instant,
    outcome: Outcome,
}

impl Permit<'_> {
    /// Returns the index of the endpoint.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Returns the URL of the endpoint.
    pub(crate) fn url(&self) -> &str {
        &self.balancer.urls[self.index]
    }

    /// Reports the outcome of the request.
    pub(crate) fn report(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.balancer.release(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn balancer(endpoints: usize, max_concurrency: usize) -> LoadBalancer {
        let urls = (0..endpoints).map(|number| format!("http://{number}")).collect();
        LoadBalancer::new(urls, max_concurrency)
    }

    fn acquire(balancer: &LoadBalancer) -> Permit<'_> {
        balancer.acquire(TaskId(0), None, &|| false).expect("an endpoint")
    }

    fn try_acquire(balancer: &LoadBalancer, index: usize) -> Option<Permit<'_>> {
        balancer.try_acquire_endpoint(TaskId(0), index)
    }

    #[test]
    fn acquire_prefers_least_load_and_avoids_given_endpoint() {
        let balancer = balancer(2, 4);
        let first = acquire(&balancer);
        let second = acquire(&balancer);
        assert_ne!(first.index(), second.index());
        first.report(Outcome::Success);
        let permit = balancer.acquire(TaskId(0), Some(0), &|| false).expect("an endpoint");
        assert_eq!((permit.index(), permit.url()), (1, "http://1"));
        assert!(try_acquire(&balancer, 0).is_some());
        assert!(try_acquire(&balancer, 2).is_none());
    }

    #[test]
    fn limit_grows_with_success_and_halves_once_per_overload() {
        let balancer = balancer(1, 16);
        assert_eq!(balancer.capacity(), INITIAL_LIMIT);
        let permits: Vec<_> = (0..INITIAL_LIMIT).map(|_| acquire(&balancer)).collect();
        assert!(try_acquire(&balancer, 0).is_none(), "the limit is reached");
        assert!(
            balancer.acquire(TaskId(0), None, &|| true).is_none(),
            "cancellation ends the wait"
        );

        // All requests were sent before the limit was lowered, so they count as one overload.
        for permit in permits {
            permit.report(Outcome::Overloaded { retry_after: None });
        }
        assert_eq!(balancer.capacity(), INITIAL_LIMIT / 2);

        for _ in 0..500 {
            let permits: Vec<_> = (0..balancer.capacity()).map(|_| acquire(&balancer)).collect();
            permits.into_iter().for_each(|permit| permit.report(Outcome::Success));
        }
        assert_eq!(balancer.capacity(), 16, "grows up to the maximum");
        for _ in 0..10 {
            acquire(&balancer).report(Outcome::Overloaded { retry_after: None });
        }
        assert_eq!(balancer.capacity(), 1, "stays at least 1");
    }

    #[test]
    fn failing_endpoint_is_ejected_then_half_open_then_recovers() {
        let balancer = balancer(2, 4);
        // Concurrent failures count as one outage.
        let permits: Vec<_> =
            (0..4).map(|_| try_acquire(&balancer, 0).expect("a permit")).collect();
        permits.into_iter().for_each(|permit| permit.report(Outcome::Unreachable));
        assert!(!balancer.is_down(0));
        assert!(try_acquire(&balancer, 0).is_none(), "ejected");
        assert_eq!(acquire(&balancer).index(), 1);

        thread::sleep(BASE_EJECTION_TIME + Duration::from_millis(50));
        let trial = try_acquire(&balancer, 0).expect("a trial request");
        assert!(try_acquire(&balancer, 0).is_none(), "half-open: one trial request at a time");
        trial.report(Outcome::Unreachable);
        thread::sleep(BASE_EJECTION_TIME + Duration::from_millis(50));
        assert!(try_acquire(&balancer, 0).is_none(), "the ejection time doubles");

        thread::sleep(BASE_EJECTION_TIME);
        try_acquire(&balancer, 0).expect("a trial request").report(Outcome::Success);
        assert!(try_acquire(&balancer, 0).is_some() && balancer.capacity() > 4, "recovered");
    }

    #[test]
    fn failures_of_one_task_count_once_unless_unreachable() {
        let balancer = balancer(1, 4);
        let report = |task, outcome| {
            let permit = balancer.acquire(TaskId(task), None, &|| false).expect("an endpoint");
            permit.report(outcome);
        };
        for task in [7, 7, 7, 7, 8, 7, 8, 8] {
            report(task, Outcome::Failure);
        }
        assert!(!balancer.is_down(0) && balancer.capacity() > 1, "two tasks do not suffice");
        report(9, Outcome::Failure);
        assert!(balancer.is_down(0) && balancer.capacity() == 1, "three tasks suffice");
        thread::sleep(BASE_EJECTION_TIME);
        report(9, Outcome::Success);
        for _ in 0..3 {
            report(7, Outcome::Unreachable);
        }
        assert!(balancer.is_down(0), "a failed connection counts every time");
    }

    #[test]
    fn rejecting_endpoint_is_ejected_unless_all_reject() {
        let balancer = balancer(2, 4);
        try_acquire(&balancer, 0).expect("a permit").report(Outcome::Rejected);
        assert!(try_acquire(&balancer, 0).is_none() && !balancer.all_reject());
        assert!(!balancer.is_down(0));
        try_acquire(&balancer, 1).expect("a permit").report(Outcome::Rejected);
        assert!(balancer.all_reject());
        // The last endpoint stays available, because the next job may come with a corrected server.
        try_acquire(&balancer, 1).expect("a permit").report(Outcome::Success);
        assert!(!balancer.all_reject());
    }

    #[test]
    fn retry_after_pauses_endpoint_without_failure() {
        let balancer = balancer(1, 4);
        let retry_after = Some(Duration::from_millis(120));
        let began = Instant::now();
        acquire(&balancer).report(Outcome::Overloaded { retry_after });
        assert!(try_acquire(&balancer, 0).is_none());
        assert!(!balancer.is_down(0), "an overload is not a failure");
        drop(acquire(&balancer));
        assert!(began.elapsed() >= Duration::from_millis(120));
    }

    /// A date far in the future asks for such a pause, and so does any date if the clock of this machine is late.
    #[test]
    fn retry_after_of_years_pauses_endpoint_for_a_minute() {
        let balancer = balancer(1, 4);
        for retry_after in [Duration::from_secs(1 << 32), Duration::MAX] {
            acquire(&balancer).report(Outcome::Overloaded { retry_after: Some(retry_after) });
            let until = balancer.states()[0].retry_after.take().expect("a pause");
            assert!(until <= Instant::now() + MAX_RETRY_AFTER);
        }
    }

    #[test]
    fn retry_after_holds_despite_success_of_earlier_request() {
        let balancer = balancer(1, 4);
        let (earlier, overloaded) = (acquire(&balancer), acquire(&balancer));
        overloaded.report(Outcome::Overloaded { retry_after: Some(Duration::from_secs(5)) });
        earlier.report(Outcome::Success);
        assert!(try_acquire(&balancer, 0).is_none(), "the pause stays in force");
    }
}
