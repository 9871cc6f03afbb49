//! Completions from chat messages.

use erank_core::{AnswerError, DocumentError, Request, Reranker, ScoreKind};
use erank_openai::{OpenAiSettings, PromptFormat};
use serde_json::{Value, json};

use crate::server::{Reaction, Server};
use crate::{assert_close, backend, changed, documents, reason, score};

/// Starts a chat server that returns `message`.
fn chat(message: fn() -> Value, log_probs: bool, finish: &'static str) -> Server {
    Server::start(move |request| {
        let pieces = ["<think>", "hm", "</think>", "<answer>", "1", "0", "</", "answer>"];
        let entry = |text: &str| {
            json!({"token": text, "bytes": text.as_bytes(), "logprob": -0.25,
            "top_logprobs": [{"token": text, "bytes": text.as_bytes(), "logprob": -0.25}]})
        };
        match request.path.as_str() {
            "/v1/models" => Reaction::status(404, json!({"detail": "Not Found"})),
            "/v1/chat/completions" => {
                let asked = log_probs && request.body["logprobs"] == true;
                let entries: Vec<Value> = pieces.iter().map(|text| entry(text)).collect();
                let log_probs = if asked { json!({"content": entries}) } else { Value::Null };
                Reaction::ok(json!({
                    "choices": [{"message": message(), "finish_reason": finish, "logprobs": log_probs}],
                    "usage": {"prompt_tokens": 50, "completion_tokens": 8},
                }))
            }
            _ => Reaction::status(500, json!({"error": "not asked for"})),
        }
    })
}

fn chat_settings() -> OpenAiSettings {
    let mut settings = OpenAiSettings::default();
    settings.prompt_format = PromptFormat::Chat;
    settings.model = Some("hosted".into());
    settings
}

#[test]
fn chat_returns_joint_probability_for_thought_in_any_field() {
    let messages: [fn() -> Value; 4] = [
        || json!({"content": "<think>hm</think><answer>10"}),
        || json!({"content": "<answer>10", "reasoning": "hm"}),
        || json!({"content": "<answer>10", "reasoning_content": "hm"}),
        || json!({"content": "<answer>10"}),
    ];
    for (case, message) in messages.into_iter().enumerate() {
        let server = chat(message, true, "stop");
        let backend = backend(&server.url(), chat_settings());
        let outcomes = score(&backend, &documents([10]), reason(50)).expect("scores");
        assert_eq!(outcomes.completion(0).text, "<think>hm</think><answer>10</answer>");
        assert_eq!(outcomes.answer(0).0, 10);
        assert_close(outcomes.answer(0).1, (-0.5_f64).exp());
        assert!(outcomes.completion(0).answer_distribution.is_none(), "chat has no distribution");

        // Without log-probabilities, the text is that of the message.
        let server = chat(message, false, "stop");
        let settings = changed(chat_settings(), |s| s.logprobs = false);
        let backend = crate::backend(&server.url(), settings);
        let outcomes = score(&backend, &documents([10]), reason(50)).expect("scores");
        let thought = if case == 3 { "" } else { "<think>hm</think>" };
        assert_eq!(outcomes.completion(0).text, format!("{thought}<answer>10</answer>"));
        assert_eq!(outcomes.answer(0), (10, None));
    }
}

#[test]
fn chat_limits_max_tokens_to_context_length() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v1/models" => Reaction::ok(json!({"data": [{"id": "hosted", "max_model_len": 700}]})),
        _ => Reaction::ok(json!({"choices": [{
            "message": {"content": "<think>hm</think><answer>7"}, "finish_reason": "stop",
        }]})),
    });
    let settings = changed(chat_settings(), |s| s.logprobs = false);
    let backend = backend(&server.url(), settings);
    let outcomes = score(&backend, &documents([7]), reason(4096)).expect("scores");
    assert_eq!(outcomes.answer(0).0, 7);
    let chat = server.requests().pop().expect("a request");
    let message = chat.body["messages"][0]["content"].as_str().map_or(0, str::len);
    let most = chat.body["max_tokens"].as_u64().expect("a number") as usize;
    assert!((300..700 - message / 4).contains(&most), "{most} for {message} bytes");
}

#[test]
fn chat_over_budget_is_document_error() {
    let server = chat(|| json!({"content": null, "reasoning": "hm"}), false, "length");
    let settings = changed(chat_settings(), |s| s.logprobs = false);
    let backend = backend(&server.url(), settings);
    let request = Request::new("q", ["a"]);
    let reranker = Reranker::builder(backend).score(ScoreKind::Integer).build().expect("valid");
    let ranking = reranker.rerank(&request).expect("a ranking");
    let error = &ranking.unscored[0].error;
    assert!(matches!(error, DocumentError::Answer(AnswerError::ThoughtNotClosed)), "{error:?}");
}
