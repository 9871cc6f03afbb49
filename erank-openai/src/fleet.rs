//! The endpoints: which one takes the next request, and how many it takes at once.
//!
//! Each endpoint has a limit of requests under way that grows by one for every round of successes and
//! halves when the endpoint says that it is overloaded (additive increase, multiplicative decrease).
//! An endpoint that fails several times in a row is left alone for a while, the longer the more often,
//! and then tried with a single request. Where somebody listens, what one document meets with counts
//! once: it may be the document's fault.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Failures in a row after which an endpoint is left alone.
pub(crate) const FAILURES_TO_EJECT: usize = 3;
/// How long it is left alone at first; doubled with every further failure, up to the longest.
const FIRST_EJECTION: Duration = Duration::from_millis(500);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// No server is left alone for longer, whatever it asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Requests under way that an endpoint begins with.
const FIRST_LIMIT: usize = 8;
/// Subjects that an endpoint is remembered to have failed at. There are more only in an outage.
const MOST_SUBJECTS: usize = 100;
/// How often a waiting thread looks whether it should stop.
const POLL: Duration = Duration::from_millis(20);

/// The endpoints of a backend, shared by all its jobs.
#[derive(Debug)]
pub(crate) struct Fleet {
    urls: Vec<String>,
    most: usize,
    health: Mutex<Vec<Health>>,
    changed: Condvar,
}

/// What a request is about: a document with all its samples, or a question about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subject(pub(crate) u64);

#[derive(Debug, Clone)]
struct Health {
    in_flight: usize,
    limit: f64,
    /// Failures in a row that count.
    failures: usize,
    /// What they were about, each once.
    subjects: Vec<Subject>,
    /// Whether nobody listened at the last.
    unreachable: bool,
    /// Whether it refuses everything.
    refuses: bool,
    /// Whether it ever listened.
    was_reached: bool,
    /// Nothing is sent before: because it fails, and because it asked for that.
    ejected_until: Option<Instant>,
    asked_until: Option<Instant>,
    /// When the limit was lowered, and when the endpoint was last left alone: what a request from
    /// before reports is old news.
    lowered: Instant,
    ejected: Instant,
}

impl Health {
    fn is_ejected(&self) -> bool {
        self.refuses || self.failures >= FAILURES_TO_EJECT
    }

    /// Requests that it takes at once. One that failed is tried with one.
    fn allowed(&self) -> usize {
        if self.is_ejected() { 1 } else { self.limit as usize }
    }

    fn takes_another(&self, now: Instant) -> bool {
        let is_over = |until: Option<Instant>| until.is_none_or(|until| until <= now);
        is_over(self.ejected_until) && is_over(self.asked_until) && self.in_flight < self.allowed()
    }

    /// Whether it failed `trials` times since it was first left alone, and not at one document alone.
    fn is_down(&self, trials: usize) -> bool {
        let is_its_fault = self.unreachable || self.subjects.len() >= FAILURES_TO_EJECT;
        self.refuses || (self.failures >= FAILURES_TO_EJECT + trials && is_its_fault)
    }

    /// It answered, even if only that it is busy.
    fn recover(&mut self) {
        self.failures = 0;
        self.subjects.clear();
        (self.unreachable, self.refuses, self.was_reached) = (false, false, true);
        // What it asked for still holds.
        self.ejected_until = None;
    }

    fn lower_limit(&mut self, began: Instant) {
        if began >= self.lowered {
            self.limit = (self.limit / 2.0).max(1.0);
            self.lowered = Instant::now();
        }
    }

    /// Counts a failure, and gives how long the endpoint is left alone if it is.
    fn fail(&mut self, subject: Subject) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        if !self.subjects.contains(&subject) && self.subjects.len() < MOST_SUBJECTS {
            self.subjects.push(subject);
        }
        let more = self.failures.checked_sub(FAILURES_TO_EJECT)?;
        let rest = FIRST_EJECTION * 2_u32.pow(more.min(16) as u32);
        Some(self.leave_alone(rest.min(LONGEST_EJECTION)))
    }

    fn leave_alone(&mut self, rest: Duration) -> Duration {
        self.ejected = Instant::now();
        self.ejected_until = Some(self.ejected + rest);
        rest
    }
}

