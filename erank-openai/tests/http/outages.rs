//! Outages: servers that restart or load their model, and endpoints that are ejected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use erank_core::{BackendError, CancellationToken};
use erank_openai::{OpenAiBackend, OpenAiSettings};
use serde_json::json;

use crate::engine::{Engine, Shape, react_as_vllm};
use crate::server::{Reaction, Request, Server};
use crate::{
    answer_only, backend, chain, documents, is_about, score, score_with_cancellation, settings,
};

#[test]
fn server_restart_loses_no_document() {
    let slow = |request: &Request| {
        Reaction::After(Duration::from_millis(15), Box::new(react_as_vllm(request)))
    };
    let server = Server::start(slow);
    let address = server.address;
    let settings = settings(|s| {
        s.max_concurrency = 4;
        s.max_attempts = 8;
    });
    let backend = backend(&server.url(), settings);
    let restarter = thread::spawn(move || {
        while server.completions().len() < 20 {
            thread::sleep(Duration::from_millis(5));
        }
        let before = server.completions().len();
        drop(server);
        thread::sleep(Duration::from_millis(700));
        (before, Server::start_at(address, slow))
    });
    let relevances: Vec<u32> = (0..200).map(|number| number % 10).collect();
    let outcomes = score(&backend, &documents(relevances.clone()), answer_only()).expect("scores");
    let (before, server) = restarter.join().expect("no panic");
    assert!(before > 1 && !server.completions().is_empty(), "both servers received requests");
    for (index, relevance) in relevances.into_iter().enumerate() {
        assert_eq!(outcomes.answer(index).0, relevance);
    }
}

/// Starts a server that responds with `away` for `pause`, and then normally.
fn away_for(pause: Duration, away: fn() -> Reaction) -> Server {
    let back = Instant::now() + pause;
    Server::start(move |request| match Instant::now() < back {
        true => away(),
        false => react_as_vllm(request),
    })
}

#[test]
fn loading_server_is_retried_until_ready() {
    let loading = || Reaction::status(503, json!({"error": {"message": "Loading model"}}));
    let no_pod = || Reaction::status(502, json!("no ready pod"));
    let cases: [(u32, fn() -> Reaction); 3] = [(1, loading), (40, loading), (40, no_pod)];
    thread::scope(|scope| {
        for (number, away) in cases {
            scope.spawn(move || {
                let server = away_for(Duration::from_secs(5), away);
                let backend = backend(&server.url(), OpenAiSettings::default());
                let documents = documents((0..number).map(|n| n % 10));
                let outcomes = score(&backend, &documents, answer_only()).expect("scores");
                (0..number).for_each(|n| assert_eq!(outcomes.answer(n as usize).0, n % 10));
            });
        }
    });
}

#[test]
fn server_reload_loses_no_document() {
    let (count, back) = (AtomicUsize::new(0), Arc::new(std::sync::OnceLock::new()));
    let server = Server::start(move |request| {
        if count.fetch_add(1, Ordering::SeqCst) < 10 {
            return react_as_vllm(request);
        }
        let back = back.get_or_init(|| Instant::now() + Duration::from_secs(5));
        match Instant::now() < *back {
            true => Reaction::status(503, json!({"error": {"message": "Loading model"}})),
            false => react_as_vllm(request),
        }
    });
    let backend = backend(&server.url(), OpenAiSettings::default());
    let documents = documents((0..60).map(|n| n % 10));
    let outcomes = score(&backend, &documents, answer_only()).expect("scores");
    (0..60).for_each(|n| assert_eq!(outcomes.answer(n as usize).0, n % 10));
}

#[test]
fn single_document_survives_server_restart() {
    let server = Server::start(react_as_vllm);
    let address = server.address;
    let backend = backend(&server.url(), OpenAiSettings::default());
    score(&backend, &documents([7]), answer_only()).expect("scores");
    drop(server);
    let restarter = thread::spawn(move || {
        thread::sleep(Duration::from_secs(5));
        Server::start_at(address, react_as_vllm)
    });
    let outcomes = score(&backend, &documents([7]), answer_only()).expect("scores");
    assert_eq!(outcomes.answer(0).0, 7);
    drop(restarter.join());
}

