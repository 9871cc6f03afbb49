//! Failed requests: retries, errors of one document, and errors of the job.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use erank_core::{BackendError, CancellationToken, DocumentError};
use erank_openai::{OpenAiSettings, RequestError};
use serde_json::json;

use crate::engine::react_as_vllm;
use crate::server::{Reaction, Request, Server};
use crate::{
    answer_only, backend, chain, documents, is_about, reason, score, score_with_cancellation,
    settings,
};

fn ok_body(request: &Request) -> String {
    match react_as_vllm(request) {
        Reaction::Reply { body, .. } => body,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind_of_fault_leaves_scores_complete_and_correct() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        // Every third request fails, each in a different way.
        match count.fetch_add(1, Ordering::SeqCst) % 42 {
            0 => Reaction::status(500, json!({"error": {"message": "out of luck"}})),
            3 => Reaction::Reply { status: 429, retry_after: Some("0".into()), body: "{}".into() },
            6 => Reaction::status(503, json!({"error": {"message": "Loading model"}})),
            9 => Reaction::Raw(String::new()),
            12 => Reaction::Raw("HTTP/1.1 200 OK\r\nContent-Le".into()),
            15 => Reaction::Raw("I am not a web server\r\n\r\n".into()),
            18 => {
                let body = ok_body(request);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                Reaction::Raw(head + &body[..body.len() / 2])
            }
            21 => {
                let body = ok_body(request);
                let body = body[..body.len() / 2].to_owned();
                Reaction::Reply { status: 200, retry_after: None, body }
            }
            24 => Reaction::ok(json!({"surprise": true})),
            27 => Reaction::Reply { status: 200, retry_after: None, body: "<html>".into() },
            30 => Reaction::After(Duration::from_millis(60), Box::new(react_as_vllm(request))),
            33 => {
                Reaction::After(Duration::from_millis(60), Box::new(Reaction::Raw(String::new())))
            }
            36 => Reaction::ok(json!({"choices": [{"text": "", "finish_reason": "abort"}]})),
            39 => Reaction::status(502, json!("Bad Gateway")),
            _ => react_as_vllm(request),
        }
    });
    let settings = settings(|s| {
        s.max_attempts = 12;
        s.max_concurrency = 8;
    });
    let backend = backend(&server.url(), settings);
    let relevances: Vec<u32> = (0..110).map(|number| number % 11).collect();
    // `score` checks that each document is reported exactly once.
    let outcomes = score(&backend, &documents(relevances.clone()), reason(100)).expect("scores");
    for (index, relevance) in relevances.into_iter().enumerate() {
        assert_eq!(outcomes.answer(index).0, relevance, "document {index}");
    }
}

#[test]
fn failing_document_exhausts_its_attempts_alone() {
    let server = Server::start(|request| match is_about(request, 1) {
        true => Reaction::status(500, json!({"error": {"message": "cannot do this one"}})),
        false => react_as_vllm(request),
    });
    let backend = backend(&server.url(), OpenAiSettings::default());
    let outcomes = score(&backend, &documents([7, 8, 9, 3]), answer_only()).expect("scores");
    assert_eq!([0, 2, 3].map(|index| outcomes.answer(index).0), [7, 9, 3]);
    let DocumentError::Backend(cause) = outcomes.error(1) else {
        panic!("{:?}", outcomes.error(1))
    };
    let cause = cause.downcast_ref::<RequestError>().expect("its own error");
    assert!(matches!(cause, RequestError::RetriesExhausted { attempts: 5, .. }), "{cause:?}");
    assert!(chain(cause).contains("cannot do this one"));
    assert_eq!(server.completions().iter().filter(|r| is_about(r, 1)).count(), 5);
}

