//! Conformance checks. One call checks whether a backend keeps the contract of [`ScoringBackend`].
//!
//! ```
//! use erank_core::testing::conformance::{Check, Options, check};
//! use erank_core::testing::{ScriptedBackend, answered};
//!
//! // The scripted backend has neither distributions nor limits. For a complete backend, use
//! // `assert!(report.is_conformant(), "{report}")`.
//! let backend = ScriptedBackend::new(vec![answered(7, 0.5); 200]);
//! let mut options = Options::default();
//! options.large_job_documents = 100;
//! let report = check(&backend, &options);
//! assert_eq!(report.failed().collect::<Vec<_>>(), [Check::AnswerOnly, Check::Limits, Check::TokenEnds], "{report}");
//! ```

mod checks;
mod options;
mod report;
mod suite;

pub use checks::Check;
pub use options::Options;
pub use report::{Finding, Report, Verdict};

use crate::backend::ScoringBackend;
use suite::{Failure, Suite};

/// Runs all checks on `backend`. Every check runs, even if others fail. The checks call the backend on the
/// current thread, so a backend that hangs makes the test hang.
pub fn check(backend: &dyn ScoringBackend, options: &Options) -> Report {
    let suite = Suite::new(backend, options);
    let verdict = |check: Check| match suite.check_options().and_then(|()| check.run(&suite)) {
        Ok(()) => Verdict::Passed,
        Err(Failure::Violation(reason)) => Verdict::Failed(match check {
            Check::AnswerOnly | Check::TokenEnds | Check::Samples => {
                format!(
                    "{reason}; if the backend does not support this, return BackendError::Unsupported"
                )
            }
            _ => reason,
        }),
        Err(Failure::Unsupported(reason)) => match check {
            Check::AnswerOnly | Check::TokenEnds | Check::Samples => Verdict::Skipped(reason),
            _ => Verdict::Failed(format!(
                "{reason}; set Options::scoring to options that the backend supports"
            )),
        },
        Err(Failure::Skip(reason)) => Verdict::Skipped(reason.into()),
    };
    let finding = |check: &Check| Finding { check: *check, verdict: verdict(*check) };
    Report { findings: Check::ALL.iter().map(finding).collect() }
}
