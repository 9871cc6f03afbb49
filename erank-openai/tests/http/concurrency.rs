//! Concurrency: distribution over endpoints, limits, overload, and many documents.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use erank_openai::{OpenAiBackend, OpenAiSettings};
use serde_json::json;

use crate::engine::react_as_vllm;
use crate::server::{Reaction, Request, Server};
use crate::{answer_only, backend, documents, is_about, reason, score, settings};

#[test]
fn documents_are_distributed_over_endpoints() {
    let slow = |request: &Request| {
        Reaction::After(Duration::from_millis(5), Box::new(react_as_vllm(request)))
    };
    let servers = [Server::start(slow), Server::start(slow), Server::start(slow)];
    let urls = servers.each_ref().map(Server::url);
    let backend = OpenAiBackend::new(urls, OpenAiSettings::default()).expect("settings");
    score(&backend, &documents((0..150).map(|n| n % 10)), answer_only()).expect("scores");
    for server in &servers {
        let count = server.completions().len();
        assert!((30..100).contains(&count), "{count} of about 180");
    }
}

#[test]
fn overload_lowers_concurrency() {
    // The server accepts three concurrent requests.
    let busy = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let now = busy.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(4));
        busy.fetch_sub(1, Ordering::SeqCst);
        match now < 3 {
            true => react_as_vllm(request),
            false => Reaction::status(429, json!({"error": {"message": "too many requests"}})),
        }
    });
    let settings = settings(|s| s.max_attempts = 10);
    let backend = backend(&server.url(), settings);
    let relevances: Vec<u32> = (0..300).map(|number| number % 10).collect();
    let outcomes = score(&backend, &documents(relevances.clone()), answer_only()).expect("scores");
    for (index, relevance) in relevances.into_iter().enumerate() {
        assert_eq!(outcomes.answer(index).0, relevance);
    }
    let rejected = server.completions().len() - 303;
    assert!(rejected < 200, "{rejected} rejections for 300 documents");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a date")]
fn retry_after_is_respected() {
    let in_three_seconds = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    for retry_after in ["1".to_owned(), in_three_seconds] {
        let count = AtomicUsize::new(0);
        let server = Server::start(move |request| match is_about(request, 0) {
            true if count.fetch_add(1, Ordering::SeqCst) == 0 => {
                let retry_after = Some(retry_after.clone());
                Reaction::Reply { status: 503, retry_after, body: "{}".into() }
            }
            _ => react_as_vllm(request),
        });
        let backend = backend(&server.url(), OpenAiSettings::default());
        let began = Instant::now();
        let outcomes = score(&backend, &documents([7]), answer_only()).expect("scores");
        assert_eq!(outcomes.answer(0).0, 7);
        // An HTTP date has a resolution of one second.
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    }
}

#[test]
fn ten_thousand_documents_respect_max_concurrency() {
    let server = Server::start(react_as_vllm);
    let settings = settings(|s| s.max_concurrency = 8);
    let backend = backend(&server.url(), settings);
    // No relevance begins with "1", so each document takes one request.
    let relevances: Vec<u32> = (0..10_000).map(|number| 2 + number % 8).collect();
    let outcomes = score(&backend, &documents(relevances.clone()), answer_only()).expect("scores");
    assert!(server.max_in_flight() <= 8);
    assert_eq!(server.completions().len(), 10_004, "including the probes and the warm-up");
    assert!(server.connections() <= 10, "{} connections", server.connections());
    for (index, relevance) in relevances.into_iter().enumerate() {
        assert_eq!(outcomes.answer(index).0, relevance);
    }
}

#[test]
fn concurrent_jobs_share_concurrency_limit() {
    let server = Server::start(react_as_vllm);
    let backend = backend(&server.url(), settings(|s| s.max_concurrency = 4));
    thread::scope(|scope| {
        for shift in 0..6 {
            let backend = &backend;
            scope.spawn(move || {
                let relevances: Vec<u32> = (0..40).map(|number| (number + shift) % 10).collect();
                let outcomes = score(backend, &documents(relevances.clone()), reason(50));
                let outcomes = outcomes.expect("scores");
                for (index, relevance) in relevances.into_iter().enumerate() {
                    assert_eq!(outcomes.answer(index).0, relevance);
                }
            });
        }
    });
    assert!(server.max_in_flight() <= 4, "the limit applies to the endpoint, not to the job");
}
