//! Nothing is lost and nothing is scored twice, whatever the server and the network do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use erank_core::{BackendError, CancellationToken, DocumentError};
use erank_openai::{OpenAiBackend, OpenAiSettings, RequestError};
use serde_json::json;

use crate::engine::{Engine, Shape};
use crate::server::{Reaction, Request, Server};
use crate::{answer_only, backend, chain, documents, reason, score, score_until, settings};

fn engine(request: &Request) -> Reaction {
    Engine::new(Shape::Vllm).react(request)
}

/// Whether a request is about a document.
fn is_about(request: &Request, document: usize) -> bool {
    request.prompt().contains(&format!("[{document}] "))
}

fn ok_body(request: &Request) -> String {
    match engine(request) {
        Reaction::Reply { body, .. } => body,
        other => panic!("{other:?}"),
    }
}

#[test]
fn through_every_kind_of_fault_each_document_is_scored_once_and_right() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        // Every third request goes wrong, each in its way.
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
            30 => Reaction::After(Duration::from_millis(60), Box::new(engine(request))),
            33 => {
                Reaction::After(Duration::from_millis(60), Box::new(Reaction::Raw(String::new())))
            }
            36 => Reaction::ok(json!({"choices": [{"text": "", "finish_reason": "abort"}]})),
            39 => Reaction::status(502, json!("Bad Gateway")),
            _ => engine(request),
        }
    });
    let settings = settings(|s| {
        s.attempts = 12;
        s.max_concurrency = 8;
    });
    let backend = backend(&server.url(), settings);
    let relevances: Vec<u32> = (0..110).map(|number| number % 11).collect();
    // `score` checks that each is reported exactly once.
    let outcomes = score(&backend, &documents(relevances.clone()), reason(100)).expect("scores");
    for (index, relevance) in relevances.into_iter().enumerate() {
        assert_eq!(outcomes.answer(index).0, relevance, "document {index}");
    }
}

#[test]
fn a_document_that_always_fails_is_given_up_alone_after_its_attempts() {
    let server = Server::start(|request| match is_about(request, 1) {
        true => Reaction::status(500, json!({"error": {"message": "cannot do this one"}})),
        false => engine(request),
    });
    let backend = backend(&server.url(), OpenAiSettings::default());
    let outcomes = score(&backend, &documents([7, 8, 9, 3]), answer_only()).expect("scores");
    assert_eq!([0, 2, 3].map(|index| outcomes.answer(index).0), [7, 9, 3]);
    let DocumentError::Backend(cause) = outcomes.error(1) else {
        panic!("{:?}", outcomes.error(1))
    };
    let cause = cause.downcast_ref::<RequestError>().expect("its own error");
    assert!(matches!(cause, RequestError::GaveUp { attempts: 5, .. }), "{cause:?}");
    assert!(chain(cause).contains("cannot do this one"));
    assert_eq!(server.completions().iter().filter(|r| is_about(r, 1)).count(), 5);
}

#[test]
fn a_document_that_always_fails_is_its_own_error_however_it_fails_and_ejects_nobody() {
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
            false => engine(request),
        });
        let settings = settings(|s| s.attempts = 2);
        let backend = backend(&server.url(), settings);
        // Its samples are as many failures of one document.
        let mut options = reason(50);
        options.samples = 2;
        options.sampling = erank_core::Sampling::with_temperature(1.0);
        let outcomes = score(&backend, &documents([7, 8, 9]), options).expect("scores");
        for (index, reports) in outcomes.documents.iter().enumerate() {
            assert!(reports.iter().all(|report| report.is_err() == (index == 1)), "{number}");
        }
        // The next job finds the server as it is.
        let began = Instant::now();
        score(&backend, &documents([7]), answer_only()).expect("scores");
        assert!(began.elapsed() < Duration::from_millis(400), "{number}: {:?}", began.elapsed());
    }
}

#[test]
fn a_server_that_fails_at_every_document_ends_the_job() {
    let server = Server::start(|request| match request.prompt().contains("relevance") {
        true => Reaction::status(500, json!({"error": "EngineCore encountered an issue"})),
        false => engine(request),
    });
    let settings = settings(|s| s.attempts = 1);
    let backend = backend(&server.url(), settings);
    let (result, outcomes) =
        score_until(&backend, &documents([7; 1000]), answer_only(), &CancellationToken::new());
    let error = result.expect_err("it does not work");
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    let given_up = outcomes.documents.iter().filter(|reports| !reports.is_empty()).count();
    assert!(given_up < 20, "{given_up} documents were spent on it");
}

