//! Faults of a llama.cpp server and of the network. No document is lost, and no result changes.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use erank_core::{Mode, RankedDocument, Request, Reranker, ScoringOptions};
use erank_openai::OpenAiBackend;

use crate::llama_cpp::{self, LlamaCpp};
use crate::proxy::Proxy;
use crate::server::Reaction;
use crate::{DOCUMENTS, QUERIES, local_f32, scored, settings};

/// Makes every third response late, truncated, changed or missing.
fn inject_fault(number: usize, status: u16, body: String) -> Reaction {
    let response =
        |status, body: &str| Reaction::Reply { status, retry_after: None, body: body.into() };
    let half = &body[..body.floor_char_boundary(body.len() / 2)];
    match number % 30 {
        0 => response(500, "{}"),
        3 => Reaction::Reply { status: 429, retry_after: Some("0".into()), body: "{}".into() },
        6 => response(429, "{}"),
        9 => Reaction::Raw(String::new()),
        12 => Reaction::Raw(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{half}",
            body.len()
        )),
        15 => response(200, half),
        18 => response(200, "<html>It works!</html>"),
        21 => Reaction::After(Duration::from_millis(300), Box::new(response(status, &body))),
        24 => response(503, "{\"error\": {\"message\": \"Loading model\"}}"),
        27 => response(502, "Bad Gateway"),
        _ => response(status, &body),
    }
}

/// Returns the documents in input order.
fn by_index(mut documents: Vec<RankedDocument>) -> Vec<RankedDocument> {
    documents.sort_unstable_by_key(|document| document.index);
    documents
}

#[test]
fn results_through_faulty_proxy_equal_direct_results() {
    let Some(python) = llama_cpp::python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let server = LlamaCpp::start(&python, &llama_cpp::tiny_model(&python, folder.path()), 4, 2048);
    let (proxy, local) = (Proxy::start(server.port, inject_fault), local_f32());
    let mut settings = settings(&local);
    settings.max_attempts = 12;
    settings.top_logprobs = 100;
    let direct = OpenAiBackend::new([server.url()], settings.clone()).expect("valid settings");
    let faulty = OpenAiBackend::new([proxy.url()], settings).expect("valid settings");
    for mode in [Mode::AnswerOnly, Mode::Reason { max_tokens: 100 }] {
        for (query, (expected, found)) in
            scored(&direct, mode).into_iter().zip(scored(&faulty, mode)).enumerate()
        {
            let (expected, found) = (by_index(expected), by_index(found));
            assert_eq!(expected.len(), found.len());
            for (expected, found) in expected.iter().zip(&found) {
                let context = format!("query {query}, document {}, {mode:?}", expected.index);
                assert_eq!(expected.index, found.index, "{context}");
                assert_eq!(expected.answer.integer, found.answer.integer, "{context}");
                assert_eq!(expected.answer.reasoning, found.answer.reasoning, "{context}");
                assert_eq!(expected.tokens, found.tokens, "{context}: token counts");
                // The content of the cache changes the last digits.
                let probability =
                    |document: &RankedDocument| document.answer.probability.expect("one");
                let off = (probability(expected) - probability(found)).abs();
                assert!(off < 1e-3, "{context}: off by {off}");
            }
        }
    }
    assert!(proxy.exchanges().len() > 500, "{} exchanges", proxy.exchanges().len());
}

#[test]
fn killed_and_restarted_server_loses_no_document() {
    const BEFORE: usize = 5;
    let Some(python) = llama_cpp::python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = llama_cpp::tiny_model(&python, folder.path());
    let server = LlamaCpp::start(&python, &model, 2, 2048);
    let port = server.port;
    let local = local_f32();
    let remote = OpenAiBackend::new([server.url()], settings(&local)).expect("valid settings");
    let mut options = ScoringOptions::default();
    options.mode = Mode::AnswerOnly;

    // The server is killed while most documents are open, and restarted a second later.
    let running = Arc::new(Mutex::new(Some(server)));
    let (open, was_killed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (kept, seen_open, seen_killed) =
        (Arc::clone(&running), Arc::clone(&open), Arc::clone(&was_killed));
    let reranker = Reranker::builder(&remote)
        .options(options)
        .on_progress(move |progress| {
            if progress.documents_done >= BEFORE && !seen_killed.swap(true, Ordering::SeqCst) {
                seen_open.store(progress.documents - progress.documents_done, Ordering::SeqCst);
                drop(kept.lock().expect("no panic").take());
                let (kept, python, model) = (Arc::clone(&kept), python.clone(), model.clone());
                thread::spawn(move || {
                    thread::sleep(Duration::from_secs(1));
                    let server = LlamaCpp::start_at(port, &python, &model, 2, 2048);
                    kept.lock().expect("no panic").replace(server);
                });
            }
            ControlFlow::Continue(())
        })
        .build()
        .expect("valid");
    let ranking = reranker.rerank(&Request::new(QUERIES[0], DOCUMENTS)).expect("a ranking");
    assert!(was_killed.load(Ordering::SeqCst));
    let open = open.load(Ordering::SeqCst);
    assert!(open >= 5, "only {open} documents were open when the server was killed");
    assert!(ranking.unscored.is_empty(), "{:?}", ranking.unscored);
    let expected = by_index(scored(&local, Mode::AnswerOnly).swap_remove(0));
    let found = by_index(ranking.documents);
    let answers = |documents: &[RankedDocument]| -> Vec<_> {
        documents.iter().map(|document| (document.index, document.answer.integer)).collect()
    };
    assert_eq!(answers(&expected), answers(&found));
    // The restarting thread must end before the folder is removed.
    while running.lock().expect("no panic").is_none() {
        thread::sleep(Duration::from_millis(10));
    }
}