#[test]
fn rejecting_endpoint_is_ejected_unless_all_reject() {
    let refusals: [fn(&Request) -> Reaction; 5] = [
        |_| Reaction::status(401, json!({"error": "Unauthorized"})),
        |_| Reaction::status(404, json!({"detail": "Not Found"})),
        // The probe succeeds, but two documents are rejected.
        |request| match is_about(request, 3) || is_about(request, 4) {
            true => Reaction::status(401, json!({"error": "Unauthorized"})),
            false => react_as_vllm(request),
        },
        // Another model, and another kind of server.
        |request| match request.path.as_str() {
            "/v1/models" => Reaction::ok(json!({"data": [{"id": "llama", "owned_by": "vllm"}]})),
            _ => react_as_vllm(request),
        },
        |request| Engine::new(Shape::LlamaCpp).react(request),
    ];
    for (number, refusal) in refusals.into_iter().enumerate() {
        for attempts in [1, 5] {
            let good = Server::start(react_as_vllm);
            let bad = Server::start(refusal);
            let settings = settings(|s| {
                s.max_attempts = attempts;
                s.model = (number < 4).then(|| "erank".into());
            });
            let backend = OpenAiBackend::new([good.url(), bad.url()], settings.clone());
            let documents = documents((0..60).map(|n| n % 10));
            let outcomes = score(&backend.expect("settings"), &documents, answer_only());
            let outcomes = outcomes.expect("scores");
            (0..60).for_each(|n| assert_eq!(outcomes.answer(n as usize).0, n % 10, "{number}"));
            let asked = bad.completions().iter().filter(|r| r.prompt().contains("[1")).count();
            assert!(number == 2 || asked == 0, "{number}: {asked} documents were sent to it");

            if number != 4 {
                let bad = [Server::start(refusal), Server::start(refusal)];
                let backend = OpenAiBackend::new(bad.each_ref().map(Server::url), settings);
                let error = score(&backend.expect("settings"), &documents, answer_only());
                let error = error.err().expect("all endpoints reject");
                assert!(matches!(error, BackendError::Unsupported(_)), "{number}: {error:?}");
            }
        }
    }
}

#[test]
fn failing_endpoint_is_ejected_and_recovers() {
    let good = Server::start(react_as_vllm);
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let bad = Server::start(move |request| match is_broken.load(Ordering::SeqCst) {
        true => Reaction::status(500, json!({"error": "CUDA error"})),
        false => react_as_vllm(request),
    });
    let backend =
        OpenAiBackend::new([good.url(), bad.url()], OpenAiSettings::default()).expect("settings");
    let run = |number: usize| {
        let documents = documents((0..number).map(|n| n as u32 % 10));
        let outcomes = score(&backend, &documents, answer_only()).expect("scores");
        (0..number).for_each(|index| assert_eq!(outcomes.answer(index).0, index as u32 % 10));
    };
    run(100);
    assert!(bad.requests().len() < 30, "{} requests to a failing endpoint", bad.requests().len());
    assert!(good.requests().len() >= 100);

    broken.store(false, Ordering::SeqCst);
    let before = bad.requests().len();
    let deadline = Instant::now() + Duration::from_secs(20);
    while bad.requests().len() < before + 50 {
        assert!(Instant::now() < deadline, "it did not recover");
        run(50);
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn job_without_reachable_endpoint_is_unavailable() {
    let address = Server::start(react_as_vllm).address;
    let url = format!("http://{address}");
    let settings = settings(|s| s.max_attempts = 3);
    let error = score(&backend(&url, settings.clone()), &documents([7]), answer_only());
    let error = error.err().expect("no server listens");
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    assert!(chain(&error).contains("gave up after 3 attempts"));

    // The same holds for a server that goes down during a job. Completed documents are kept.
    let server = Server::start(react_as_vllm);
    let backend = backend(&server.url(), settings);
    score(&backend, &documents([7]), answer_only()).expect("scores");
    drop(server);
    let (result, outcomes) = score_with_cancellation(
        &backend,
        &documents([7; 1000]),
        answer_only(),
        &CancellationToken::new(),
    );
    assert!(matches!(result, Err(BackendError::Unavailable(_))), "{result:?}");
    assert!(outcomes.documents.iter().all(|reports| reports.len() <= 1));
}
