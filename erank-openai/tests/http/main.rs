//! Tests of the backend against a scriptable HTTP server that imitates llama.cpp, vLLM and SGLang.

mod bare;
mod cancellation;
mod capabilities;
mod chat;
mod completions;
mod concurrency;
mod conformance;
mod engine;
mod events;
mod failures;
mod outages;
mod prompts;
mod secrets;
mod server;
mod tls;

use erank_core::{AnswerFormat, AnswerProbability, Mode, PromptTemplate};
use erank_core::{
    BackendError, CancellationToken, Completion, DocumentError, Job, ScoringBackend,
    ScoringOptions, Sink, TokenCounts,
};
use erank_openai::{OpenAiBackend, OpenAiSettings};

use crate::engine::{Engine, Shape};
use crate::server::{Request, Server};

pub(crate) const SHAPES: [Shape; 3] = [Shape::LlamaCpp, Shape::Vllm, Shape::Sglang];

/// A sink that collects every report by document.
#[derive(Default)]
pub(crate) struct Outcomes {
    pub(crate) documents: Vec<Vec<Result<Completion, DocumentError>>>,
    pub(crate) tokens: TokenCounts,
}

impl Sink for Outcomes {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        self.documents[index].push(outcome);
    }

    fn tokens_processed(&mut self, tokens: TokenCounts) {
        self.tokens += tokens;
    }
}

impl Outcomes {
    /// Returns the only completion of a document.
    pub(crate) fn completion(&self, index: usize) -> &Completion {
        match self.documents[index].as_slice() {
            [Ok(completion)] => completion,
            other => panic!("document {index} has {other:?}"),
        }
    }

    /// Returns the only error of a document.
    pub(crate) fn error(&self, index: usize) -> &DocumentError {
        match self.documents[index].as_slice() {
            [Err(error)] => error,
            other => panic!("document {index} has {other:?}"),
        }
    }

    /// Returns the integer answer of a document, and its probability.
    pub(crate) fn answer(&self, index: usize) -> (u32, Option<f64>) {
        let format = AnswerFormat::zero_to_ten();
        let answer = format.parse(self.completion(index), AnswerProbability::Joint);
        let answer = answer.expect("an answer");
        (answer.integer, answer.probability)
    }
}

pub(crate) fn assert_close(found: Option<f64>, expected: f64) {
    assert!(found.is_some_and(|found| (found - expected).abs() < 1e-5), "{found:?} {expected}");
}

pub(crate) fn answer_only() -> ScoringOptions {
    let mut options = ScoringOptions::default();
    options.mode = Mode::AnswerOnly;
    options
}

pub(crate) fn reason(max_tokens: usize) -> ScoringOptions {
    let mut options = ScoringOptions::default();
    options.mode = Mode::Reason { max_tokens };
    options
}

/// Returns documents with these relevances, as the engine reads them.
pub(crate) fn documents(relevances: impl IntoIterator<Item = u32>) -> Vec<String> {
    relevances.into_iter().enumerate().map(|(n, r)| format!("[{n}] relevance {r}.")).collect()
}

/// Returns whether a request belongs to the document with this index.
pub(crate) fn is_about(request: &Request, document: usize) -> bool {
    request.prompt().contains(&format!("[{document}] "))
}

/// Starts a server for an engine.
pub(crate) fn serve(engine: Engine) -> Server {
    Server::start(move |request| engine.react(request))
}

/// Returns the default settings with a change.
pub(crate) fn settings(change: impl FnOnce(&mut OpenAiSettings)) -> OpenAiSettings {
    changed(OpenAiSettings::default(), change)
}

pub(crate) fn changed(
    mut settings: OpenAiSettings,
    change: impl FnOnce(&mut OpenAiSettings),
) -> OpenAiSettings {
    change(&mut settings);
    settings
}

pub(crate) fn backend(url: &str, settings: OpenAiSettings) -> OpenAiBackend {
    OpenAiBackend::new([url], settings).expect("settings")
}

/// Scores documents, and checks that every sample of each was reported exactly once.
pub(crate) fn score(
    backend: &dyn ScoringBackend,
    documents: &[String],
    options: ScoringOptions,
) -> Result<Outcomes, BackendError> {
    let token = CancellationToken::new();
    let (result, outcomes) = score_with_cancellation(backend, documents, options, &token);
    result?;
    for (index, reports) in outcomes.documents.iter().enumerate() {
        assert_eq!(reports.len(), options.samples, "document {index}");
    }
    Ok(outcomes)
}

pub(crate) fn score_with_cancellation(
    backend: &dyn ScoringBackend,
    documents: &[String],
    options: ScoringOptions,
    cancellation: &CancellationToken,
) -> (Result<(), BackendError>, Outcomes) {
    let template = PromptTemplate::erank();
    let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
    let prompt = template.bind("the goal", "the query");
    let job = Job::new(prompt, &texts).with_options(options);
    let job = job.with_cancellation(cancellation.clone());
    let mut outcomes = Outcomes::default();
    outcomes.documents.resize_with(texts.len(), Vec::new);
    let result = backend.score(&job, &mut outcomes);
    (result, outcomes)
}

/// Returns an error with its causes as text, followed by its `Debug` format.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    format!("{} {error:?}", erank_core::error::chain(error))
}