#[test]
fn a_refusal_is_not_tried_again_and_concerns_its_document() {
    let server = Server::start(|request| match is_about(request, 1) {
        true => Reaction::status(400, json!({"error": {"message": "I do not like it"}})),
        false => engine(request),
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
fn a_key_that_is_revoked_ends_the_job() {
    let server = Server::start(|request| match is_about(request, 5) {
        true => Reaction::status(401, json!({"error": "Unauthorized"})),
        false => engine(request),
    });
    let backend = backend(&server.url(), OpenAiSettings::default());
    let documents = documents((0..50).map(|_| 7));
    let (result, _) = score_until(&backend, &documents, answer_only(), &CancellationToken::new());
    let error = result.expect_err("refused");
    assert!(matches!(error, BackendError::Unsupported(_)));
    assert!(chain(&error).contains("401"));
}

#[test]
fn a_stop_is_seen_at_once_and_what_was_done_is_kept() {
    let server =
        Server::start(|request| match (0..3).any(|document| is_about(request, document)) {
            true => engine(request),
            false if request.prompt().contains("relevance 7") => Reaction::Hang,
            false => engine(request),
        });
    let backend = Arc::new(backend(&server.url(), OpenAiSettings::default()));
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let stopper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(400));
        stopping.cancel();
        Instant::now()
    });
    let mut options = reason(100);
    options.samples = 2;
    options.sampling = erank_core::Sampling::with_temperature(1.0);
    let documents = documents((0..50).map(|_| 7));
    let (result, outcomes) = score_until(&*backend, &documents, options, &stop);
    let stopped = stopper.join().expect("no panic");
    assert!(stopped.elapsed() < Duration::from_millis(300), "{:?}", stopped.elapsed());
    result.expect("a stop is no error");
    for (index, reports) in outcomes.documents.iter().enumerate() {
        assert_eq!(reports.len(), 2);
        for report in reports {
            match report {
                Ok(_) => assert!(index < 3),
                Err(error) => assert!(index >= 3 && matches!(error, DocumentError::Cancelled)),
            }
        }
    }
    // The server notices that nobody listens any more.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !server.is_idle() {
        assert!(Instant::now() < deadline, "connections are still open");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_deadline_ends_the_probe_the_warm_up_and_the_waits() {
    for hanging in ["/v1/models", "warm-up", "overloaded"] {
        let server = Server::start(move |request| match hanging {
            "warm-up" if request.prompt().ends_with("document:\n[") => Reaction::Hang,
            "overloaded" if request.prompt().contains("relevance 7") => {
                Reaction::Reply { status: 429, retry_after: Some("3600".into()), body: "{}".into() }
            }
            path if path == request.path => Reaction::Hang,
            _ => engine(request),
        });
        let backend = backend(&server.url(), OpenAiSettings::default());
        let began = Instant::now();
        let stop = CancellationToken::with_deadline(began + Duration::from_millis(200));
        let documents = documents([7; 5]);
        let (result, outcomes) = score_until(&backend, &documents, answer_only(), &stop);
        assert!(result.is_ok(), "{hanging}");
        assert!(began.elapsed() < Duration::from_millis(500), "{hanging}: {:?}", began.elapsed());
        for index in 0..5 {
            assert!(matches!(outcomes.error(index), DocumentError::Cancelled), "{hanging}");
        }
    }
}

#[test]
fn a_server_that_is_stuck_does_not_hold_up_the_documents() {
    let server = Server::start(|request| match request.prompt().ends_with("document:\n[") {
        true => Reaction::Hang,
        false => engine(request),
    });
    let backend = backend(&server.url(), OpenAiSettings::default());
    let began = Instant::now();
    let outcomes = score(&backend, &documents([7; 5]), answer_only()).expect("scores");
    assert!((0..5).all(|index| outcomes.answer(index).0 == 7));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn a_request_that_takes_too_long_is_given_up() {
    let server = Server::start(|request| match is_about(request, 0) {
        true => Reaction::Hang,
        false => engine(request),
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
fn a_server_that_restarts_loses_nothing() {
    let slow =
        |request: &Request| Reaction::After(Duration::from_millis(15), Box::new(engine(request)));
    let server = Server::start(slow);
    let address = server.address;
    let settings = settings(|s| {
        s.max_concurrency = 4;
        s.attempts = 8;
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
    assert!(before > 1 && !server.completions().is_empty(), "both of them had work");
    for (index, relevance) in relevances.into_iter().enumerate() {
        assert_eq!(outcomes.answer(index).0, relevance);
    }
}

/// A server that is away, in one way or another, until the time has come.
fn away_for(pause: Duration, away: fn() -> Reaction) -> Server {
    let back = Instant::now() + pause;
    Server::start(move |request| match Instant::now() < back {
        true => away(),
        false => engine(request),
    })
}

#[test]
fn a_server_that_loads_its_model_is_waited_for() {
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
fn a_server_that_loads_its_model_again_loses_nothing() {
    let (count, back) = (AtomicUsize::new(0), Arc::new(std::sync::OnceLock::new()));
    let server = Server::start(move |request| {
        if count.fetch_add(1, Ordering::SeqCst) < 10 {
            return engine(request);
        }
        let back = back.get_or_init(|| Instant::now() + Duration::from_secs(5));
        match Instant::now() < *back {
            true => Reaction::status(503, json!({"error": {"message": "Loading model"}})),
            false => engine(request),
        }
    });
    let backend = backend(&server.url(), OpenAiSettings::default());
    let documents = documents((0..60).map(|n| n % 10));
    let outcomes = score(&backend, &documents, answer_only()).expect("scores");
    (0..60).for_each(|n| assert_eq!(outcomes.answer(n as usize).0, n % 10));
}

#[test]
fn one_document_waits_for_a_server_that_restarts_as_long_as_many_do() {
    let server = Server::start(engine);
    let address = server.address;
    let backend = backend(&server.url(), OpenAiSettings::default());
    score(&backend, &documents([7]), answer_only()).expect("scores");
    drop(server);
    let restarter = thread::spawn(move || {
        thread::sleep(Duration::from_secs(5));
        Server::start_at(address, engine)
    });
    let outcomes = score(&backend, &documents([7]), answer_only()).expect("scores");
    assert_eq!(outcomes.answer(0).0, 7);
    drop(restarter.join());
}

#[test]
fn an_endpoint_that_refuses_what_the_other_takes_is_left_out() {
    let refusals: [fn(&Request) -> Reaction; 5] = [
        |_| Reaction::status(401, json!({"error": "Unauthorized"})),
        |_| Reaction::status(404, json!({"detail": "Not Found"})),
        // The probe passes, the documents do not.
        |request| match is_about(request, 3) || is_about(request, 4) {
            true => Reaction::status(401, json!({"error": "Unauthorized"})),
            false => engine(request),
        },
        // Another model, another server.
        |request| match request.path.as_str() {
            "/v1/models" => Reaction::ok(json!({"data": [{"id": "llama", "owned_by": "vllm"}]})),
            _ => engine(request),
        },
        |request| Engine::new(Shape::LlamaCpp).react(request),
    ];
    for (number, refusal) in refusals.into_iter().enumerate() {
        for attempts in [1, 5] {
            let good = Server::start(engine);
            let bad = Server::start(refusal);
            let settings = settings(|s| {
                s.attempts = attempts;
                s.model = (number < 4).then(|| "erank".into());
            });
            let backend = OpenAiBackend::new([good.url(), bad.url()], settings.clone());
            let documents = documents((0..60).map(|n| n % 10));
            let outcomes = score(&backend.expect("settings"), &documents, answer_only());
            let outcomes = outcomes.expect("scores");
            (0..60).for_each(|n| assert_eq!(outcomes.answer(n as usize).0, n % 10, "{number}"));
            let asked = bad.completions().iter().filter(|r| r.prompt().contains("[1")).count();
            assert!(number == 2 || asked == 0, "{number}: {asked} documents went there");

            if number != 4 {
                let bad = [Server::start(refusal), Server::start(refusal)];
                let backend = OpenAiBackend::new(bad.each_ref().map(Server::url), settings);
                let error = score(&backend.expect("settings"), &documents, answer_only());
                let error = error.err().expect("all refuse");
                assert!(matches!(error, BackendError::Unsupported(_)), "{number}: {error:?}");
            }
        }
    }
}

#[test]
fn a_dead_endpoint_is_left_alone_and_a_recovered_one_brought_back() {
    let good = Server::start(engine);
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let bad = Server::start(move |request| match is_broken.load(Ordering::SeqCst) {
        true => Reaction::status(500, json!({"error": "CUDA error"})),
        false => engine(request),
    });
    let backend =
        OpenAiBackend::new([good.url(), bad.url()], OpenAiSettings::default()).expect("settings");
    let run = |number: usize| {
        let documents = documents((0..number).map(|n| n as u32 % 10));
        let outcomes = score(&backend, &documents, answer_only()).expect("scores");
        (0..number).for_each(|index| assert_eq!(outcomes.answer(index).0, index as u32 % 10));
    };
    run(100);
    assert!(bad.requests().len() < 30, "{} requests to a dead endpoint", bad.requests().len());
    assert!(good.requests().len() >= 100);

    broken.store(false, Ordering::SeqCst);
    let before = bad.requests().len();
    let deadline = Instant::now() + Duration::from_secs(20);
    while bad.requests().len() < before + 50 {
        assert!(Instant::now() < deadline, "it was not brought back");
        run(50);
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn documents_are_spread_over_the_endpoints() {
    let slow =
        |request: &Request| Reaction::After(Duration::from_millis(5), Box::new(engine(request)));
    let servers = [Server::start(slow), Server::start(slow), Server::start(slow)];
    let urls = servers.each_ref().map(Server::url);
    let backend = OpenAiBackend::new(urls, OpenAiSettings::default()).expect("settings");
    score(&backend, &documents((0..150).map(|n| n % 10)), answer_only()).expect("scores");
    for server in &servers {
        let count = server.completions().len();
        assert!((30..100).contains(&count), "{count} of some 180");
    }
}

#[test]
fn when_no_endpoint_is_left_the_job_ends_as_unavailable() {
    let address = Server::start(engine).address;
    let url = format!("http://{address}");
    let settings = settings(|s| s.attempts = 3);
    let error = score(&backend(&url, settings.clone()), &documents([7]), answer_only());
    let error = error.err().expect("nobody is there");
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    assert!(chain(&error).contains("gave up after 3 attempts"));

    // As well if it goes away in the middle; what was done is kept.
    let server = Server::start(engine);
    let backend = backend(&server.url(), settings);
    score(&backend, &documents([7]), answer_only()).expect("scores");
    drop(server);
    let (result, outcomes) =
        score_until(&backend, &documents([7; 1000]), answer_only(), &CancellationToken::new());
    assert!(matches!(result, Err(BackendError::Unavailable(_))), "{result:?}");
    assert!(outcomes.documents.iter().all(|reports| reports.len() <= 1));
}

#[test]
fn an_overloaded_server_is_asked_for_less_at_once() {
    // It takes three requests at a time.
    let busy = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let now = busy.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(4));
        busy.fetch_sub(1, Ordering::SeqCst);
        match now < 3 {
            true => engine(request),
            false => Reaction::status(429, json!({"error": {"message": "too many requests"}})),
        }
    });
    let settings = settings(|s| s.attempts = 10);
    let backend = backend(&server.url(), settings);
    let relevances: Vec<u32> = (0..300).map(|number| number % 10).collect();
    let outcomes = score(&backend, &documents(relevances.clone()), answer_only()).expect("scores");
    for (index, relevance) in relevances.into_iter().enumerate() {
        assert_eq!(outcomes.answer(index).0, relevance);
    }
    let refused = server.completions().len() - 303;
    assert!(refused < 200, "{refused} refusals for 300 documents");
}

#[test]
fn a_server_is_left_alone_for_as_long_as_it_asks() {
    let in_three_seconds = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    for retry_after in ["1".to_owned(), in_three_seconds] {
        let count = AtomicUsize::new(0);
        let server = Server::start(move |request| match is_about(request, 0) {
            true if count.fetch_add(1, Ordering::SeqCst) == 0 => {
                let retry_after = Some(retry_after.clone());
                Reaction::Reply { status: 503, retry_after, body: "{}".into() }
            }
            _ => engine(request),
        });
        let backend = backend(&server.url(), OpenAiSettings::default());
        let began = Instant::now();
        let outcomes = score(&backend, &documents([7]), answer_only()).expect("scores");
        assert_eq!(outcomes.answer(0).0, 7);
        // A date is in whole seconds.
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    }
}

#[test]
fn ten_thousand_documents_are_under_way_a_few_at_a_time() {
    let server = Server::start(engine);
    let settings = settings(|s| s.max_concurrency = 8);
    let backend = backend(&server.url(), settings);
    // No "1" among them, so that each takes one request.
    let relevances: Vec<u32> = (0..10_000).map(|number| 2 + number % 8).collect();
    let outcomes = score(&backend, &documents(relevances.clone()), answer_only()).expect("scores");
    assert!(server.most_in_flight() <= 8);
    assert_eq!(server.completions().len(), 10_003, "with the probes and the warm-up");
    assert!(server.connections() <= 10, "{} connections", server.connections());
    for (index, relevance) in relevances.into_iter().enumerate() {
        assert_eq!(outcomes.answer(index).0, relevance);
    }
}

#[test]
fn jobs_of_several_threads_share_one_backend() {
    let server = Server::start(engine);
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
    assert!(server.most_in_flight() <= 4, "the limit is the endpoint's, not the job's");
}
