//! Reranking with a remote model: on a llama.cpp server, if it is installed, and on a mock server.

#[path = "../../../tests/remote/llama_cpp.rs"]
#[allow(dead_code, reason = "tests/remote uses more of it")]
mod llama_cpp;
#[path = "../../../erank-openai/tests/http/server.rs"]
#[allow(dead_code, reason = "the backend's own tests use more of it")]
mod server;

use serde_json::{Value, json};

use crate::{Ended, erank};
use llama_cpp::LlamaCpp;
use server::{Reaction, Server};

const DOCUMENTS: &str = "A bicycle chain that slips under load is worn.\n\
                         Bread without yeast rises with baking soda.\n\
                         The moon raises two bulges of the sea.\n\
                         Oil the bicycle chain when it squeaks.\n";

fn rerank(url: &str, more: &[&str]) -> Ended {
    let fixed =
        ["rerank", "--query", "bicycle chain slipping", "--backend", "openai", "--url", url];
    erank(&[&fixed[..], more].concat(), DOCUMENTS.as_bytes())
}

#[test]
fn rerank_works_with_llama_cpp() {
    let Some(python) = llama_cpp::python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let server = LlamaCpp::start(&python, &llama_cpp::tiny_model(&python, folder.path()), 2, 2048);
    for (more, has_probabilities) in [
        (&["--json", "--answer-only"][..], true),
        (&["--json", "--prompts", "chatml", "--max-tokens", "60"][..], true),
        (&["--json", "--answer-only", "--score", "integer", "--model", "erank"][..], false),
    ] {
        let ended = rerank(&server.url(), more);
        assert_eq!(ended.code, Some(0), "{more:?}: {ended:?}");
        let report = ended.json();
        let documents = report["documents"].as_array().expect("documents");
        assert_eq!(documents.len(), 4, "{more:?}");
        for document in documents {
            assert!(document["integer"].as_u64().is_some_and(|integer| integer <= 10), "{more:?}");
            let probability = document["probability"].as_f64();
            assert_eq!(probability.is_some(), has_probabilities, "{more:?}");
            assert!(probability.is_none_or(|p| p > 0.0 && p <= 1.0), "{more:?}");
        }
        // Each prompt has some 45 of the tiny model's tokens.
        let prompts: Vec<u64> =
            documents.iter().filter_map(|d| d["tokens"]["prompt"].as_u64()).collect();
        assert!(prompts.len() == 4 && prompts.iter().all(|tokens| *tokens >= 40), "{report}");
        let all = report["tokens"]["prompt"].as_u64();
        assert!(all >= Some(prompts.iter().sum()), "{report}");
    }
    let ended = rerank(&server.url(), &["--answer-only"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("bicycle chain"), "{ended:?}");
    ended.assert_harmless();
}

/// Starts a server with a chat API only.
fn hosted() -> Server {
    Server::start(|request| match request.path.as_str() {
        "/v1/models" => Reaction::ok(json!({"data": [{"id": "hosted"}]})),
        "/v1/chat/completions" => {
            let message = request.body["messages"][0]["content"].as_str().unwrap_or_default();
            let integer = if message.contains("slips") { 9 } else { 2 };
            let content = format!("<think>Let me see.</think><answer>{integer}</answer>");
            Reaction::ok(json!({"choices": [{
                "message": {"content": content}, "finish_reason": "stop", "logprobs": Value::Null,
            }]}))
        }
        _ => Reaction::status(404, json!({"detail": "Not Found"})),
    })
}

#[test]
fn rerank_ranks_by_integers_with_a_chat_server() {
    let server = hosted();
    let ended = rerank(&server.url(), &["--json", "--prompts", "chat", "--score", "integer"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report = ended.json();
    let best = &report["documents"][0];
    assert_eq!((&best["line"], &best["integer"]), (&json!(1), &json!(9)));
    assert_eq!(best["reasoning"], "Let me see.");
    assert_eq!(best["probability"], Value::Null);
    assert!(server.requests().iter().all(|request| request.body["logprobs"].is_null()));
}

#[test]
fn rerank_names_the_flag_for_a_missing_capability() {
    let server = hosted();
    for (more, flag) in [
        (&[][..], "--prompts chat"),
        (&["--template", "qwen3-reranker"][..], "--prompts chat"),
        (&["--prompts", "chat"][..], "--score integer"),
        (&["--prompts", "chat", "--answer-only"][..], "leave --answer-only"),
        (&["--model", "another"][..], "--model"),
    ] {
        let ended = rerank(&server.url(), more);
        assert_eq!(ended.code, Some(1), "{more:?}: {ended:?}");
        assert!(ended.err.contains(flag), "{more:?}: {}", ended.err);
        ended.assert_harmless();
    }
    let ended = erank(&["rerank", "--query", "x", "--prompts", "chat"], b"a\n");
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("--backend openai"), "{}", ended.err);
}

#[test]
fn rerank_names_the_address_of_an_unreachable_server() {
    // The port is free again after the listener is dropped.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let ended = rerank(&url, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for says in
        [format!("cannot connect to {url}").as_str(), "--url", "before it reached the document"]
    {
        assert!(ended.err.contains(says), "{says}: {}", ended.err);
    }
    assert!(!ended.err.contains("conformance"), "{}", ended.err);
}
