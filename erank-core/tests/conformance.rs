//! The conformance checks pass a backend that keeps the contract, and each of them fails one that
//! breaks it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use erank_core::testing::answered;
use erank_core::testing::conformance::{Check, Options, Report, Verdict, check};
use erank_core::{AnswerDistribution, Mode, ScoringBackend, Sink};
use erank_core::{BackendError, Completion, DocumentError, Job, TokenCounts};

/// What a backend does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// None either: any order will do.
    Backwards,
    ForgetsTheLast,
    ReportsTwice,
    ReportsAnUnknown,
    WritesNoAnswer,
    GivesNaN,
    GivesRangesBeyondTheText,
    EndsItsThoughtBeyondTheText,
    HasNoDistribution,
    FailsWithABlankDocument,
    PanicsAtZeroBytes,
    LosesCountAfterABlankDocument,
    HasNoLimits,
    LimitsOnlyDocuments,
    NumbersNoSamples,
    FailsWithoutDocuments,
    ForgetsFromTheHundredth,
    StopsAfterTheFirst,
    LooksForAStopOnce,
    StopsLate,
    CallsAStopAFailure,
    MixesUpCalls,
    LeavesALockPoisoned,
    ForgetsThePrompt,
    CannotAnswerAtOnce,
    CannotSample,
    CannotThink,
}

