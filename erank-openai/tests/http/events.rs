//! The backend's `tracing` events.

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

/// A writer that keeps all bytes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    /// Returns the lines that contain `needle`. Other tests of the process write lines too.
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
fn events_report_retries_ejections_and_recoveries_without_secrets() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).expect("no other subscriber");

    // This server fails for 300 ms from the first document on.
    let back = OnceLock::new();
    let failing = Server::start(move |request| {
        let is_back = || *back.get_or_init(|| Instant::now() + Duration::from_millis(300));
        if request.prompt().contains("relevance") && Instant::now() < is_back() {
            let key = request.authorization.clone().unwrap_or_default();
            return Reaction::status(502, json!({"error": format!("{key} {}", request.prompt())}));
        }
        Engine::new(Shape::Vllm).react(request)
    });
    let rejecting = Server::start(|_| Reaction::status(401, json!({"error": "Unauthorized"})));
    let settings = settings(|s| s.api_key = Some(ApiKey::new("untr4ceable")));
    let backend = OpenAiBackend::new([failing.url(), rejecting.url()], settings).expect("settings");
    score(&backend, &documents((0..40).map(|n| n % 10)), answer_only()).expect("scores");

    let lines = written.lines(&failing.url());
    for (level, words) in [
        ("DEBUG", "will be retried"),
        ("WARN", "endpoint ejected"),
        ("INFO", "endpoint recovered"),
        ("DEBUG", "endpoint probed"),
    ] {
        let matches = |line: &&String| line.contains(level) && line.contains(words);
        assert!(lines.iter().any(|line| matches(&line)), "{level} {words}: {lines:#?}");
    }
    let rejected = written.lines(&rejecting.url());
    let rejected = rejected.iter().filter(|line| line.contains("WARN") && line.contains("rejects"));
    assert_eq!(rejected.count(), 1, "reported once");
    assert!(written.lines("status 502").iter().any(|line| line.contains(&failing.url())));
    assert!(!written.lines("score{").is_empty(), "the job has a span");
    for secret in ["untr4ceable", "[7] relevance", "the query"] {
        assert_eq!(written.lines(secret), Vec::<String>::new());
    }
}
