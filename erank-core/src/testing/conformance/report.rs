//! The results of a conformance check.

use std::fmt;

use super::checks::Check;

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The check found no violation.
    Passed,
    /// The backend violates the contract. The text says how.
    Failed(String),
    /// The check does not apply. The text says why.
    Skipped(String),
}

/// A check with its result.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The check.
    pub check: Check,
    /// The check's result.
    pub verdict: Verdict,
}

/// The results of all checks. Its text has one line for each check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The results, in the order of [`Check::ALL`].
    pub findings: Vec<Finding>,
}

impl Report {
    /// Returns whether no check failed.
    pub fn is_conformant(&self) -> bool {
        self.failed().next().is_none()
    }

    /// Returns the checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = Check> {
        let failed = |finding: &&Finding| matches!(finding.verdict, Verdict::Failed(_));
        self.findings.iter().filter(failed).map(|finding| finding.check)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { check, verdict } in &self.findings {
            match verdict {
                Verdict::Passed => writeln!(f, "passed   {check}")?,
                Verdict::Failed(reason) => writeln!(f, "FAILED   {check}: {reason}")?,
                Verdict::Skipped(reason) => writeln!(f, "skipped  {check}: {reason}")?,
            }
        }
        Ok(())
    }
}
