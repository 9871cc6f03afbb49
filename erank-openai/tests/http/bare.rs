//! Whole prompts with bare answers, such as Qwen3-Reranker's.

use erank_core::testing::conformance::{Options, check};
use erank_core::{AnswerFormat, BackendError, PromptTemplate, Request, Reranker, ScoreKind};
use erank_openai::{OpenAiSettings, PromptFormat};
use serde_json::json;

use crate::engine::{Engine, Shape};
use crate::server::{Reaction, Server};
use crate::{SHAPES, assert_close, backend, chain, settings};

/// Starts a server whose chat template rejects a user's message.
fn reranker_server(shape: Shape) -> Server {
    Server::start(move |request| match request.body["messages"].is_array() {
        true => Reaction::status(400, json!({"error": {"message": "no role user"}})),
        false => Engine::new(shape).react(request),
    })
}

#[test]
fn whole_prompt_is_sent_as_it_is_and_read_at_its_end() {
    for shape in SHAPES {
        let server = reranker_server(shape);
        let backend = backend(&server.url(), OpenAiSettings::default());
        let template = PromptTemplate::qwen3_reranker();
        let reranker = Reranker::builder(&backend).template(template.clone()).build();
        let documents = ["relevance 3", "relevance 9 <|im_end|>", "relevance 6"];
        let request = Request::new("jets <think>", documents).with_instruction("</think> goal");
        let ranking = reranker.expect("valid").rerank(&request).expect("a ranking");
        let order: Vec<usize> = ranking.documents.iter().map(|document| document.index).collect();
        assert_eq!(order, [1, 2, 0], "{shape:?}");
        for (document, expected) in ranking.documents.iter().zip([0.9, 0.6, 0.3]) {
            assert_close(Some(document.score), expected);
            assert_eq!(document.tokens.generated, 1);
        }

        let sent = server.completions();
        let prompts = sent.iter().filter(|request| request.prompt().ends_with("</think>\n\n"));
        let prompts: Vec<_> = prompts.collect();
        assert_eq!(prompts.len(), documents.len(), "one request for each document");
        let bound = template.bind("< /think> goal", "jets < think>");
        for document in ["relevance 3", "relevance 9 < |im_end|>", "relevance 6"] {
            let expected = bound.render(document);
            assert!(prompts.iter().any(|request| request.prompt() == expected), "{expected}");
        }
        assert!(prompts.iter().all(|request| request.body["max_tokens"] == 1));

        // A user's message needs the chat template.
        let erank = Reranker::builder(&backend).build().expect("valid");
        let error = erank.rerank(&request).expect_err("no chat template").source;
        assert!(matches!(error, BackendError::Unsupported(_)));
        let text = chain(&error);
        assert!(text.contains("no role user") && text.contains("prompt_format"), "{text}");
    }
}

#[test]
fn whole_prompt_without_log_probabilities_ranks_by_integer() {
    let server = reranker_server(Shape::Vllm);
    let backend = backend(&server.url(), settings(|settings| settings.logprobs = false));
    let reranker = Reranker::builder(&backend)
        .template(PromptTemplate::qwen3_reranker())
        .score(ScoreKind::Integer)
        .build();
    let request = Request::new("jets", ["relevance 3", "relevance 9"]);
    let ranking = reranker.expect("valid").rerank(&request).expect("a ranking");
    let scores: Vec<_> = ranking.documents.iter().map(|d| (d.index, d.score)).collect();
    assert_eq!(scores, [(1, 1.0), (0, 0.0)]);
}

#[test]
fn document_is_truncated_to_the_limit_of_the_prompt() {
    let server = reranker_server(Shape::Vllm);
    let backend = backend(&server.url(), OpenAiSettings::default());
    const TURN: &str = "<|im_start|>assistant\n</think>\n\n";
    let text = format!("{{query}}|{{doc}}|{TURN}");
    let template = PromptTemplate::whole(text, AnswerFormat::yes_no().bare()).expect("valid");
    let rank = |limit| {
        let mut options = erank_core::ScoringOptions::default();
        options.max_prompt_tokens = Some(limit);
        let builder = Reranker::builder(&backend).template(template.clone()).options(options);
        let request = Request::new("query", ["relevance 7, and more"]);
        builder.build().expect("valid").rerank(&request).expect("a ranking")
    };
    // 39 bytes are not the document's, and a token has four bytes.
    let truncated = rank(13);
    assert!(truncated.documents[0].truncated);
    let sent = server.completions();
    assert_eq!(sent.last().expect("one").prompt(), format!("query|relevance 7, |{TURN}"));
    assert!(!rank(15).documents[0].truncated);
    let error = rank(9).unscored.remove(0).error.to_string();
    assert!(error.contains("has 10 tokens, more than the 9 that fit"), "{error}");
}

#[test]
fn chat_format_refuses_whole_prompts_and_bare_answers() {
    let server = reranker_server(Shape::Vllm);
    let backend = backend(&server.url(), settings(|s| s.prompt_format = PromptFormat::Chat));
    let message = PromptTemplate::custom("{query}|{doc}", AnswerFormat::yes_no().bare());
    for (template, words) in [
        (PromptTemplate::qwen3_reranker(), "whole prompt"),
        (message.expect("valid"), "answer-only mode needs a raw prompt"),
    ] {
        let reranker = Reranker::builder(&backend).template(template).build().expect("valid");
        let error = reranker.rerank(&Request::new("q", ["d"])).expect_err(words).source;
        assert!(matches!(error, BackendError::Unsupported(_)));
        assert!(chain(&error).contains(words), "{error:?}");
    }
    assert_eq!(server.requests().len(), 0, "refused before any request");
}

#[test]
fn backend_is_conformant_with_whole_prompts() {
    for shape in SHAPES {
        let server = reranker_server(shape);
        let mut options = Options::default();
        options.template = PromptTemplate::qwen3_reranker();
        options.large_job_documents = 300;
        options.documents =
            [7, 0, 10, 3, 5].map(|relevance| format!("of relevance {relevance}")).into();
        let report = check(&backend(&server.url(), OpenAiSettings::default()), &options);
        assert!(report.is_conformant(), "{shape:?}\n{report}");
    }
}
