//! The API key appears in no error and in no log.

use std::sync::Mutex;

use erank_core::BackendError;
use erank_openai::ApiKey;
use serde_json::{Value, json};

use crate::engine::{Engine, Shape};
use crate::server::{Reaction, Server};
use crate::{answer_only, backend, chain, documents, reason, score, serve, settings};

#[test]
fn api_key_is_sent_and_not_shown_in_errors() {
    let server = Server::start(|request| match request.authorization.as_deref() {
        Some("Bearer s3cret") => Engine::new(Shape::Vllm).react(request),
        other => {
            Reaction::status(401, json!({"error": {"message": format!("Incorrect key {other:?}")}}))
        }
    });
    let with_key = |key: &str| {
        let settings = settings(|s| s.api_key = Some(ApiKey::new(key)));
        backend(&server.url(), settings)
    };
    assert!(score(&with_key("s3cret"), &documents([7]), answer_only()).is_ok());

    let wrong = with_key("wr0ng");
    let error = score(&wrong, &documents([7]), answer_only()).err().expect("refused");
    assert!(matches!(error, BackendError::Unsupported(_)));
    let text = format!("{} {wrong:?}", chain(&error));
    assert!(text.contains("401") && text.contains("[key]") && !text.contains("wr0ng"), "{text}");
}

#[test]
fn api_key_quoted_by_server_is_redacted() {
    let quoting: [fn(&str) -> Value; 3] = [
        |key| json!({ "choices": key }),
        |key| json!({"error": {"message": key}}),
        |key| json!({"data": [{"id": key}, {"id": "b"}]}),
    ];
    for (number, response) in quoting.into_iter().enumerate() {
        let server = Server::start(move |request| {
            let key = request.authorization.as_deref().unwrap_or_default();
            let is_it = request.path == if number == 2 { "/v1/models" } else { "/v1/completions" };
            // A server may quote the key in a text of any length.
            let quoted = format!("{} for {key}", "x".repeat(10));
            let quoted = if number == 2 { quoted } else { quoted + &"y".repeat(10_000) };
            match is_it {
                true => Reaction::ok(response(&quoted)),
                false => Engine::new(Shape::Vllm).react(request),
            }
        });
        let settings = settings(|s| {
            s.api_key = Some(ApiKey::new("qu0ted"));
            s.max_attempts = 1;
        });
        let backend = backend(&server.url(), settings);
        let error = score(&backend, &documents([7]), answer_only()).err().expect("malformed");
        let text = chain(&error);
        assert!(text.contains("[key]") && !text.contains("qu0ted"), "{number}: {text}");
        assert!(text.len() < 3_000, "{number}: {} characters", text.len());
    }
}

/// A logger that keeps every record.
struct Logged(Mutex<String>);

impl log::Log for Logged {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut text = self.0.lock().expect("no panic");
        text.push_str(&format!("{} {}\n", record.target(), record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn api_key_is_not_logged_at_debug() {
    static LOGGED: Logged = Logged(Mutex::new(String::new()));
    log::set_logger(&LOGGED).expect("the only logger");
    // At TRACE, the HTTP client writes every byte, as the documentation of `ApiKey` says.
    log::set_max_level(log::LevelFilter::Debug);
    let server = serve(Engine::new(Shape::Vllm));
    let backend = backend(&server.url(), settings(|s| s.api_key = Some(ApiKey::new("unl0ggable"))));
    score(&backend, &documents([7]), reason(50)).expect("scores");
    log::set_max_level(log::LevelFilter::Off);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| { request.authorization.as_deref() == Some("Bearer unl0ggable") })
    );
    let text = LOGGED.0.lock().expect("no panic");
    assert!(text.contains("POST http"), "requests are logged: {text}");
    let shown: Vec<&str> = text.lines().filter(|line| line.contains("unl0ggable")).collect();
    assert!(shown.is_empty(), "{shown:?}");
}
