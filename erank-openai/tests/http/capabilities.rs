//! The probe of a server, and options that a server does not support.

use erank_core::{BackendError, Sampling};
use erank_openai::{OpenAiSettings, PromptFormat, ServerKind};
use serde_json::json;

use crate::engine::{Engine, Shape};
use crate::server::{Reaction, Request, Server};
use crate::{
    SHAPES, answer_only, assert_close, backend, chain, documents, reason, score, serve, settings,
};

#[test]
fn integer_ranking_requests_no_log_probabilities() {
    for shape in SHAPES {
        let engine = Engine { log_probs: false, ..Engine::new(shape) };
        let server = serve(engine);
        let settings = settings(|s| s.logprobs = false);
        let backend = backend(&server.url(), settings);
        for options in [reason(100), reason(2), answer_only()] {
            let outcomes = score(&backend, &documents([7, 2]), options).expect("scores");
            assert_eq!((outcomes.answer(0), outcomes.answer(1)), ((7, None), (2, None)));
        }
        assert!(server.completions().iter().all(|request| request.body["logprobs"].is_null()));
    }
}

#[test]
fn server_without_log_probabilities_fails_at_probe() {
    let refusing = |request: &Request| match request.body["logprobs"].is_u64() {
        true => Reaction::status(400, json!({"error": {"message": "at most 5"}})),
        false => Engine::new(Shape::Vllm).react(request),
    };
    let silent = Engine { log_probs: false, ..Engine::new(Shape::Vllm) };
    for (server, words) in [(Server::start(refusing), "at most 5"), (serve(silent), "has none")] {
        let backend = backend(&server.url(), OpenAiSettings::default());
        let error = score(&backend, &documents([7, 8, 9]), reason(50)).err().expect("refused");
        assert!(matches!(error, BackendError::Unsupported(_)));
        let text = chain(&error);
        assert!(text.contains(words) && text.contains("logprobs = false"), "{text}");
        assert!(server.completions().len() <= 1, "only the probe was sent");
    }
}

#[test]
fn endpoint_is_probed_once() {
    let server = serve(Engine::new(Shape::LlamaCpp));
    let backend = backend(&server.url(), OpenAiSettings::default());
    for _ in 0..3 {
        score(&backend, &documents([7]), answer_only()).expect("scores");
    }
    let count = |path: &str| server.requests().iter().filter(|r| r.path == path).count();
    assert_eq!((count("/v1/models"), count("/apply-template")), (1, 1));
    assert_eq!(server.completions().len(), 1 + 3);
}

#[test]
fn unsupported_options_fail_with_remedy_before_any_document() {
    let llama_cpp = || serve(Engine::new(Shape::LlamaCpp));
    let other = || {
        Server::start(|request| match request.path.as_str() {
            "/v1/models" => Reaction::ok(json!({"data": [{"id": "a"}, {"id": "b"}]})),
            _ => Engine::new(Shape::Vllm).react(request),
        })
    };
    let with = |change: fn(&mut Sampling)| {
        let mut options = reason(50);
        options.sampling = Sampling::with_temperature(1.0);
        change(&mut options.sampling);
        options
    };
    let framed = || {
        settings(|s| {
            s.prompt_format = PromptFormat::chat_ml();
            s.model = Some("a".into());
        })
    };
    for (server, settings, options, words) in [
        (
            llama_cpp(),
            OpenAiSettings::default(),
            with(|s| s.presence_penalty = 1.0),
            "presence_penalty",
        ),
        (
            llama_cpp(),
            OpenAiSettings::default(),
            with(|s| s.frequency_penalty = 1.0),
            "frequency_penalty",
        ),
        (
            serve(Engine::new(Shape::Sglang)),
            OpenAiSettings::default(),
            with(|s| s.repetition_penalty = 1.1),
            "SGLang does not count the prompt's tokens",
        ),
        (other(), framed(), with(|s| s.top_k = 20), "top_k"),
        (other(), framed(), with(|s| s.min_p = 0.1), "min_p"),
        (other(), framed(), with(|s| s.repetition_penalty = 1.1), "repetition_penalty"),
        (other(), OpenAiSettings::default(), reason(50), "lists a, b"),
        (other(), settings(|s| s.model = Some("c".into())), reason(50), "no model \"c\", but a, b"),
        (other(), settings(|s| s.model = Some("a".into())), reason(50), "PromptFormat::Template"),
        (
            llama_cpp(),
            settings(|s| s.prompt_format = PromptFormat::Chat),
            answer_only(),
            "PromptFormat::Chat",
        ),
    ] {
        let backend = backend(&server.url(), settings);
        let error = score(&backend, &documents([7, 8, 9]), options).err().expect(words);
        assert!(matches!(error, BackendError::Unsupported(_)));
        assert!(chain(&error).contains(words), "{}", chain(&error));
        let asked = server.completions();
        assert!(asked.iter().all(|request| !request.prompt().contains("[0]")), "{words}");
    }
}

