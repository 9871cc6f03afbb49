//! Tests of the conformance checks. A backend that keeps the contract passes, and a backend with a fault
//! fails the check for that fault.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use erank_core::testing::conformance::{Check, Options, Report, Verdict, check};
use erank_core::testing::{ScriptedBackend, answered};
use erank_core::{AnswerDistribution, Mode, PromptTemplate, ScoringBackend, Sink};
use erank_core::{BackendError, Completion, DocumentError, Job, TokenCounts};

/// A fault of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Not a fault, because results may come in any order.
    Backwards,
    OmitsTheLast,
    ReportsTwice,
    ReportsAnUnknown,
    WritesNoAnswer,
    ReturnsNaN,
    ReturnsRangesOutsideTheText,
    EndsReasoningOutsideTheText,
    HasNoDistribution,
    FailsWithABlankDocument,
    PanicsAtZeroBytes,
    ShiftsAfterABlankDocument,
    HasNoLimits,
    LimitsOnlyDocuments,
    CannotCountTokens,
    CountsCharacters,
    SplitsCharacters,
    CountsTooMany,
    NumbersNoSamples,
    FailsWithoutDocuments,
    OmitsFromTheHundredth,
    StartsDespiteCancellation,
    ChecksCancellationOnce,
    CancelsLate,
    ReportsCancellationAsFailure,
    MixesConcurrentCalls,
    LeavesALockPoisoned,
    DependsOnEarlierCalls,
    CannotAnswerOnly,
    CannotSample,
    CannotReason,
    IgnoresBareAnswers,
}

/// A backend that answers with the number of the document's words that occur in the query.
struct Overlap {
    fault: Fault,
    calls: AtomicUsize,
    running: AtomicUsize,
    lock: Mutex<()>,
}

impl Overlap {
    fn new(fault: Fault) -> Self {
        let (calls, running) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { fault, calls, running, lock: Mutex::new(()) }
    }

    fn complete(&self, job: &Job<'_>, document: &str) -> Completion {
        let fault = self.fault;
        let (limits, options) = (fault != Fault::HasNoLimits, &job.options);
        let words = |text: &str, most: usize| {
            let most = if limits { most } else { usize::MAX };
            let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
            (words.len() > most, words.into_iter().take(most).collect::<Vec<_>>())
        };
        let limit = match fault {
            Fault::LimitsOnlyDocuments => usize::MAX,
            _ => options.max_query_tokens,
        };
        let (query_truncated, query) = words(job.prompt.query(), limit);
        let (document_truncated, document) = words(document, options.max_document_tokens);
        let mut hits = document.iter().filter(|word| query.contains(word)).count();
        match fault {
            Fault::MixesConcurrentCalls => {
                thread::sleep(Duration::from_millis(1));
                hits += self.running.load(Ordering::SeqCst) - 1;
            }
            Fault::DependsOnEarlierCalls => hits += self.calls.load(Ordering::SeqCst) % 5,
            _ => {}
        }
        let integer = hits.min(10) as u32;
        let mut completion = answered(integer, 0.5);
        match fault {
            Fault::WritesNoAnswer => completion = Completion::new("I would rather not say."),
            Fault::ReturnsNaN => completion.tokens[0].log_prob = f32::NAN,
            Fault::ReturnsRangesOutsideTheText => completion.tokens[0].bytes.end += 100,
            Fault::EndsReasoningOutsideTheText => completion.thought_end = Some(1000),
            _ => {}
        }
        let is_bare = job.prompt.answers().is_bare() && fault != Fault::IgnoresBareAnswers;
        if is_bare {
            completion = Completion::new("");
            completion.push(if integer > 0 { "yes" } else { "no" }, 0.5_f32.ln());
            let probabilities = [0.3_f64; 2].map(f64::ln);
            completion.answer_distribution = AnswerDistribution::new(probabilities).ok();
        } else if fault != Fault::HasNoDistribution {
            let mut probabilities = [0.05f64; 11];
            probabilities[integer as usize] = 0.5;
            completion.answer_distribution =
                AnswerDistribution::new(probabilities.map(f64::ln)).ok();
        }
        (completion.query_truncated, completion.document_truncated) =
            (query_truncated, document_truncated);
        completion
    }

