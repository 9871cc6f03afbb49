//! The local backend with the bundled model, and what it reports.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use erank_candle::{CandleBackend, CandleSettings, Checkpoint, Statistics};
use erank_core::{CancellationToken, Mode, PromptTemplate, ScoringBackend, ScoringOptions, Sink};
use erank_core::{Completion, DocumentError, Job, TokenCounts};

/// A query for [`DOCUMENTS`].
pub const QUERY: &str = "noise of jet engines";

/// Documents of different lengths, some about the query.
pub const DOCUMENTS: [&str; 6] = [
    "The noise of a jet engine was measured at several distances.",
    "A recipe for bread with little salt.",
    "Jet engines are loud.",
    "Engine oil must be changed every year; a noisy engine may lack oil, and oil is cheap.",
    "x",
    "The council met on Tuesday to discuss the noise of trams in the inner city at night.",
];

/// The instruction of [`run`].
pub const INSTRUCTION: &str = "Retrieve relevant documents for the query.";

/// Bytes of one cache block of the bundled model: layers, keys and values, heads, dimensions, tokens,
/// BF16.
pub const BLOCK_BYTES: usize = 4 * 2 * 3 * 64 * 16 * 2;

/// The bundled model with the default settings, loaded once.
pub fn tiny() -> &'static CandleBackend {
    static TINY: OnceLock<CandleBackend> = OnceLock::new();
    TINY.get_or_init(|| CandleBackend::tiny().expect("the bundled model"))
}

/// The bundled model with other settings.
pub fn tiny_with(change: impl FnOnce(&mut CandleSettings)) -> CandleBackend {
    let mut settings = CandleSettings::default();
    change(&mut settings);
    CandleBackend::load(&Checkpoint::tiny(), &settings).expect("the bundled model")
}

/// Waits until nothing runs: a caller gets its last result before the engine hears that it left.
pub fn idle(backend: &CandleBackend) -> Statistics {
    let started = Instant::now();
    loop {
        let statistics = backend.statistics();
        if (statistics.callers, statistics.running, statistics.used_blocks) == (0, 0, 0) {
            return statistics;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{statistics:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The default options in another mode.
pub fn options(mode: Mode) -> ScoringOptions {
    let mut options = ScoringOptions::default();
    options.mode = mode;
    options
}

/// A thought of the bundled model with room to spare.
pub const REASON: Mode = Mode::Reason { max_tokens: 100 };

/// Keeps what a backend reports, by document.
#[derive(Default)]
pub struct Outcomes {
    /// In the order of arrival.
    pub by_document: Vec<Vec<Result<Completion, DocumentError>>>,
    /// Over all documents.
    pub tokens: TokenCounts,
}

impl Outcomes {
    /// For so many documents.
    pub fn new(documents: usize) -> Self {
        let mut by_document = Vec::new();
        by_document.resize_with(documents, Vec::new);
        Self { by_document, tokens: TokenCounts::default() }
    }
}

impl Sink for Outcomes {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        self.by_document[index].push(outcome);
    }

    fn tokens_processed(&mut self, tokens: TokenCounts) {
        self.tokens += tokens;
    }
}

/// What the backend reports for `query` over `documents`.
pub fn outcomes(
    backend: &dyn ScoringBackend,
    query: &str,
    documents: &[&str],
    options: ScoringOptions,
    stop: CancellationToken,
) -> Outcomes {
    let mut outcomes = Outcomes::new(documents.len());
    let template = PromptTemplate::erank();
    let prompt = template.bind(INSTRUCTION, query);
    let job = Job::new(prompt, documents).with_options(options).with_cancellation(stop);
    backend.score(&job, &mut outcomes).expect("a run");
    for (index, reported) in outcomes.by_document.iter().enumerate() {
        assert_eq!(reported.len(), options.samples, "outcomes of document {index}");
    }
    outcomes
}

/// Runs [`QUERY`] over `documents`: by document, its only outcome.
pub fn run(
    backend: &dyn ScoringBackend,
    documents: &[&str],
    options: ScoringOptions,
    stop: CancellationToken,
) -> (Vec<Result<Completion, DocumentError>>, TokenCounts) {
    let outcomes = outcomes(backend, QUERY, documents, options, stop);
    (outcomes.by_document.into_iter().flatten().collect(), outcomes.tokens)
}

/// As [`run`], where everything goes well.
pub fn completions(
    backend: &dyn ScoringBackend,
    documents: &[&str],
    options: ScoringOptions,
) -> Vec<Completion> {
    samples(backend, QUERY, documents, options).into_iter().flatten().collect()
}

/// All samples of each document, in their order, where everything goes well.
pub fn samples(
    backend: &dyn ScoringBackend,
    query: &str,
    documents: &[&str],
    options: ScoringOptions,
) -> Vec<Vec<Completion>> {
    let outcomes = outcomes(backend, query, documents, options, CancellationToken::new());
    let all = outcomes.by_document.into_iter().map(|outcomes| {
        let mut samples: Vec<Completion> =
            outcomes.into_iter().map(|outcome| outcome.expect("a completion")).collect();
        samples.sort_by_key(|completion| completion.sample);
        samples
    });
    all.collect()
}
