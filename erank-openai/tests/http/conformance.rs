//! The backend keeps the contract of backends.

use erank_core::testing::conformance::{Options, Verdict, check};
use erank_core::{Mode, ScoringBackend};
use erank_openai::Prompts;

use crate::engine::{Engine, Shape};
use crate::server::Server;
use crate::{backend, settings};

fn options() -> Options {
    let mut options = Options::default();
    options.large_job_documents = 300;
    // What the make-believe model reads, and more tokens than it thinks.
    options.documents =
        [7, 0, 10, 3, 5].map(|relevance| format!("of relevance {relevance}")).into();
    options.scoring.mode = Mode::Reason { max_tokens: 30 };
    options
}

#[test]
fn it_keeps_the_contract_with_both_kinds_of_servers() {
    for shape in [Shape::LlamaCpp, Shape::Vllm] {
        let server = Server::start(move |request| Engine::new(shape).react(request));
        let backend: Box<dyn ScoringBackend> =
            Box::new(backend(&server.url(), settings(|s| s.max_concurrency = 4)));
        // A thought that ends, one that does not, and none.
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
fn what_a_chat_cannot_do_is_declined() {
    let server = Server::start(|request| Engine::new(Shape::Vllm).react(request));
    let backend = backend(&server.url(), settings(|s| s.prompts = Prompts::Chat));
    let mut options = options();
    options.scoring.mode = Mode::AnswerOnly;
    let report = check(&backend, &options);
    assert!(report.to_string().contains("cannot"), "{report}");
    assert!(matches!(report.findings[2].verdict, Verdict::Skipped(_)), "{report}");
}