    /// Returns the error of a backend that rejects the job.
    fn refuse(&self, job: &Job<'_>) -> Result<(), BackendError> {
        let unsupported = |what: &str| Err(BackendError::Unsupported(what.into()));
        let failed = |what: &str| Err(BackendError::Failed(what.into()));
        let blank = job.documents.iter().any(|text| text.trim().is_empty());
        match self.fault {
            Fault::FailsWithoutDocuments if job.documents.is_empty() => failed("nothing to do"),
            Fault::FailsWithABlankDocument if blank => failed("a blank document"),
            Fault::CannotAnswerOnly if !job.options.mode.is_reason() => unsupported("thinks"),
            Fault::CannotSample if job.options.samples > 1 => unsupported("one will do"),
            Fault::CannotReason if job.options.mode.is_reason() => unsupported("does not think"),
            _ => Ok(()),
        }
    }

    fn answer(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        self.refuse(job)?;
        let count = job.documents.len();
        let mut order: Vec<usize> = (0..count).collect();
        match self.fault {
            Fault::Backwards => order.reverse(),
            Fault::OmitsTheLast => drop(order.pop()),
            Fault::OmitsFromTheHundredth => order.truncate(100),
            Fault::ReportsTwice => order.extend(0..count.min(1)),
            _ => {}
        }
        let _held = (self.fault == Fault::LeavesALockPoisoned)
            .then(|| self.lock.lock().expect("a lock that is not poisoned"));
        let at_first = job.cancellation.is_cancelled();
        let (mut has_started, mut blanks) = (false, 0);
        for index in order {
            let text = job.documents[index];
            assert!(self.fault != Fault::PanicsAtZeroBytes || !text.contains('\0'), "a zero byte");
            let is_cancelled = match self.fault {
                Fault::ChecksCancellationOnce => at_first,
                Fault::StartsDespiteCancellation => has_started && job.cancellation.is_cancelled(),
                _ => job.cancellation.is_cancelled(),
            };
            has_started = true;
            if self.fault == Fault::CancelsLate && is_cancelled && index + 1 == count {
                thread::sleep(Duration::from_millis(300));
            }
            for sample in 0..job.options.samples {
                let outcome = if self.fault == Fault::ReportsCancellationAsFailure && is_cancelled {
                    Err(DocumentError::Backend("stopped".into()))
                } else if is_cancelled {
                    Err(DocumentError::Cancelled)
                } else if text.trim().is_empty() {
                    blanks += 1;
                    Err(DocumentError::Backend("blank".into()))
                } else {
                    let shifted = self.fault == Fault::ShiftsAfterABlankDocument && blanks > 0;
                    let mut completion = self.complete(job, if shifted { "bees" } else { text });
                    if self.fault != Fault::NumbersNoSamples {
                        completion.sample = sample;
                    }
                    sink.tokens_processed(TokenCounts::new(1, 1));
                    Ok(completion)
                };
                sink.completed(index, outcome);
            }
        }
        if self.fault == Fault::ReportsAnUnknown {
            sink.completed(count, Err(DocumentError::Cancelled));
        }
        Ok(())
    }
}

impl ScoringBackend for Overlap {
    fn name(&self) -> &str {
        "overlap"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(&self.running);
        self.answer(job, sink)
    }

    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        let max_tokens = max_tokens + usize::from(self.fault == Fault::CountsTooMany);
        match self.fault {
            Fault::CannotCountTokens => Err(BackendError::Unsupported("it counts nothing".into())),
            Fault::CountsCharacters => {
                let ends = text.char_indices().map(|(start, c)| start + c.len_utf8());
                Ok(ends.take(max_tokens).collect())
            }
            Fault::SplitsCharacters => Ok((1..=text.len()).take(max_tokens).collect()),
            _ => ScriptedBackend::new([]).token_ends(text, max_tokens),
        }
    }
}

