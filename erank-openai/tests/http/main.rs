//! The backend against servers that are made up, and that fail as real ones do.

mod answers;
mod conformance;
mod engine;
mod events;
mod faults;
mod server;
mod tls;

use erank_core::{AnswerFormat, AnswerProbability, Mode, PromptTemplate};
use erank_core::{
    BackendError, CancellationToken, Completion, DocumentError, Job, ScoringBackend,
    ScoringOptions, Sink, TokenCounts,
};
use erank_openai::{OpenAiBackend, OpenAiSettings};

/// Everything that reached the sink, by document.
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
    /// The only completion of a document.
    pub(crate) fn completion(&self, index: usize) -> &Completion {
        match self.documents[index].as_slice() {
            [Ok(completion)] => completion,
            other => panic!("document {index} has {other:?}"),
        }
    }

    pub(crate) fn error(&self, index: usize) -> &DocumentError {
        match self.documents[index].as_slice() {
            [Err(error)] => error,
            other => panic!("document {index} has {other:?}"),
        }
    }

    /// The integer and the probability of a document.
    pub(crate) fn answer(&self, index: usize) -> (u32, Option<f64>) {
        let format = AnswerFormat::zero_to_ten();
        let answer = format.parse(self.completion(index), AnswerProbability::Joint);
        let answer = answer.expect("an answer");
        (answer.integer, answer.probability)
    }
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

/// Documents of these relevances.
pub(crate) fn documents(relevances: impl IntoIterator<Item = u32>) -> Vec<String> {
    relevances.into_iter().enumerate().map(|(n, r)| format!("[{n}] relevance {r}.")).collect()
}

/// The default settings but for `change`.
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

/// Scores documents and checks that each was reported as often as it should.
pub(crate) fn score(
    backend: &dyn ScoringBackend,
    documents: &[String],
    options: ScoringOptions,
) -> Result<Outcomes, BackendError> {
    let outcomes = score_until(backend, documents, options, &CancellationToken::new());
    if let (Ok(()), outcomes) = &outcomes {
        for (index, reports) in outcomes.documents.iter().enumerate() {
            assert_eq!(reports.len(), options.samples, "document {index}");
        }
    }
    let (result, outcomes) = outcomes;
    result.map(|()| outcomes)
}

pub(crate) fn score_until(
    backend: &dyn ScoringBackend,
    documents: &[String],
    options: ScoringOptions,
    stop: &CancellationToken,
) -> (Result<(), BackendError>, Outcomes) {
    let template = PromptTemplate::erank();
    let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
    let prompt = template.bind("the goal", "the query");
    let job = Job::new(prompt, &texts).with_options(options).with_cancellation(stop.clone());
    let mut outcomes = Outcomes::default();
    outcomes.documents.resize_with(texts.len(), Vec::new);
    let result = backend.score(&job, &mut outcomes);
    (result, outcomes)
}

/// An error with its causes, as a log shows it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(format!("{error} {error:?}"), |text, cause| format!("{text}: {cause}"))
}
