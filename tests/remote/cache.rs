//! The use of a llama.cpp server's prefix cache by the documents of one query.

use erank_core::Mode;
use erank_openai::OpenAiBackend;

use crate::llama_cpp::{self, LlamaCpp};
use crate::proxy::{Exchange, Proxy};
use crate::{DOCUMENTS, QUERIES, local_f32, scored, settings};

/// Returns the number of prompt tokens that the server found in its cache.
fn cached(exchange: &Exchange) -> usize {
    let tokens = &exchange.response["timings"]["cache_n"];
    tokens.as_u64().expect("llama.cpp returns it") as usize
}

/// Returns the token ids of the request's prompt.
fn prompt(exchange: &Exchange) -> Vec<u64> {
    let ids = exchange.request.body["prompt"].as_array().expect("token ids");
    ids.iter().filter_map(|id| id.as_u64()).collect()
}

#[test]
fn common_prefix_is_prefilled_once_per_slot() {
    const SLOTS: usize = 2;
    let Some(python) = llama_cpp::python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = llama_cpp::tiny_model(&python, folder.path());
    let server = LlamaCpp::start(&python, &model, SLOTS, 2048);
    let (proxy, local) = (Proxy::recording(server.port), local_f32());
    let mut settings = settings(&local);
    settings.max_concurrency = SLOTS;
    let remote = OpenAiBackend::new([proxy.url()], settings).expect("valid settings");
    scored(&remote, Mode::AnswerOnly);

    // A job begins with the common prefix of its prompts. The answer "10" takes a second request.
    let mut prompts: Vec<(usize, Vec<u64>)> = proxy
        .exchanges()
        .iter()
        .filter(|exchange| exchange.request.path == "/v1/completions")
        .map(|exchange| (cached(exchange), prompt(exchange)))
        .skip(1)
        .collect();
    let mut total_missed = 0;
    for query in 0..QUERIES.len() {
        let (_, prefix) = prompts.remove(0);
        let next = prompts.iter().position(|(_, ids)| !ids.starts_with(&prefix));
        let documents: Vec<_> = prompts.drain(..next.unwrap_or(prompts.len())).collect();
        assert!(documents.len() >= DOCUMENTS.len(), "query {query}: {}", documents.len());
        assert!(prefix.len() > 10, "query {query}: a prefix of {} tokens", prefix.len());
        let missed = documents.iter().filter(|(cached, _)| *cached < prefix.len()).count();
        assert!(missed < SLOTS, "query {query}: {missed} documents prefilled it again");
        total_missed += missed;
    }
    assert!(prompts.is_empty());
    println!(
        "{total_missed} of {} documents prefilled the common prefix again",
        QUERIES.len() * DOCUMENTS.len()
    );
}
