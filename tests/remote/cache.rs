//! What the order of the requests is worth: a real server finds what a query's prompts have in common in
//! its cache.

use erank_core::Mode;
use erank_openai::OpenAiBackend;

use crate::llama_cpp::{self, LlamaCpp};
use crate::proxy::{Exchange, Proxy};
use crate::{DOCUMENTS, QUERIES, exact, scored, settings};

/// Tokens of the prompt that the server had read before.
fn cached(exchange: &Exchange) -> usize {
    let tokens = &exchange.reply["timings"]["cache_n"];
    tokens.as_u64().expect("llama.cpp says it") as usize
}

fn prompt(exchange: &Exchange) -> Vec<u64> {
    let ids = exchange.request.body["prompt"].as_array().expect("token ids");
    ids.iter().filter_map(|id| id.as_u64()).collect()
}

#[test]
fn what_a_querys_prompts_have_in_common_is_read_once_and_by_each_further_slot() {
    const SLOTS: usize = 2;
    let Some(python) = llama_cpp::python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = llama_cpp::tiny_model(&python, folder.path());
    let server = LlamaCpp::start(&python, &model, SLOTS, 2048);
    let (proxy, local) = (Proxy::recording(server.port), exact());
    let mut settings = settings(&local);
    settings.max_concurrency = SLOTS;
    let remote = OpenAiBackend::new([proxy.url()], settings).expect("valid settings");
    scored(&remote, Mode::AnswerOnly);

    // A job begins with what its prompts have in common; a second look at "10" asks again.
    let mut prompts: Vec<(usize, Vec<u64>)> = proxy
        .exchanges()
        .iter()
        .filter(|exchange| exchange.request.path == "/v1/completions")
        .map(|exchange| (cached(exchange), prompt(exchange)))
        .skip(1)
        .collect();
    let mut missed_in_all = 0;
    for query in 0..QUERIES.len() {
        let (_, common) = prompts.remove(0);
        let next = prompts.iter().position(|(_, ids)| !ids.starts_with(&common));
        let documents: Vec<_> = prompts.drain(..next.unwrap_or(prompts.len())).collect();
        assert!(documents.len() >= DOCUMENTS.len(), "query {query}: {}", documents.len());
        assert!(common.len() > 10, "query {query}: {} tokens in common", common.len());
        let missed = documents.iter().filter(|(cached, _)| *cached < common.len()).count();
        assert!(missed < SLOTS, "query {query}: {missed} documents read it again");
        missed_in_all += missed;
    }
    assert!(prompts.is_empty());
    println!(
        "{missed_in_all} of {} documents had to read what their query's prompts have in common",
        QUERIES.len() * DOCUMENTS.len()
    );
}
