//! Cancellation, deadlines, and servers that hang.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use erank_core::{CancellationToken, DocumentError};
use erank_openai::OpenAiSettings;

use crate::engine::react_as_vllm;
use crate::server::{Reaction, Server};
use crate::{answer_only, backend, documents, is_about, reason, score, score_with_cancellation};

#[test]
fn cancellation_returns_at_once_and_keeps_completed_documents() {
    let server =
        Server::start(|request| match (0..3).any(|document| is_about(request, document)) {
            true => react_as_vllm(request),
            false if request.prompt().contains("relevance 7") => Reaction::Hang,
            false => react_as_vllm(request),
        });
    let backend = Arc::new(backend(&server.url(), OpenAiSettings::default()));
    let cancellation = CancellationToken::new();
    let token = cancellation.clone();
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(400));
        token.cancel();
        Instant::now()
    });
    let mut options = reason(100);
    options.samples = 2;
    options.sampling = erank_core::Sampling::with_temperature(1.0);
    let documents = documents((0..50).map(|_| 7));
    let (result, outcomes) = score_with_cancellation(&*backend, &documents, options, &cancellation);
    let cancelled = canceller.join().expect("no panic");
    assert!(cancelled.elapsed() < Duration::from_millis(300), "{:?}", cancelled.elapsed());
    result.expect("cancellation is not an error");
    for (index, reports) in outcomes.documents.iter().enumerate() {
        assert_eq!(reports.len(), 2);
        for report in reports {
            match report {
                Ok(_) => assert!(index < 3),
                Err(error) => assert!(index >= 3 && matches!(error, DocumentError::Cancelled)),
            }
        }
    }
    // The server notices that the client has closed its connections.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !server.is_idle() {
        assert!(Instant::now() < deadline, "connections are still open");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn deadline_ends_probe_warm_up_and_retry_pause() {
    for hanging in ["/v1/models", "warm-up", "overloaded"] {
        let server = Server::start(move |request| match hanging {
            "warm-up" if request.prompt().ends_with("document:\n[") => Reaction::Hang,
            "overloaded" if request.prompt().contains("relevance 7") => {
                Reaction::Reply { status: 429, retry_after: Some("3600".into()), body: "{}".into() }
            }
            path if path == request.path => Reaction::Hang,
            _ => react_as_vllm(request),
        });
        let backend = backend(&server.url(), OpenAiSettings::default());
        let began = Instant::now();
        let cancellation = CancellationToken::with_deadline(began + Duration::from_millis(200));
        let documents = documents([7; 5]);
        let (result, outcomes) =
            score_with_cancellation(&backend, &documents, answer_only(), &cancellation);
        assert!(result.is_ok(), "{hanging}");
        assert!(began.elapsed() < Duration::from_millis(500), "{hanging}: {:?}", began.elapsed());
        for index in 0..5 {
            assert!(matches!(outcomes.error(index), DocumentError::Cancelled), "{hanging}");
        }
    }
}

#[test]
fn hanging_warm_up_does_not_block_documents() {
    let server = Server::start(|request| match request.prompt().ends_with("document:\n[") {
        true => Reaction::Hang,
        false => react_as_vllm(request),
    });
    let backend = backend(&server.url(), OpenAiSettings::default());
    let began = Instant::now();
    let outcomes = score(&backend, &documents([7; 5]), answer_only()).expect("scores");
    assert!((0..5).all(|index| outcomes.answer(index).0 == 7));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}
