//! Tests the engine's tracing spans, and that it recovers from a step that panics. A subscriber serves the
//! whole process, so both tests share one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use erank_candle::CandleBackend;
use erank_core::{BackendError, Job};
use erank_core::{Mode, PromptTemplate, ScoringBackend};
use erank_tests::local::{
    DOCUMENTS, Outcomes, QUERY, REASON, completions, idle, options, tiny_with,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The numeric fields of a span.
type Numbers = Vec<(String, u64)>;

/// The spans so far, with their names.
static SPANS: Mutex<Vec<(String, Numbers)>> = Mutex::new(Vec::new());
/// Whether the next step panics.
static PANIC: AtomicBool = AtomicBool::new(false);
/// Serialises the tests.
static TURN: Mutex<()> = Mutex::new(());

/// Records spans in [`SPANS`], and panics at a step if [`PANIC`] is set.
struct Collector;

#[derive(Default)]
struct Fields(Numbers);

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name().to_owned(), value));
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("erank_candle")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let name = span.metadata().name();
        if name == "step" && PANIC.swap(false, Ordering::SeqCst) {
            panic!("on purpose");
        }
        let mut fields = Fields::default();
        span.record(&mut fields);
        SPANS.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), fields.0));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Installs the [`Collector`].
fn listen() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| tracing::subscriber::set_global_default(Collector).expect("the first"));
}

/// Returns the fields of all spans with this name.
fn spans(name: &str) -> Vec<Numbers> {
    let spans = SPANS.lock().unwrap_or_else(PoisonError::into_inner);
    spans.iter().filter(|(other, _)| other == name).map(|(_, fields)| fields.clone()).collect()
}

#[test]
fn spans_cover_jobs_and_steps() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    listen();
    SPANS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let backend = tiny_with(|_| {});
    completions(&backend, &DOCUMENTS, options(Mode::AnswerOnly));
    assert_eq!(spans("score"), [[("documents".to_owned(), DOCUMENTS.len() as u64)]]);
    let steps = spans("step");
    assert!(!steps.is_empty() && steps.len() as u64 == idle(&backend).steps);
    let sum = |name: &str| -> u64 {
        steps.iter().flatten().filter(|(field, _)| field == name).map(|(_, value)| value).sum()
    };
    assert!(sum("rows") >= DOCUMENTS.len() as u64, "{steps:?}");
    assert!(sum("tokens") > sum("rows"), "{steps:?}");
}

#[test]
fn panicking_step_fails_its_own_callers_only() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    listen();
    let backend: CandleBackend = tiny_with(|_| {});
    let expected = completions(&backend, &DOCUMENTS, options(REASON));
    for _ in 0..3 {
        PANIC.store(true, Ordering::SeqCst);
        let template = PromptTemplate::erank();
        let job = Job::new(template.bind("i", QUERY), &DOCUMENTS).with_options(options(REASON));
        let result = backend.score(&job, &mut Outcomes::new(DOCUMENTS.len()));
        let Err(BackendError::Failed(cause)) = result else { panic!("{result:?}") };
        assert!(cause.to_string().contains("on purpose"), "{cause}");
        assert_eq!(completions(&backend, &DOCUMENTS, options(REASON)), expected);
    }
    idle(&backend);
}