#[test]
fn failing_document_does_not_eject_endpoint() {
    let failures: [fn() -> Reaction; 5] = [
        || Reaction::status(500, json!("out of luck")),
        || Reaction::ok(json!({"surprise": true})),
        || Reaction::Raw("HTTP/1.1 200 OK\r\nContent-Le".into()),
        || Reaction::status(504, json!("it took too long")),
        || Reaction::status(403, json!("a firewall does not like it")),
    ];
    for (number, failure) in failures.into_iter().enumerate() {
        let server = Server::start(move |request| match is_about(request, 1) {
            true => failure(),
            false => react_as_vllm(request),
        });
        let settings = settings(|s| s.max_attempts = 2);
        let backend = backend(&server.url(), settings);
        // All samples count as failures of one document.
        let mut options = reason(50);
        options.samples = 2;
        options.sampling = erank_core::Sampling::with_temperature(1.0);
        let outcomes = score(&backend, &documents([7, 8, 9]), options).expect("scores");
        for (index, reports) in outcomes.documents.iter().enumerate() {
            assert!(reports.iter().all(|report| report.is_err() == (index == 1)), "{number}");
        }
        // The endpoint is not ejected for the next job.
        let began = Instant::now();
        score(&backend, &documents([7]), answer_only()).expect("scores");
        assert!(began.elapsed() < Duration::from_millis(400), "{number}: {:?}", began.elapsed());
    }
}

#[test]
fn failure_of_every_document_ends_job() {
    let server = Server::start(|request| match request.prompt().contains("relevance") {
        true => Reaction::status(500, json!({"error": "EngineCore encountered an issue"})),
        false => react_as_vllm(request),
    });
    let settings = settings(|s| s.max_attempts = 1);
    let backend = backend(&server.url(), settings);
    let (result, outcomes) = score_with_cancellation(
        &backend,
        &documents([7; 1000]),
        answer_only(),
        &CancellationToken::new(),
    );
    let error = result.expect_err("every document fails");
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    let given_up = outcomes.documents.iter().filter(|reports| !reports.is_empty()).count();
    assert!(given_up < 20, "{given_up} documents failed before the job ended");
}

#[test]
fn rejected_document_is_not_retried() {
    let server = Server::start(|request| match is_about(request, 1) {
        true => Reaction::status(400, json!({"error": {"message": "I do not like it"}})),
        false => react_as_vllm(request),
    });
    let backend = backend(&server.url(), OpenAiSettings::default());
    let outcomes = score(&backend, &documents([7, 8, 9]), answer_only()).expect("scores");
    let DocumentError::Backend(cause) = outcomes.error(1) else {
        panic!("{:?}", outcomes.error(1))
    };
    assert!(cause.to_string().contains("I do not like it"));
    assert_eq!(server.completions().iter().filter(|r| is_about(r, 1)).count(), 1);
}

#[test]
fn unauthorized_response_ends_job() {
    let server = Server::start(|request| match is_about(request, 5) {
        true => Reaction::status(401, json!({"error": "Unauthorized"})),
        false => react_as_vllm(request),
    });
    let backend = backend(&server.url(), OpenAiSettings::default());
    let documents = documents((0..50).map(|_| 7));
    let (result, _) =
        score_with_cancellation(&backend, &documents, answer_only(), &CancellationToken::new());
    let error = result.expect_err("refused");
    assert!(matches!(error, BackendError::Unsupported(_)));
    assert!(chain(&error).contains("401"));
}

#[test]
fn request_timeout_is_document_error() {
    let server = Server::start(|request| match is_about(request, 0) {
        true => Reaction::Hang,
        false => react_as_vllm(request),
    });
    let settings = settings(|s| s.request_timeout = Duration::from_millis(150));
    let backend = backend(&server.url(), settings);
    let outcomes = score(&backend, &documents([7, 8]), answer_only()).expect("scores");
    assert_eq!(outcomes.answer(1).0, 8);
    let DocumentError::Backend(cause) = outcomes.error(0) else {
        panic!("{:?}", outcomes.error(0))
    };
    assert!(chain(cause.as_ref()).contains("timeout"), "{}", chain(cause.as_ref()));
}

#[test]
fn endless_response_costs_little_memory_and_is_an_error() {
    let server = Server::start(|request| match request.body["stop"].is_array() {
        true => Reaction::ok(json!({"choices": [{
            "text": "x".repeat(8 << 20), "finish_reason": "stop",
        }]})),
        false => react_as_vllm(request),
    });
    let backend = backend(&server.url(), settings(|s| s.max_attempts = 1));
    let outcomes = score(&backend, &documents([7]), reason(50)).expect("an outcome");
    let problem = chain(outcomes.error(0));
    // 512 KiB and 512 bytes for each of 50 tokens.
    assert!(problem.contains("it has more than 549888 bytes"), "{problem}");
}