/// Decrements the number of running calls when dropped, also during a panic.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.large_job_documents = 300;
    options
}

fn report(fault: Fault) -> Report {
    let mut options = options();
    if fault == Fault::CancelsLate {
        options.cancellation_timeout = Duration::from_millis(200);
    }
    check(&Overlap::new(fault), &options)
}

#[test]
fn correct_backend_passes_in_any_order() {
    for fault in [Fault::None, Fault::Backwards] {
        let report = report(fault);
        assert!(report.is_conformant(), "{fault:?}\n{report}");
        let passed = |verdict: &Verdict| *verdict == Verdict::Passed;
        assert!(report.findings.iter().all(|finding| passed(&finding.verdict)), "{report}");
        assert_eq!(report.to_string().lines().count(), Check::ALL.len());
    }
}

/// Each of these faults violates one part of the contract, and only the check for it fails.
#[test]
fn faults_fail_only_their_checks() {
    for (fault, expected) in [
        (Fault::HasNoDistribution, &[Check::AnswerOnly][..]),
        (Fault::FailsWithABlankDocument, &[Check::OddDocuments]),
        (Fault::PanicsAtZeroBytes, &[Check::OddDocuments]),
        (Fault::ShiftsAfterABlankDocument, &[Check::OddDocuments]),
        (Fault::HasNoLimits, &[Check::Limits, Check::TokenEnds]),
        (Fault::LimitsOnlyDocuments, &[Check::Limits]),
        (Fault::CountsCharacters, &[Check::TokenEnds]),
        (Fault::SplitsCharacters, &[Check::TokenEnds]),
        (Fault::CountsTooMany, &[Check::TokenEnds]),
        (Fault::NumbersNoSamples, &[Check::Samples]),
        (Fault::FailsWithoutDocuments, &[Check::EmptyJob]),
        (Fault::OmitsFromTheHundredth, &[Check::LargeJob, Check::CancelledDuring, Check::Deadline]),
        (Fault::StartsDespiteCancellation, &[Check::CancelledBefore]),
        (Fault::ChecksCancellationOnce, &[Check::CancelledDuring, Check::Deadline]),
        (Fault::CancelsLate, &[Check::CancelledDuring, Check::Deadline]),
        (Fault::MixesConcurrentCalls, &[Check::ConcurrentCalls]),
        (Fault::LeavesALockPoisoned, &[Check::PanickingSink]),
        (
            Fault::ReportsCancellationAsFailure,
            &[Check::CancelledBefore, Check::CancelledDuring, Check::Deadline],
        ),
    ] {
        let report = report(fault);
        assert_eq!(report.failed().collect::<Vec<_>>(), expected, "{fault:?}\n{report}");
    }
}

#[test]
fn failure_messages_suggest_a_remedy() {
    for (fault, message) in [
        (
            Fault::HasNoDistribution,
            "distribution over the answers; if the backend does not support this, return BackendError::Unsupported",
        ),
        (
            Fault::NumbersNoSamples,
            "instead of [0, 1]; if the backend does not support this, return BackendError::Unsupported",
        ),
        (Fault::HasNoLimits, "Completion::document_truncated"),
        (Fault::LimitsOnlyDocuments, "Completion::query_truncated"),
    ] {
        let report = report(fault).to_string();
        assert!(report.contains(message), "{report}");
    }
}

