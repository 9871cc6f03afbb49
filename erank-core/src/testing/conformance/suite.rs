//! Calls of the backend under test, and the checks of their results.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::options::Options;
use crate::answer::AnswerProbability;
use crate::backend::{BackendError, DocumentError, Job, ScoringBackend, Sink};
use crate::cancellation::CancellationToken;
use crate::completion::{Completion, GeneratedToken, TokenCounts};
use crate::error::{AnswerError, chain, panic_message};
use crate::options::ScoringOptions;

/// The reason that a check does not pass.
pub(super) enum Failure {
    /// The backend violates the contract.
    Violation(String),
    /// The backend returned [`BackendError::Unsupported`].
    Unsupported(String),
    /// The check does not apply.
    Skip(&'static str),
}

/// Returns a violation of the contract.
pub(super) fn violation<T>(reason: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Violation(reason.into()))
}

pub(super) type Outcome = Result<Completion, DocumentError>;

/// A sink that stores the outcomes and calls a function for every event.
struct Recorder<'a> {
    /// For each document, its outcomes.
    outcomes: Vec<Vec<Outcome>>,
    /// A reported index that is out of range.
    unknown: Option<usize>,
    on_event: &'a mut dyn FnMut(),
}

impl Sink for Recorder<'_> {
    fn completed(&mut self, index: usize, outcome: Outcome) {
        match self.outcomes.get_mut(index) {
            Some(outcomes) => outcomes.push(outcome),
            None => self.unknown = Some(index),
        }
        (self.on_event)();
    }

    fn tokens_processed(&mut self, _: TokenCounts) {
        (self.on_event)();
    }
}

/// A call of the backend.
pub(super) struct Call<'a> {
    pub(super) query: &'a str,
    pub(super) documents: &'a [&'a str],
    pub(super) scoring: ScoringOptions,
    pub(super) cancellation: CancellationToken,
}

/// A backend under test with the options of the checks.
pub(super) struct Suite<'a> {
    pub(super) backend: &'a dyn ScoringBackend,
    pub(super) options: &'a Options,
}

impl<'s> Suite<'s> {
    pub(super) fn new(backend: &'s dyn ScoringBackend, options: &'s Options) -> Self {
        Self { backend, options }
    }

    /// Checks that the options suffice for meaningful checks.
    pub(super) fn check_options(&self) -> Result<(), Failure> {
        let Options { documents, large_job_documents, concurrent_calls, scoring, .. } =
            self.options;
        let minimums = [
            ("documents", documents.len(), 2),
            ("large_job_documents", *large_job_documents, 2),
            ("concurrent_calls", *concurrent_calls, 2),
            ("scoring.samples", scoring.samples, 1),
        ];
        match minimums.into_iter().find(|(_, given, least)| given < least) {
            Some((name, given, least)) => {
                violation(format!("Options::{name} is {given}; give at least {least}"))
            }
            None => Ok(()),
        }
    }

    /// Returns the ordinary documents.
    pub(super) fn documents(&self) -> Vec<&str> {
        self.options.documents.iter().map(String::as_str).collect()
    }

    /// Returns the documents of the large job.
    pub(super) fn large_job_documents(&self) -> Vec<&str> {
        self.documents().into_iter().cycle().take(self.options.large_job_documents).collect()
    }