/// How a request went, for its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The endpoint works.
    Works,
    /// It works, and has too much to do.
    Overloaded { retry_after: Option<Duration> },
    /// Nobody listens.
    Unreachable,
    /// It failed, and may have at this alone.
    Fails,
    /// As `Fails`, and perhaps because it has too much to do.
    Unready,
    /// It refuses everything.
    Refuses,
    /// Nothing can be said: the request was given up.
    Unknown,
}

impl Fleet {
    /// Of at least one URL; `most` requests under way at each.
    pub(crate) fn new(urls: Vec<String>, most: usize) -> Self {
        let health = Health {
            in_flight: 0,
            limit: FIRST_LIMIT.min(most) as f64,
            failures: 0,
            subjects: Vec::new(),
            unreachable: false,
            refuses: false,
            was_reached: false,
            ejected_until: None,
            asked_until: None,
            lowered: Instant::now(),
            ejected: Instant::now(),
        };
        let health = Mutex::new(vec![health; urls.len()]);
        Self { urls, most, health, changed: Condvar::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.urls.len()
    }

    /// Requests that all endpoints together take at once: at least one, so that there is somebody to
    /// notice when an endpoint is back.
    pub(crate) fn capacity(&self) -> usize {
        self.health().iter().map(Health::allowed).sum::<usize>().max(1)
    }

    /// Whether every endpoint is left alone, has failed at least `trials` times since, and not at one
    /// document alone.
    pub(crate) fn is_down(&self, trials: usize) -> bool {
        self.health().iter().all(|health| health.is_down(trials))
    }

    /// Whether every endpoint refuses what it is asked.
    pub(crate) fn all_refuse(&self) -> bool {
        self.health().iter().all(|health| health.refuses)
    }

    /// Whether any endpoint ever listened.
    pub(crate) fn was_reached(&self) -> bool {
        self.health().iter().any(|health| health.was_reached)
    }

    /// Waits for an endpoint that takes a request, the least busy first and if possible not `avoid`;
    /// `None` once `stopped`.
    pub(crate) fn acquire(
        &self,
        subject: Subject,
        avoid: Option<usize>,
        stopped: &dyn Fn() -> bool,
    ) -> Option<Permit<'_>> {
        let mut health = self.health();
        while !stopped() {
            let now = Instant::now();
            let free = (0..health.len()).filter(|&index| health[index].takes_another(now));
            let load = |index: usize| health[index].in_flight as f64 / health[index].limit;
            let best = free.min_by(|&a, &b| {
                (avoid == Some(a)).cmp(&(avoid == Some(b))).then(load(a).total_cmp(&load(b)))
            });
            if let Some(index) = best {
                health[index].in_flight += 1;
                return Some(self.permit(index, subject, now));
            }
            let waited = self.changed.wait_timeout(health, POLL);
            health = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        None
    }

    /// As [`acquire`](Self::acquire), of this endpoint and at once.
    pub(crate) fn acquire_at(&self, subject: Subject, index: usize) -> Option<Permit<'_>> {
        let (mut health, now) = (self.health(), Instant::now());
        health.get(index)?.takes_another(now).then(|| {
            health[index].in_flight += 1;
            self.permit(index, subject, now)
        })
    }

