//! The conformance suite of `erank-core`.

use erank_core::testing::conformance::{Options, Verdict, check};
use erank_core::{Mode, ScoringBackend};
use erank_openai::PromptFormat;

use crate::engine::{Engine, Shape};
use crate::server::Server;
use crate::{SHAPES, backend, settings};

fn options() -> Options {
    let mut options = Options::default();
    options.large_job_documents = 300;
    // Documents that the fake model can read, and a budget above the length of its thought.
    options.documents =
        [7, 0, 10, 3, 5].map(|relevance| format!("of relevance {relevance}")).into();
    options.scoring.mode = Mode::Reason { max_tokens: 30 };
    options
}

#[test]
fn backend_is_conformant_with_each_server() {
    for shape in SHAPES {
        let server = Server::start(move |request| Engine::new(shape).react(request));
        let backend: Box<dyn ScoringBackend> =
            Box::new(backend(&server.url(), settings(|s| s.max_concurrency = 4)));
        // A complete thought, a thought over budget, and no thought.
        let short = Mode::Reason { max_tokens: 3 };
        for mode in [options().scoring.mode, short, Mode::AnswerOnly] {
            let mut options = options();
            options.scoring.mode = mode;
            let report = check(&backend, &options);
            assert!(report.is_conformant(), "{shape:?} {mode:?}\n{report}");
        }
    }
}

#[test]
fn chat_format_skips_answer_only_checks() {
    let server = Server::start(|request| Engine::new(Shape::Vllm).react(request));
    let backend = backend(&server.url(), settings(|s| s.prompt_format = PromptFormat::Chat));
    let mut options = options();
    options.scoring.mode = Mode::AnswerOnly;
    let report = check(&backend, &options);
    assert!(report.to_string().contains("cannot"), "{report}");
    assert!(matches!(report.findings[2].verdict, Verdict::Skipped(_)), "{report}");
}