    /// Returns a call with the configured query and options.
    pub(super) fn call<'a>(&'a self, documents: &'a [&'a str]) -> Call<'a> {
        let Options { query, scoring, .. } = self.options;
        Call { query, documents, scoring: *scoring, cancellation: CancellationToken::new() }
    }

    pub(super) fn job<'a>(&'a self, call: &Call<'a>) -> Job<'a> {
        let template = &self.options.template;
        let prompt = template.bind(template.default_instruction(), call.query);
        Job::new(prompt, call.documents)
            .with_options(call.scoring)
            .with_cancellation(call.cancellation.clone())
    }

    /// Calls the backend and checks that it reports every document once for each sample.
    pub(super) fn run(
        &self,
        call: &Call<'_>,
        on_event: &mut dyn FnMut(),
    ) -> Result<Vec<Vec<Outcome>>, Failure> {
        let job = self.job(call);
        let mut outcomes = Vec::new();
        outcomes.resize_with(call.documents.len(), Vec::new);
        let mut recorder = Recorder { outcomes, unknown: None, on_event };
        let score = AssertUnwindSafe(|| self.backend.score(&job, &mut recorder));
        match catch_unwind(score) {
            Ok(Ok(())) => {}
            Ok(Err(error @ BackendError::Unsupported(_))) => {
                return Err(Failure::Unsupported(chain(&error)));
            }
            Ok(Err(error)) => return violation(format!("the call failed: {}", chain(&error))),
            Err(panic) => {
                return violation(format!("the call panicked: {}", panic_message(&*panic)));
            }
        }
        let count = call.documents.len();
        if let Some(index) = recorder.unknown {
            return violation(format!("document {index} was reported, of {count} from 0"));
        }
        for (index, outcomes) in recorder.outcomes.iter().enumerate() {
            let (found, wanted) = (outcomes.len(), call.scoring.samples);
            if found != wanted {
                return violation(format!(
                    "document {index} of {count} was reported {found} times instead of {wanted}"
                ));
            }
        }
        Ok(recorder.outcomes)
    }

    /// Calls the backend and returns the completions. Every document must have an answer.
    pub(super) fn answers(&self, call: &Call<'_>) -> Result<Vec<Completion>, Failure> {
        let outcomes = self.run(call, &mut || {})?;
        let all = outcomes.into_iter().enumerate().flat_map(|(index, outcomes)| {
            outcomes.into_iter().map(move |outcome| match outcome {
                Ok(completion) => Ok(completion),
                Err(error) => {
                    violation(format!("document {index} has no answer: {}", chain(&error)))
                }
            })
        });
        all.collect()
    }

    /// Checks the ranges and numbers of a completion. A completion without an answer is a violation only
    /// with `must_answer`.
    pub(super) fn check_completion(
        &self,
        completion: &Completion,
        must_answer: bool,
    ) -> Result<(), Failure> {
        let Completion { text, tokens, .. } = completion;
        let is_in_text = |token: &&GeneratedToken| {
            token.bytes.start <= token.bytes.end && text.get(token.bytes.clone()).is_some()
        };
        if let Some(token) = tokens.iter().find(|token| !is_in_text(token)) {
            let bytes = &token.bytes;
            return violation(format!("a token's bytes {bytes:?} do not lie in the text {text:?}"));
        }
        if let Some(end) = completion.thought_end.filter(|end| !text.is_char_boundary(*end)) {
            return violation(format!("the thought's end {end} does not lie in the text {text:?}"));
        }
        // Rounding can put a log-probability slightly above 0.
        let is_valid = |log_prob: f32| log_prob <= 1e-3;
        if let Some(token) = tokens.iter().find(|token| !is_valid(token.log_prob)) {
            let (bytes, log_prob) = (&token.bytes, token.log_prob);
            return violation(format!("the token at {bytes:?} has log-probability {log_prob}"));
        }
        for probability in [AnswerProbability::Joint, AnswerProbability::FirstToken] {
            match self.options.template.answers().parse(completion, probability) {
                Ok(answer) => {
                    let probability = answer.probability;
                    if probability.is_some_and(|p| !(0.0..=1.0 + 1e-3).contains(&p)) {
                        return violation(format!("{text:?} has probability {probability:?}"));
                    }
                    let numbers = [answer.expected_value, answer.variance, answer.entropy];
                    if numbers.into_iter().flatten().any(|number| !number.is_finite()) {
                        return violation(format!(
                            "{text:?} has a distribution that is not finite"
                        ));
                    }
                }
                Err(error @ AnswerError::InvalidProbability) => {
                    return violation(format!("{text:?}: {error}"));
                }
                Err(error) if must_answer => return violation(format!("{text:?}: {error}")),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Checks that the completions `found` of the documents at `indices` equal the `expected` ones of all
    /// documents. Does nothing for a backend that is not deterministic.
    pub(super) fn check_same(
        &self,
        found: &[Completion],
        indices: impl IntoIterator<Item = usize>,
        expected: &[Completion],
        when: &str,
    ) -> Result<(), Failure> {
        if !self.options.deterministic {
            return Ok(());
        }
        // The token counts may differ because of a cache.
        let answer = |completion: &Completion| Completion {
            usage: Default::default(),
            ..completion.clone()
        };
        let samples = self.options.scoring.samples;
        let sorted = |completions: &[Completion]| {
            let mut completions: Vec<_> = completions.iter().map(answer).collect();
            completions.sort_by_key(|completion| completion.sample);
            completions
        };
        for (found, index) in found.chunks(samples).zip(indices) {
            let expected = sorted(&expected[index * samples..][..samples]);
            let found = sorted(found);
            if found != expected {
                return violation(format!(
                    "document {index} has another answer {when}: {:?} instead of {:?}; if that is \
                     intended, set Options::deterministic to false",
                    found[0].text, expected[0].text
                ));
            }
        }
        Ok(())
    }
}

/// Describes an outcome for a message.
pub(super) fn described(outcome: &Outcome) -> String {
    match outcome {
        Ok(completion) => format!("the completion {:?}", completion.text),
        Err(error) => format!("the error {:?}", chain(error)),
    }
}