/// A fault in every call fails several checks. The first one is the check for that fault.
#[test]
fn general_faults_fail_their_check_first() {
    for (fault, expected, message) in [
        (Fault::OmitsTheLast, Check::ReportedOnce, "document 5 of 6 was reported 0 times"),
        (Fault::ReportsTwice, Check::ReportedOnce, "document 0 of 6 was reported 2 times"),
        (Fault::ReportsAnUnknown, Check::ReportedOnce, "document 6 was reported, of 6 from 0"),
        (Fault::WritesNoAnswer, Check::Readable, "wrote no <answer>"),
        (Fault::ReturnsNaN, Check::Readable, "log-probability NaN"),
        (Fault::ReturnsRangesOutsideTheText, Check::Readable, "do not lie in the text"),
        (Fault::EndsReasoningOutsideTheText, Check::Readable, "does not lie in the text"),
        (Fault::DependsOnEarlierCalls, Check::OddDocuments, "set Options::deterministic to false"),
        (Fault::CannotReason, Check::ReportedOnce, "does not think; set Options::scoring"),
    ] {
        let report = report(fault);
        assert_eq!(report.failed().next(), Some(expected), "{fault:?}\n{report}");
        assert!(report.to_string().contains(message), "{fault:?}\n{report}");
    }
    assert!(report(Fault::DependsOnEarlierCalls).failed().any(|check| check == Check::Repeatable));
}

#[test]
fn unsupported_checks_are_skipped() {
    let skipped = |report: &Report| {
        let skipped = |verdict: &Verdict| matches!(verdict, Verdict::Skipped(_));
        let findings = report.findings.iter().filter(|finding| skipped(&finding.verdict));
        findings.map(|finding| finding.check).collect::<Vec<_>>()
    };
    for (fault, expected) in [
        (Fault::CannotAnswerOnly, Check::AnswerOnly),
        (Fault::CannotCountTokens, Check::TokenEnds),
        (Fault::CannotSample, Check::Samples),
    ] {
        let report = report(fault);
        assert!(report.is_conformant(), "{fault:?}\n{report}");
        assert_eq!(skipped(&report), [expected], "{fault:?}\n{report}");
    }

    let mut nondeterministic = options();
    nondeterministic.deterministic = false;
    let report = check(&Overlap::new(Fault::DependsOnEarlierCalls), &nondeterministic);
    assert!(report.is_conformant(), "{report}");
    assert_eq!(skipped(&report), [Check::Repeatable]);

    let mut answer_only = options();
    answer_only.scoring.mode = Mode::AnswerOnly;
    let report = check(&Overlap::new(Fault::CannotReason), &answer_only);
    assert!(report.is_conformant(), "{report}");
    assert_eq!(skipped(&report), [Check::Samples]);

    let mut bare = options();
    bare.template = PromptTemplate::qwen3_reranker();
    let report = check(&Overlap::new(Fault::CannotReason), &bare);
    assert!(report.is_conformant(), "{report}");
    assert_eq!(skipped(&report), [Check::Samples]);
    let report = check(&Overlap::new(Fault::IgnoresBareAnswers), &bare);
    assert!(report.failed().any(|failed| failed == Check::Readable), "{report}");
}

#[test]
fn insufficient_options_are_reported() {
    let mut single = options();
    single.documents.truncate(1);
    let report = check(&Overlap::new(Fault::None), &single);
    assert_eq!(report.failed().count(), Check::ALL.len());
    assert!(report.to_string().contains("Options::documents is 1; give at least 2"), "{report}");

    // No document remains to be cancelled.
    let mut few = options();
    few.documents.truncate(2);
    few.large_job_documents = 2;
    let report = check(&Overlap::new(Fault::StartsDespiteCancellation), &few);
    assert_eq!(report.failed().collect::<Vec<_>>(), [Check::CancelledBefore], "{report}");
}

#[test]
fn pointers_to_backends_pass() {
    let boxed: Box<dyn ScoringBackend> = Box::new(Overlap::new(Fault::None));
    assert!(check(&boxed, &options()).is_conformant());
    assert!(check(&std::sync::Arc::new(boxed), &options()).is_conformant());
}
