//! The local backend with the bundled model, and functions that collect its results.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use erank_candle::internals::{BlockAllocator, Model, Row};
use erank_candle::{CandleBackend, CandleSettings, Checkpoint, Statistics};
use erank_core::tags::ANSWER_ONLY_PREFIX;
use erank_core::testing::conformance;
use erank_core::{
    AnswerFormat, CancellationToken, Mode, PromptTemplate, ScoringBackend, ScoringOptions, Sink,
};
use erank_core::{Completion, DocumentError, Job, TokenCounts};

/// A query for [`DOCUMENTS`].
pub const QUERY: &str = "noise of jet engines";

/// Returns a query of which the bundled model thinks longer than a cache of 16 blocks allows for all of [`DOCUMENTS`].
pub fn long_query() -> String {
    "noise of jet engines measured near trams in the city at night with oil and salt ".repeat(3)
}

/// Documents of different lengths; some are relevant to [`QUERY`].
pub const DOCUMENTS: [&str; 6] = [
    "The noise of a jet engine was measured at several distances.",
    "A recipe for bread with little salt.",
    "Jet engines are loud.",
    "Engine oil must be changed every year; a noisy engine may lack oil, and oil is cheap.",
    "x",
    "The council met on Tuesday to discuss the noise of trams in the inner city at night.",
];

/// Returns ERank's prompt in answer-only mode as a whole prompt with bare answers, in the bundled model's chat
/// template.
///
/// # Panics
/// Never panics, because the text has all placeholders.
pub fn whole_erank_prompt() -> PromptTemplate {
    let message = PromptTemplate::erank();
    let message = message.bind("{instruction}", "{query}").render("{doc}");
    let text = format!(
        "<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n{ANSWER_ONLY_PREFIX}"
    );
    PromptTemplate::whole(text, AnswerFormat::zero_to_ten().bare()).expect("all placeholders")
}

/// The instruction of [`run`].
pub const INSTRUCTION: &str = "Retrieve relevant documents for the query.";

/// Bytes of one cache block of the bundled model: layers × (keys and values) × KV heads × dimensions × tokens
/// × bytes of a BF16 value.
pub const BLOCK_BYTES: usize = 4 * 2 * 3 * 64 * 16 * 2;

/// Returns the bundled model with the default settings, which is loaded once per process.
pub fn tiny() -> &'static CandleBackend {
    static TINY: OnceLock<CandleBackend> = OnceLock::new();
    TINY.get_or_init(|| CandleBackend::tiny().expect("the bundled model"))
}

/// Checks the contract of a backend on candle's own operations. Their order of summation depends on the shapes, so an
/// answer's last bits depend on the batch.
pub fn conformance_without_kernels(backend: &dyn ScoringBackend) -> conformance::Report {
    let mut options = conformance::Options::default();
    options.large_job_documents = 100;
    options.deterministic = false;
    options.scoring.mode = Mode::Reason { max_tokens: 8 };
    conformance::check(backend, &options)
}

/// Loads the bundled model with other settings.
pub fn tiny_with(change: impl FnOnce(&mut CandleSettings)) -> CandleBackend {
    let mut settings = CandleSettings::default();
    change(&mut settings);
    CandleBackend::load(&Checkpoint::tiny(), &settings).expect("the bundled model")
}

/// Returns the logits after the last of `tokens`.
///
/// # Panics
/// Panics if the model fails.
pub fn last_logits(model: &dyn Model, tokens: &[u32]) -> Vec<f32> {
    let mut allocator = BlockAllocator::new(tokens.len().div_ceil(16));
    let cache = model.new_cache(allocator.blocks()).expect("a cache");
    let blocks: Vec<_> = std::iter::from_fn(|| allocator.allocate()).collect();
    let row = Row { tokens, position: 0, blocks: &blocks, logits: 1 };
    model.forward(&[row], &cache).expect("a forward pass")
}

/// Waits until the engine is idle and returns its statistics. A caller gets its last result before the engine
/// has removed the call.
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

/// Returns the default options with another mode.
pub fn options(mode: Mode) -> ScoringOptions {
    let mut options = ScoringOptions::default();
    options.mode = mode;
    options
}

/// A mode with more tokens than the bundled model's thoughts need.
pub const REASON: Mode = Mode::Reason { max_tokens: 100 };

/// A sink that keeps the outcomes of each document.
#[derive(Default)]
pub struct Outcomes {
    /// Each document's outcomes in the order of arrival.
    pub by_document: Vec<Vec<Result<Completion, DocumentError>>>,
    /// The tokens of all documents together.
    pub tokens: TokenCounts,
}

impl Outcomes {
    /// Creates a sink for `documents` documents.
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

/// Scores `documents` for `query`, and asserts that each has as many outcomes as the options ask for.
pub fn outcomes(
    backend: &dyn ScoringBackend,
    query: &str,
    documents: &[&str],
    options: ScoringOptions,
    cancellation: CancellationToken,
) -> Outcomes {
    let mut outcomes = Outcomes::new(documents.len());
    let template = PromptTemplate::erank();
    let prompt = template.bind(INSTRUCTION, query);
    let job = Job::new(prompt, documents).with_options(options).with_cancellation(cancellation);
    backend.score(&job, &mut outcomes).expect("a run");
    for (index, reported) in outcomes.by_document.iter().enumerate() {
        assert_eq!(reported.len(), options.samples, "outcomes of document {index}");
    }
    outcomes
}

/// Scores `documents` for [`QUERY`] with one sample each, and returns each document's outcome and the tokens.
pub fn run(
    backend: &dyn ScoringBackend,
    documents: &[&str],
    options: ScoringOptions,
    cancellation: CancellationToken,
) -> (Vec<Result<Completion, DocumentError>>, TokenCounts) {
    let outcomes = outcomes(backend, QUERY, documents, options, cancellation);
    (outcomes.by_document.into_iter().flatten().collect(), outcomes.tokens)
}

/// Scores `documents` for [`QUERY`], and returns their completions.
///
/// # Panics
/// Panics if a document has an error.
pub fn completions(
    backend: &dyn ScoringBackend,
    documents: &[&str],
    options: ScoringOptions,
) -> Vec<Completion> {
    samples(backend, QUERY, documents, options).into_iter().flatten().collect()
}

/// Scores `documents` for `query`, and returns each document's samples in their order.
///
/// # Panics
/// Panics if a document has an error.
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