    fn permit(&self, index: usize, subject: Subject, began: Instant) -> Permit<'_> {
        Permit { fleet: self, index, subject, began, verdict: Verdict::Unknown }
    }

    fn health(&self) -> MutexGuard<'_, Vec<Health>> {
        // Numbers only: they are right whatever a thread that panicked was about to do.
        self.health.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn release(&self, permit: &Permit<'_>) {
        let (index, began, url) = (permit.index, permit.began, self.urls[permit.index].as_str());
        let mut all = self.health();
        let others_take_it = all.iter().enumerate().any(|(n, other)| n != index && !other.refuses);
        let health = &mut all[index];
        health.in_flight -= 1;
        let was_ejected = health.is_ejected();
        let left_alone = match permit.verdict {
            Verdict::Unknown => None,
            Verdict::Works => {
                health.recover();
                // Only what was used is known to work.
                if health.in_flight + 1 >= health.limit as usize {
                    health.limit = (health.limit + 1.0 / health.limit).min(self.most as f64);
                }
                None
            }
            Verdict::Overloaded { retry_after } => {
                health.recover();
                health.lower_limit(began);
                let asked = retry_after.map(|pause| Instant::now() + pause.min(LONGEST_PAUSE));
                health.asked_until = health.asked_until.max(asked);
                None
            }
            // What it was asked before it was left alone is old news.
            Verdict::Unreachable | Verdict::Fails | Verdict::Unready
                if was_ejected && began < health.ejected =>
            {
                None
            }
            Verdict::Unreachable => {
                health.unreachable = true;
                health.fail(permit.subject)
            }
            Verdict::Fails | Verdict::Unready => {
                (health.was_reached, health.unreachable) = (true, false);
                if permit.verdict == Verdict::Unready && !was_ejected {
                    health.lower_limit(began);
                }
                match health.subjects.contains(&permit.subject) {
                    true => None,
                    false => health.fail(permit.subject),
                }
            }
            Verdict::Refuses => {
                (health.was_reached, health.refuses) = (true, true);
                others_take_it.then(|| health.leave_alone(LONGEST_EJECTION))
            }
        };
        let (failures, is_ejected) = (health.failures, health.is_ejected());
        drop(all);
        self.changed.notify_all();
        if let Some(rest) = left_alone {
            let seconds = rest.as_secs_f64();
            tracing::warn!(url, failures, seconds, "the endpoint is left alone");
        } else if was_ejected && !is_ejected {
            tracing::info!(url, "the endpoint works again");
        }
    }
}

/// Leave to send one request to one endpoint. Dropping it reports the [`Verdict`].
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    fleet: &'a Fleet,
    index: usize,
    subject: Subject,
    began: Instant,
    verdict: Verdict,
}