/// SGLang's log-probabilities are those after the temperature. The distribution must not depend on it.
#[test]
fn distribution_does_not_depend_on_the_temperature() {
    for shape in SHAPES {
        let server = serve(Engine::new(shape));
        let backend = backend(&server.url(), OpenAiSettings::default());
        let mut options = reason(100);
        options.sampling = Sampling::with_temperature(0.5);
        let outcomes = score(&backend, &documents([7, 10]), options).expect("scores");
        assert_eq!((outcomes.answer(0).0, outcomes.answer(1).0), (7, 10), "{shape:?}");
        assert_close(outcomes.answer(0).1, 0.75);
        assert_close(outcomes.answer(1).1, 0.6);
    }
}

/// A chat has the log-probabilities of its own sampling settings only.
#[test]
fn chat_whose_log_probabilities_depend_on_the_temperature_is_refused() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v1/models" => Reaction::ok(json!({"data": [{"id": "a", "owned_by": "sglang"}]})),
        _ => {
            let temperature = request.body["temperature"].as_f64().filter(|t| *t > 0.0);
            let log_prob = -1.0 / temperature.unwrap_or(1.0);
            let entry = json!({"token": "x", "bytes": [120], "logprob": log_prob});
            let mut token = entry.clone();
            token["top_logprobs"] = json!([entry]);
            Reaction::ok(json!({"choices": [{
                "message": {"content": "x"}, "finish_reason": "length", "matched_stop": null,
                "logprobs": {"content": [token]},
            }]}))
        }
    });
    let backend = backend(&server.url(), settings(|s| s.prompt_format = PromptFormat::Chat));
    for (temperature, is_refused) in [(0.0, false), (1.0, false), (0.5, true)] {
        let mut options = reason(50);
        options.sampling = Sampling::with_temperature(temperature);
        let error = score(&backend, &documents([7]), options).err();
        assert_eq!(error.is_some(), is_refused, "{temperature}");
        assert!(error.is_none_or(|error| chain(&error).contains("temperature 0")));
    }
}

/// A token that the server adds in front of each raw prompt changes what the model reads.
#[test]
fn added_token_is_refused_with_remedy() {
    for shape in [Shape::LlamaCpp, Shape::Sglang] {
        let server = Server::start(move |request| {
            let body = &request.body;
            let adds = body["add_special"] == true || body["add_special_tokens"] == true;
            match (request.path.as_str(), adds) {
                ("/tokenize", true) => Reaction::ok(json!({"tokens": [1, 97]})),
                _ => Engine::new(shape).react(request),
            }
        });
        let backend = backend(&server.url(), OpenAiSettings::default());
        let error = score(&backend, &documents([7]), answer_only()).err().expect("refused");
        assert!(chain(&error).contains("PromptFormat::TokenIds"), "{}", chain(&error));
        assert!(server.completions().iter().all(|request| !request.prompt().contains("[0]")));
    }
    // vLLM adds it unless a field of the request says otherwise.
    let server = serve(Engine::new(Shape::Vllm));
    let backend = backend(&server.url(), OpenAiSettings::default());
    score(&backend, &documents([7]), answer_only()).expect("scores");
    let mut prompts = server.completions();
    prompts.retain(|request| request.prompt().contains("[0]"));
    assert!(!prompts.is_empty());
    assert!(prompts.iter().all(|request| request.body["add_special_tokens"] == false));
}

#[test]
fn server_setting_overrides_detection() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v1/models" => Reaction::ok(json!({"data": [{"id": "a"}]})),
        _ => Engine::new(Shape::Vllm).react(request),
    });
    let settings = settings(|s| s.server = Some(ServerKind::Vllm));
    let mut options = reason(50);
    options.sampling = Sampling::with_temperature(0.5);
    options.sampling.top_k = 20;
    let backend = backend(&server.url(), settings);
    let outcomes = score(&backend, &documents([7]), options).expect("scores");
    assert_eq!(outcomes.answer(0).0, 7);
    let request = server.completions().into_iter().find(|r| r.body["stop"].is_array());
    let thought = request.expect("a thought").body;
    assert_eq!((&thought["top_k"], &thought["temperature"]), (&json!(20), &json!(0.5)));
    assert_eq!(thought["model"], "a");
}
