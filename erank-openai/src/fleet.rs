//! The endpoints: which one takes the next request, and how many it takes at once.
//!
//! Each endpoint has a limit of requests under way that grows by one for every round of successes and
//! halves when the endpoint says that it is overloaded (additive increase, multiplicative decrease).
//! An endpoint that fails several times in a row is left alone for a while, the longer the more often,
//! and then tried with a single request.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Failures in a row after which an endpoint is left alone.
const FAILURES_TO_EJECT: u32 = 3;
/// How long it is left alone at first; doubled with every further failure, up to the longest.
const FIRST_EJECTION: Duration = Duration::from_millis(500);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// No server is left alone for longer, whatever it asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Requests under way that an endpoint begins with.
const FIRST_LIMIT: usize = 8;
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

#[derive(Debug, Clone)]
struct Health {
    in_flight: usize,
    limit: f64,
    /// Failures in a row.
    failures: u32,
    /// Nothing is sent before.
    rests_until: Option<Instant>,
    /// When the limit was lowered, and when the endpoint was last left alone: what a request from
    /// before reports is old news.
    lowered: Instant,
    ejected: Instant,
}

impl Health {
    fn is_ejected(&self) -> bool {
        self.failures >= FAILURES_TO_EJECT
    }

    /// Requests that it takes at once. One that failed is tried with one.
    fn allowed(&self) -> usize {
        if self.is_ejected() { 1 } else { self.limit as usize }
    }

    fn takes_another(&self, now: Instant) -> bool {
        self.rests_until.is_none_or(|until| until <= now) && self.in_flight < self.allowed()
    }
}

/// How a request went, for its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The endpoint works.
    Works,
    /// It works, and has too much to do.
    Overloaded { retry_after: Option<Duration> },
    /// It does not work.
    Fails,
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
            rests_until: None,
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

    /// Whether every endpoint is left alone, and has failed at least `trials` times since.
    pub(crate) fn is_down(&self, trials: usize) -> bool {
        let failures = |health: &Health| health.failures as usize;
        self.health().iter().all(|health| failures(health) >= FAILURES_TO_EJECT as usize + trials)
    }

    /// Waits for an endpoint that takes a request, the least busy first and if possible not `avoid`;
    /// `None` once `stopped`.
    pub(crate) fn acquire(
        &self,
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
                return Some(Permit { fleet: self, index, began: now, verdict: Verdict::Unknown });
            }
            let waited = self.changed.wait_timeout(health, POLL);
            health = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        None
    }

    /// As [`acquire`](Self::acquire), of this endpoint and at once.
    pub(crate) fn acquire_at(&self, index: usize) -> Option<Permit<'_>> {
        let (mut health, now) = (self.health(), Instant::now());
        health.get(index)?.takes_another(now).then(|| {
            health[index].in_flight += 1;
            Permit { fleet: self, index, began: now, verdict: Verdict::Unknown }
        })
    }

    fn health(&self) -> MutexGuard<'_, Vec<Health>> {
        // Numbers only: they are right whatever a thread that panicked was about to do.
        self.health.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn release(&self, index: usize, began: Instant, verdict: Verdict) {
        let now = Instant::now();
        let mut all = self.health();
        let health = &mut all[index];
        health.in_flight -= 1;
        match verdict {
            Verdict::Unknown => {}
            Verdict::Works => {
                health.failures = 0;
                health.rests_until = None;
                // Only what was used is known to work.
                if health.in_flight + 1 >= health.limit as usize {
                    health.limit = (health.limit + 1.0 / health.limit).min(self.most as f64);
                }
            }
            Verdict::Overloaded { retry_after } => {
                health.failures = 0;
                if began >= health.lowered {
                    health.limit = (health.limit / 2.0).max(1.0);
                    health.lowered = now;
                }
                if let Some(pause) = retry_after {
                    health.rests_until = Some(now + pause.min(LONGEST_PAUSE));
                }
            }
            Verdict::Fails if health.is_ejected() && began < health.ejected => {}
            Verdict::Fails => {
                health.failures += 1;
                if health.is_ejected() {
                    let doublings = (health.failures - FAILURES_TO_EJECT).min(16);
                    let rest = FIRST_EJECTION * 2_u32.pow(doublings);
                    health.ejected = now;
                    health.rests_until = Some(now + rest.min(LONGEST_EJECTION));
                }
            }
        }
        drop(all);
        self.changed.notify_all();
    }
}

/// Leave to send one request to one endpoint. Dropping it reports the [`Verdict`].
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    fleet: &'a Fleet,
    index: usize,
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
        self.fleet.release(self.index, self.began, self.verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(endpoints: usize, most: usize) -> Fleet {
        Fleet::new((0..endpoints).map(|number| format!("http://{number}")).collect(), most)
    }

    fn take(fleet: &Fleet) -> Permit<'_> {
        fleet.acquire(None, &|| false).expect("an endpoint")
    }

    #[test]
    fn the_least_busy_endpoint_comes_first_and_the_avoided_one_last() {
        let fleet = fleet(2, 4);
        let first = take(&fleet);
        let second = take(&fleet);
        assert_ne!(first.index(), second.index());
        first.report(Verdict::Works);
        let avoided = fleet.acquire(Some(0), &|| false).expect("an endpoint");
        assert_eq!((avoided.index(), avoided.url()), (1, "http://1"));
        assert!(fleet.acquire_at(0).is_some());
        assert!(fleet.acquire_at(2).is_none());
    }

    #[test]
    fn the_limit_holds_grows_with_success_and_halves_once_per_overload() {
        let fleet = fleet(1, 16);
        assert_eq!(fleet.capacity(), FIRST_LIMIT);
        let permits: Vec<_> = (0..FIRST_LIMIT).map(|_| take(&fleet)).collect();
        assert!(fleet.acquire_at(0).is_none(), "the limit holds");
        assert!(fleet.acquire(None, &|| true).is_none(), "a stop ends the wait");

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
        let permits: Vec<_> = (0..4).map(|_| fleet.acquire_at(0).expect("room")).collect();
        permits.into_iter().for_each(|permit| permit.report(Verdict::Fails));
        assert!(!fleet.is_down(0));
        assert!(fleet.acquire_at(0).is_none(), "it is left alone");
        assert_eq!(take(&fleet).index(), 1);

        std::thread::sleep(FIRST_EJECTION + Duration::from_millis(50));
        let trial = fleet.acquire_at(0).expect("a trial");
        assert!(fleet.acquire_at(0).is_none(), "one at a time");
        trial.report(Verdict::Fails);
        std::thread::sleep(FIRST_EJECTION + Duration::from_millis(50));
        assert!(fleet.acquire_at(0).is_none(), "longer from time to time");

        std::thread::sleep(FIRST_EJECTION);
        fleet.acquire_at(0).expect("a trial").report(Verdict::Works);
        assert_eq!(fleet.capacity(), 8, "all is well again");
    }

    #[test]
    fn an_endpoint_rests_for_as_long_as_it_asks() {
        let fleet = fleet(1, 4);
        let retry_after = Some(Duration::from_millis(120));
        let began = Instant::now();
        take(&fleet).report(Verdict::Overloaded { retry_after });
        assert!(fleet.acquire_at(0).is_none());
        assert!(!fleet.is_down(0), "busy is not broken");
        drop(take(&fleet));
        assert!(began.elapsed() >= Duration::from_millis(120));
    }
}
