//! The bundled model on a running vLLM server, for docs/scaling.md. To run, with the server's address:
//! `ERANK_VLLM=http://127.0.0.1:8000 cargo test -p erank-tests --test remote -- --ignored --nocapture vllm`

use std::time::Instant;

use erank_candle::{CandleBackend, Checkpoint};
use erank_core::{Mode, RankedDocument, Request, Reranker, ScoringOptions};
use erank_openai::OpenAiBackend;

use crate::proxy::{Exchange, Proxy};
use crate::{DOCUMENTS, QUERIES, scored, settings};

/// Returns a proxy for the server, and a local backend in the checkpoint's BF16, as on the server.
fn proxy_and_local() -> (Proxy, CandleBackend) {
    let url = std::env::var("ERANK_VLLM").expect("the server's address in ERANK_VLLM");
    let port = url.trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok());
    let proxy = Proxy::recording(port.expect("a port at the end of ERANK_VLLM"));
    let local = CandleBackend::load(&Checkpoint::tiny(), &erank_candle::CandleSettings::default());
    (proxy, local.expect("the bundled model"))
}

/// Returns the number of prompt tokens that the server found in its cache. The server returns it with
/// `--enable-prompt-tokens-details`.
fn cached(exchange: &Exchange) -> Option<u64> {
    exchange.response.pointer("/usage/prompt_tokens_details/cached_tokens")?.as_u64()
}

#[test]
#[ignore = "needs a vLLM server; produces figures for docs/scaling.md"]
fn vllm_finds_common_prefix_in_cache_for_every_document() {
    let (proxy, local) = proxy_and_local();
    let remote = OpenAiBackend::new([proxy.url()], settings(&local)).expect("valid settings");
    let mut options = ScoringOptions::default();
    options.mode = Mode::AnswerOnly;
    // The goal is longer than a block, which has 128 tokens on a CPU, and new to the server.
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos();
    let goal = format!("{now}: {}", DOCUMENTS.join(" "));
    let reranker = Reranker::builder(&remote).options(options).instruction(goal).build();
    let ranking = reranker.expect("valid").rerank(&Request::new(QUERIES[0], DOCUMENTS));
    assert_eq!(ranking.expect("a ranking").documents.len(), DOCUMENTS.len());
    let found: Vec<u64> = proxy.exchanges().iter().filter_map(cached).collect();
    println!("cached tokens by request: {found:?}");
    let hits = found.iter().filter(|cached| **cached >= 128).count();
    assert!(hits >= DOCUMENTS.len(), "{hits} of {} requests", found.len());
}

#[test]
#[ignore = "needs a vLLM server; produces figures for docs/scaling.md"]
fn vllm_agrees_with_local_backend_in_bf16() {
    let (proxy, local) = proxy_and_local();
    let remote = OpenAiBackend::new([proxy.url()], settings(&local)).expect("valid settings");
    let pairs = QUERIES.len() * DOCUMENTS.len();
    for mode in [Mode::AnswerOnly, Mode::Reason { max_tokens: 100 }] {
        let here = scored(&local, mode);
        let before = proxy.exchanges().len();
        let begin = Instant::now();
        let there = scored(&remote, mode);
        let seconds = begin.elapsed().as_secs_f64();
        let requests = proxy.exchanges().len() - before;

        let (mut same_integer, mut same_reasoning, mut same_order) = (0, 0, 0);
        let (mut sum, mut largest) = (0.0, 0.0_f64);
        for (here, there) in here.iter().zip(&there) {
            let order = |documents: &[RankedDocument]| -> Vec<usize> {
                documents.iter().map(|document| document.index).collect()
            };
            same_order += usize::from(order(here) == order(there));
            for ours in here {
                let theirs = there.iter().find(|theirs| theirs.index == ours.index);
                let theirs = theirs.expect("the same documents");
                same_integer += usize::from(ours.answer.integer == theirs.answer.integer);
                same_reasoning += usize::from(ours.answer.reasoning == theirs.answer.reasoning);
                let (p, q) = (
                    ours.answer.expected_value.expect("one"),
                    theirs.answer.expected_value.expect("one"),
                );
                sum += (p - q).abs();
                largest = largest.max((p - q).abs());
            }
        }
        println!(
            "{mode:?}: of {pairs} pairs {same_integer} have the same integer and {same_reasoning} the same \
             reasoning; expected answers differ by {:.3} on average and {largest:.3} at most; \
             {same_order} of {} rankings the same; {seconds:.1} s, {requests} requests",
            sum / pairs as f64,
            QUERIES.len()
        );
        assert!(same_integer * 10 >= pairs * 9, "{same_integer} of {pairs}");
    }
}