/// Answers with the number of a document's words that are in the query.
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
            Fault::MixesUpCalls => {
                thread::sleep(Duration::from_millis(1));
                hits += self.running.load(Ordering::SeqCst) - 1;
            }
            Fault::ForgetsThePrompt => hits += self.calls.load(Ordering::SeqCst) % 5,
            _ => {}
        }
        let integer = hits.min(10) as u32;
        let mut completion = answered(integer, 0.5);
        match fault {
            Fault::WritesNoAnswer => completion = Completion::new("I would rather not say."),
            Fault::GivesNaN => completion.tokens[0].log_prob = f32::NAN,
            Fault::GivesRangesBeyondTheText => completion.tokens[0].bytes.end += 100,
            Fault::EndsItsThoughtBeyondTheText => completion.thought_end = Some(1000),
            _ => {}
        }
        if fault != Fault::HasNoDistribution {
            let mut shares = [0.05f64; 11];
            shares[integer as usize] = 0.5;
            completion.answer_distribution = AnswerDistribution::new(shares.map(f64::ln)).ok();
        }
        (completion.query_truncated, completion.document_truncated) =
            (query_truncated, document_truncated);
        completion
    }

    /// What is wrong with a whole job.
    fn refuse(&self, job: &Job<'_>) -> Result<(), BackendError> {
        let unsupported = |what: &str| Err(BackendError::Unsupported(what.into()));
        let failed = |what: &str| Err(BackendError::Failed(what.into()));
        let blank = job.documents.iter().any(|text| text.trim().is_empty());
        match self.fault {
            Fault::FailsWithoutDocuments if job.documents.is_empty() => failed("nothing to do"),
            Fault::FailsWithABlankDocument if blank => failed("a blank document"),
            Fault::CannotAnswerAtOnce if !job.options.mode.is_reason() => unsupported("thinks"),
            Fault::CannotSample if job.options.samples > 1 => unsupported("one will do"),
            Fault::CannotThink if job.options.mode.is_reason() => unsupported("does not think"),
            _ => Ok(()),
        }
    }

    fn answer(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        self.refuse(job)?;
        let count = job.documents.len();
        let mut order: Vec<usize> = (0..count).collect();
        match self.fault {
            Fault::Backwards => order.reverse(),
            Fault::ForgetsTheLast => drop(order.pop()),
            Fault::ForgetsFromTheHundredth => order.truncate(100),
            Fault::ReportsTwice => order.extend(0..count.min(1)),
            _ => {}
        }
        let _held = (self.fault == Fault::LeavesALockPoisoned)
            .then(|| self.lock.lock().expect("a lock that is not poisoned"));
        let at_first = job.cancellation.is_cancelled();
        let (mut begun, mut blanks) = (false, 0);
        for index in order {
            let text = job.documents[index];
            assert!(self.fault != Fault::PanicsAtZeroBytes || !text.contains('\0'), "a zero byte");
            let stopped = match self.fault {
                Fault::LooksForAStopOnce => at_first,
                Fault::StopsAfterTheFirst => begun && job.cancellation.is_cancelled(),
                _ => job.cancellation.is_cancelled(),
            };
            begun = true;
            if self.fault == Fault::StopsLate && stopped && index + 1 == count {
                thread::sleep(Duration::from_millis(300));
            }
            for sample in 0..job.options.samples {
                let outcome = if self.fault == Fault::CallsAStopAFailure && stopped {
                    Err(DocumentError::Backend("stopped".into()))
                } else if stopped {
                    Err(DocumentError::Cancelled)
                } else if text.trim().is_empty() {
                    blanks += 1;
                    Err(DocumentError::Backend("blank".into()))
                } else {
                    let shifted = self.fault == Fault::LosesCountAfterABlankDocument && blanks > 0;
                    let mut completion = self.complete(job, if shifted { "bees" } else { text });
                    if self.fault != Fault::NumbersNoSamples {
                        completion.sample = sample;
                    }
                    sink.advanced(TokenCounts::new(1, 1));
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
}

/// Counts a call until it ends, if by a panic.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.many = 300;
    options
}

fn report(fault: Fault) -> Report {
    let mut options = options();
    if fault == Fault::StopsLate {
        options.patience = Duration::from_millis(200);
    }
    check(&Overlap::new(fault), &options)
}

#[test]
fn a_backend_that_keeps_the_contract_passes_in_any_order() {
    for fault in [Fault::None, Fault::Backwards] {
        let report = report(fault);
        assert!(report.is_conformant(), "{fault:?}\n{report}");
        let passed = |verdict: &Verdict| *verdict == Verdict::Passed;
        assert!(report.findings.iter().all(|finding| passed(&finding.verdict)), "{report}");
        assert_eq!(report.to_string().lines().count(), Check::ALL.len());
    }
}

/// Each of these breaks the contract in one place, and just its check fails.
#[test]
fn each_check_fails_the_backend_that_breaks_it() {
    for (fault, expected) in [
        (Fault::HasNoDistribution, &[Check::AnswerOnly][..]),
        (Fault::FailsWithABlankDocument, &[Check::OddDocuments]),
        (Fault::PanicsAtZeroBytes, &[Check::OddDocuments]),
        (Fault::LosesCountAfterABlankDocument, &[Check::OddDocuments]),
        (Fault::HasNoLimits, &[Check::Limits]),
        (Fault::LimitsOnlyDocuments, &[Check::Limits]),
        (Fault::NumbersNoSamples, &[Check::Samples]),
        (Fault::FailsWithoutDocuments, &[Check::EmptyJob]),
        (Fault::ForgetsFromTheHundredth, &[Check::HugeJob, Check::StoppedDuring, Check::Deadline]),
        (Fault::StopsAfterTheFirst, &[Check::StoppedBefore]),
        (Fault::LooksForAStopOnce, &[Check::StoppedDuring, Check::Deadline]),
        (Fault::StopsLate, &[Check::StoppedDuring, Check::Deadline]),
        (Fault::MixesUpCalls, &[Check::ConcurrentCalls]),
        (Fault::LeavesALockPoisoned, &[Check::PanickingSink]),
        (Fault::CallsAStopAFailure, &[Check::StoppedBefore, Check::StoppedDuring, Check::Deadline]),
    ] {
        let report = report(fault);
        assert_eq!(report.failed().collect::<Vec<_>>(), expected, "{fault:?}\n{report}");
    }
}

#[test]
fn a_failure_says_what_to_do() {
    for (fault, says) in [
        (
            Fault::HasNoDistribution,
            "distribution over the answers; what a backend cannot do, it returns as BackendError::Unsupported",
        ),
        (
            Fault::NumbersNoSamples,
            "instead of [0, 1]; what a backend cannot do, it returns as BackendError::Unsupported",
        ),
        (Fault::HasNoLimits, "Completion::document_truncated"),
        (Fault::LimitsOnlyDocuments, "Completion::query_truncated"),
    ] {
        let report = report(fault).to_string();
        assert!(report.contains(says), "{report}");
    }
}

/// What is wrong in every call fails more than its own check.
#[test]
fn what_is_always_wrong_is_found_first_where_it_belongs() {
    for (fault, expected, says) in [
        (Fault::ForgetsTheLast, Check::ReportedOnce, "document 5 of 6 was reported 0 times"),
        (Fault::ReportsTwice, Check::ReportedOnce, "document 0 of 6 was reported 2 times"),
        (Fault::ReportsAnUnknown, Check::ReportedOnce, "document 6 was reported, of 6 from 0"),
        (Fault::WritesNoAnswer, Check::Readable, "wrote no <answer>"),
        (Fault::GivesNaN, Check::Readable, "log-probability NaN"),
        (Fault::GivesRangesBeyondTheText, Check::Readable, "do not lie in the text"),
        (Fault::EndsItsThoughtBeyondTheText, Check::Readable, "does not lie in the text"),
        (Fault::ForgetsThePrompt, Check::OddDocuments, "set Options::deterministic to false"),
        (Fault::CannotThink, Check::ReportedOnce, "does not think; set Options::scoring"),
    ] {
        let report = report(fault);
        assert_eq!(report.failed().next(), Some(expected), "{fault:?}\n{report}");
        assert!(report.to_string().contains(says), "{fault:?}\n{report}");
    }
    assert!(report(Fault::ForgetsThePrompt).failed().any(|check| check == Check::Repeatable));
}

#[test]
fn what_a_backend_declines_is_skipped() {
    let skipped = |report: &Report| {
        let skipped = |verdict: &Verdict| matches!(verdict, Verdict::Skipped(_));
        let findings = report.findings.iter().filter(|finding| skipped(&finding.verdict));
        findings.map(|finding| finding.check).collect::<Vec<_>>()
    };
    for (fault, expected) in
        [(Fault::CannotAnswerAtOnce, Check::AnswerOnly), (Fault::CannotSample, Check::Samples)]
    {
        let report = report(fault);
        assert!(report.is_conformant(), "{fault:?}\n{report}");
        assert_eq!(skipped(&report), [expected], "{fault:?}\n{report}");
    }

    let mut loose = options();
    loose.deterministic = false;
    let report = check(&Overlap::new(Fault::ForgetsThePrompt), &loose);
    assert!(report.is_conformant(), "{report}");
    assert_eq!(skipped(&report), [Check::Repeatable]);

    let mut at_once = options();
    at_once.scoring.mode = Mode::AnswerOnly;
    let report = check(&Overlap::new(Fault::CannotThink), &at_once);
    assert!(report.is_conformant(), "{report}");
    assert_eq!(skipped(&report), [Check::Samples]);
}

#[test]
fn options_that_check_nothing_are_named() {
    let mut none = options();
    none.documents.truncate(1);
    let report = check(&Overlap::new(Fault::None), &none);
    assert_eq!(report.failed().count(), Check::ALL.len());
    assert!(report.to_string().contains("Options::documents is 1; give at least 2"), "{report}");

    // Nothing is left to stop.
    let mut few = options();
    few.documents.truncate(2);
    few.many = 2;
    let report = check(&Overlap::new(Fault::StopsAfterTheFirst), &few);
    assert_eq!(report.failed().collect::<Vec<_>>(), [Check::StoppedBefore], "{report}");
}

/// Pointers to backends are backends.
#[test]
fn so_do_pointers() {
    let boxed: Box<dyn ScoringBackend> = Box::new(Overlap::new(Fault::None));
    assert!(check(&boxed, &options()).is_conformant());
    assert!(check(&std::sync::Arc::new(boxed), &options()).is_conformant());
}
