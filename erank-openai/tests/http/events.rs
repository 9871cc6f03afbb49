//! What the backend tells `tracing`.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use erank_openai::{ApiKey, OpenAiBackend};
use serde_json::json;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::engine::{Engine, Shape};
use crate::server::{Reaction, Server};
use crate::{answer_only, documents, score, settings};

/// Keeps what is written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    /// The lines with `needle`; other tests write, too.
    fn lines(&self, needle: &str) -> Vec<String> {
        let bytes = self.0.lock().expect("no panic");
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter(|line| line.contains(needle)).map(str::to_owned).collect()
    }
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn retries_ejections_returns_and_refusals_are_told_without_a_secret() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).expect("the only one");

    // It fails for a while once it is asked about documents.
    let back = OnceLock::new();
    let failing = Server::start(move |request| {
        let is_back = || *back.get_or_init(|| Instant::now() + Duration::from_millis(300));
        if request.prompt().contains("relevance") && Instant::now() < is_back() {
            let key = request.authorization.clone().unwrap_or_default();
            return Reaction::status(502, json!({"error": format!("{key} {}", request.prompt())}));
        }
        Engine::new(Shape::Vllm).react(request)
    });
    let refusing = Server::start(|_| Reaction::status(401, json!({"error": "Unauthorized"})));
    let settings = settings(|s| s.api_key = Some(ApiKey::new("untr4ceable")));
    let backend = OpenAiBackend::new([failing.url(), refusing.url()], settings).expect("settings");
    score(&backend, &documents((0..40).map(|n| n % 10)), answer_only()).expect("scores");

    let lines = written.lines(&failing.url());
    for (level, words) in [
        ("DEBUG", "try again"),
        ("WARN", "left alone"),
        ("INFO", "works again"),
        ("DEBUG", "asked what it can do"),
    ] {
        let is_it = |line: &&String| line.contains(level) && line.contains(words);
        assert!(lines.iter().any(|line| is_it(&line)), "{level} {words}: {lines:#?}");
    }
    let refused = written.lines(&refusing.url());
    let refused = refused.iter().filter(|line| line.contains("WARN") && line.contains("refuses"));
    assert_eq!(refused.count(), 1, "said once");
    assert!(written.lines("status 502").iter().any(|line| line.contains(&failing.url())));
    assert!(!written.lines("score{").is_empty(), "the job is a span");
    for secret in ["untr4ceable", "[7] relevance", "the query"] {
        assert_eq!(written.lines(secret), Vec::<String>::new());
    }
}