impl Permit<'_> {
    /// The endpoint's number.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The endpoint's URL.
    pub(crate) fn url(&self) -> &str {
        &self.fleet.urls[self.index]
    }

    /// Says how the request went.
    pub(crate) fn report(mut self, verdict: Verdict) {
        self.verdict = verdict;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.fleet.release(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn fleet(endpoints: usize, most: usize) -> Fleet {
        Fleet::new((0..endpoints).map(|number| format!("http://{number}")).collect(), most)
    }

    fn take(fleet: &Fleet) -> Permit<'_> {
        fleet.acquire(Subject(0), None, &|| false).expect("an endpoint")
    }

    #[test]
    fn the_least_busy_endpoint_comes_first_and_the_avoided_one_last() {
        let fleet = fleet(2, 4);
        let first = take(&fleet);
        let second = take(&fleet);
        assert_ne!(first.index(), second.index());
        first.report(Verdict::Works);
        let avoided = fleet.acquire(Subject(0), Some(0), &|| false).expect("an endpoint");
        assert_eq!((avoided.index(), avoided.url()), (1, "http://1"));
        assert!(fleet.acquire_at(Subject(0), 0).is_some());
        assert!(fleet.acquire_at(Subject(0), 2).is_none());
    }

    #[test]
    fn the_limit_holds_grows_with_success_and_halves_once_per_overload() {
        let fleet = fleet(1, 16);
        assert_eq!(fleet.capacity(), FIRST_LIMIT);
        let permits: Vec<_> = (0..FIRST_LIMIT).map(|_| take(&fleet)).collect();
        assert!(fleet.acquire_at(Subject(0), 0).is_none(), "the limit holds");
        assert!(fleet.acquire(Subject(0), None, &|| true).is_none(), "a stop ends the wait");

        // All of them were sent before the limit was lowered: one overload, not eight.
        for permit in permits {
            permit.report(Verdict::Overloaded { retry_after: None });
        }
        assert_eq!(fleet.capacity(), FIRST_LIMIT / 2);

        for _ in 0..500 {
            let permits: Vec<_> = (0..fleet.capacity()).map(|_| take(&fleet)).collect();
            permits.into_iter().for_each(|permit| permit.report(Verdict::Works));
        }
        assert_eq!(fleet.capacity(), 16, "up to the most");
        for _ in 0..10 {
            take(&fleet).report(Verdict::Overloaded { retry_after: None });
        }
        assert_eq!(fleet.capacity(), 1, "never none");
    }

    #[test]
    fn a_failing_endpoint_is_left_alone_then_tried_once_and_brought_back() {
        let fleet = fleet(2, 4);
        // All at once: one outage, not four.
        let permits: Vec<_> =
            (0..4).map(|_| fleet.acquire_at(Subject(0), 0).expect("room")).collect();
        permits.into_iter().for_each(|permit| permit.report(Verdict::Unreachable));
        assert!(!fleet.is_down(0));
        assert!(fleet.acquire_at(Subject(0), 0).is_none(), "it is left alone");
        assert_eq!(take(&fleet).index(), 1);

        thread::sleep(FIRST_EJECTION + Duration::from_millis(50));
        let trial = fleet.acquire_at(Subject(0), 0).expect("a trial");
        assert!(fleet.acquire_at(Subject(0), 0).is_none(), "one at a time");
        trial.report(Verdict::Unreachable);
        thread::sleep(FIRST_EJECTION + Duration::from_millis(50));
        assert!(fleet.acquire_at(Subject(0), 0).is_none(), "longer from time to time");

        thread::sleep(FIRST_EJECTION);
        fleet.acquire_at(Subject(0), 0).expect("a trial").report(Verdict::Works);
        assert!(fleet.acquire_at(Subject(0), 0).is_some() && fleet.capacity() > 4, "all is well");
    }

    #[test]
    fn what_one_document_meets_with_counts_once_unless_the_endpoint_is_down() {
        let fleet = fleet(1, 4);
        let report = |subject, verdict| {
            let permit = fleet.acquire(Subject(subject), None, &|| false).expect("an endpoint");
            permit.report(verdict);
        };
        for subject in [7, 7, 7, 7, 8, 7, 8, 8] {
            report(subject, Verdict::Fails);
        }
        assert!(!fleet.is_down(0) && fleet.capacity() > 1, "two documents are no outage");
        report(9, Verdict::Fails);
        assert!(fleet.is_down(0) && fleet.capacity() == 1, "three are");
        thread::sleep(FIRST_EJECTION);
        report(9, Verdict::Works);
        for _ in 0..3 {
            report(7, Verdict::Unreachable);
        }
        assert!(fleet.is_down(0), "it was not about the document");
    }

    #[test]
    fn one_that_refuses_is_left_out_unless_all_do() {
        let fleet = fleet(2, 4);
        fleet.acquire_at(Subject(0), 0).expect("room").report(Verdict::Refuses);
        assert!(fleet.acquire_at(Subject(0), 0).is_none() && !fleet.all_refuse());
        assert!(!fleet.is_down(0));
        fleet.acquire_at(Subject(0), 1).expect("room").report(Verdict::Refuses);
        assert!(fleet.all_refuse());
        // The last one is asked again at once: the next job may have been set right.
        fleet.acquire_at(Subject(0), 1).expect("room").report(Verdict::Works);
        assert!(!fleet.all_refuse());
    }

    #[test]
    fn an_endpoint_rests_for_as_long_as_it_asks() {
        let fleet = fleet(1, 4);
        let retry_after = Some(Duration::from_millis(120));
        let began = Instant::now();
        take(&fleet).report(Verdict::Overloaded { retry_after });
        assert!(fleet.acquire_at(Subject(0), 0).is_none());
        assert!(!fleet.is_down(0), "busy is not broken");
        drop(take(&fleet));
        assert!(began.elapsed() >= Duration::from_millis(120));
    }

    #[test]
    fn a_request_from_before_does_not_cut_the_rest_short() {
        let fleet = fleet(1, 4);
        let (earlier, refused) = (take(&fleet), take(&fleet));
        refused.report(Verdict::Overloaded { retry_after: Some(Duration::from_secs(5)) });
        earlier.report(Verdict::Works);
        assert!(fleet.acquire_at(Subject(0), 0).is_none(), "it asked to be left alone");
    }
}
