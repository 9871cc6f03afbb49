//! One pass of a backend over documents of a request: its job, and the results that it reports.

use crate::answer::AnswerProbability;
use crate::backend::{BackendError, DocumentError, Job, ScoringBackend, Sink};
use crate::cancellation::CancellationToken;
use crate::completion::{Completion, TokenCounts};
use crate::error::AnswerError;
use crate::options::{ConfigError, ScoringOptions};
use crate::progress::{Progress, ProgressCallback};
use crate::prompt::PromptTemplate;
use crate::ranking::{DocumentFailure, RankedDocument, Sample};
use crate::request::Request;
use crate::score::ScoreKind;

/// The progress over all passes of a request, and the functions that it concerns.
pub(crate) struct ProgressTracker<'a> {
    pub(crate) progress: Progress,
    pub(crate) cancellation: &'a CancellationToken,
    pub(crate) on_progress: Option<&'a ProgressCallback>,
}

impl ProgressTracker<'_> {
    /// Calls the callback and cancels the request if the callback says so.
    fn report(&self) {
        if self.on_progress.is_some_and(|on_progress| on_progress(&self.progress).is_break()) {
            self.cancellation.cancel();
        }
    }
}

/// One pass over some of a request's documents with one set of options.
pub(crate) struct Pass<'a> {
    pub(crate) request: &'a Request<'a>,
    pub(crate) template: &'a PromptTemplate,
    pub(crate) instruction: &'a str,
    pub(crate) options: ScoringOptions,
    pub(crate) probability: AnswerProbability,
    /// The score of an answer. `None` stands for the best estimate of the expected value.
    pub(crate) score: Option<ScoreKind>,
    /// Whether a document without a relevance is an error.
    pub(crate) needs_relevance: bool,
    /// For each document of the pass, its index in the request.
    pub(crate) indices: &'a [usize],
}

/// The results of a pass.
pub(crate) struct PassResults {
    pub(crate) scored: Vec<RankedDocument>,
    pub(crate) unscored: Vec<DocumentFailure>,
    /// The scored documents that lack samples.
    pub(crate) partially_scored: Vec<DocumentFailure>,
    pub(crate) result: Result<(), BackendError>,
}

impl PassResults {
    /// Returns the results of a pass over the documents at `indices` that was refused because of `error`.
    pub(crate) fn refused(request: &Request<'_>, indices: &[usize], error: ConfigError) -> Self {
        let failure = |&index| DocumentFailure::new(request, index, DocumentError::NotReached);
        Self {
            scored: Vec::new(),
            unscored: indices.iter().map(failure).collect(),
            partially_scored: Vec::new(),
            result: Err(BackendError::Unsupported(error.into())),
        }
    }
}

impl Pass<'_> {
    /// Scores the pass's documents with `backend`.
    pub(crate) fn run(
        &self,
        backend: &dyn ScoringBackend,
        tracker: &mut ProgressTracker<'_>,
    ) -> PassResults {
        let texts: Vec<&str> =
            self.indices.iter().map(|&index| self.request.documents[index].text.as_ref()).collect();
        let prompt = self.template.bind(self.instruction, &self.request.query);
        let job = Job::new(prompt, &texts)
            .with_options(self.options)
            .with_cancellation(tracker.cancellation.clone());
        let mut collector = Collector::new(self, tracker);
        let result = if texts.is_empty() { Ok(()) } else { backend.score(&job, &mut collector) };
        self.results(collector.reports, result)
    }

    fn results(&self, reports: Vec<Reports>, result: Result<(), BackendError>) -> PassResults {
        let (mut scored, mut unscored, mut partially_scored) = (Vec::new(), Vec::new(), Vec::new());
        let failure = |index, error| {
            let error = match error {
                DocumentError::NotReported if result.is_err() => DocumentError::NotReached,
                error => error,
            };
            DocumentFailure::new(self.request, index, error)
        };
        for (&index, reports) in self.indices.iter().zip(reports) {
            match self.rank(index, reports) {
                Ok((document, missing)) => {
                    scored.push(document);
                    partially_scored.extend(missing.map(|error| failure(index, error)));
                }
                Err(error) => unscored.push(failure(index, error)),
            }
        }
        PassResults { scored, unscored, partially_scored, result }
    }

    /// Parses a completion. Returns its index among the samples, the sample, and whether the query or
    /// the document was truncated.
    fn read(&self, completion: &Completion) -> Result<(usize, Sample, bool), DocumentError> {
        let answers = self.template.answers();
        let answer = answers.parse(completion, self.probability)?;
        let score = self.score.map_or(Ok(answer.best_estimate()), |kind| kind.score(&answer))?;
        let relevance = match self.score {
            Some(kind) => kind.relevance(&answer, answers),
            None => answers.relevance(answer.expected_value.unwrap_or(answer.integer.into())),
        };
        if self.needs_relevance && relevance.is_none() {
            return Err(AnswerError::NoProbability("distribution over the answers").into());
        }
        let Completion {
            finish_reason, usage: tokens, query_truncated, document_truncated, ..
        } = *completion;
        let sample = Sample { score, relevance, answer, finish_reason, tokens };
        Ok((completion.sample, sample, query_truncated || document_truncated))
    }

    /// Averages a document's samples. The second part of the result is the error of the first missing
    /// sample.
    fn rank(
        &self,
        index: usize,
        reports: Reports,
    ) -> Result<(RankedDocument, Option<DocumentError>), DocumentError> {
        let mut samples = reports.samples;
        samples.sort_by_key(|(number, _)| *number);
        let mut samples: Vec<Sample> = samples.into_iter().map(|(_, sample)| sample).collect();
        let is_complete = samples.len() == self.options.samples;
        let count = samples.len() as f64;
        let score = samples.iter().map(|sample| sample.score).sum::<f64>() / count;
        let relevance: Option<f64> = samples.iter().map(|sample| sample.relevance).sum();
        let distance = |sample: &Sample| (sample.score - score).abs();
        let mut nearest = 0;
        for (candidate, sample) in samples.iter().enumerate() {
            if distance(sample) < distance(&samples[nearest]) {
                nearest = candidate;
            }
        }
        let squares = samples.iter().map(|sample| distance(sample).powi(2)).sum::<f64>();
        let mut tokens = TokenCounts::default();
        samples.iter().for_each(|sample| tokens += sample.tokens);

        let Some(Sample { answer, finish_reason, .. }) = (match self.options.samples {
            1 => samples.pop(),
            _ => samples.get(nearest).cloned(),
        }) else {
            return Err(reports.error.unwrap_or(DocumentError::NotReported));
        };
        let document = &self.request.documents[index];
        let missing = (!is_complete).then(|| reports.error.unwrap_or(DocumentError::NotReported));
        let ranked = RankedDocument {
            index,
            id: document.id.as_deref().map(str::to_owned),
            score,
            relevance: relevance.map(|sum| sum / count),
            relevance_probability: None,
            std_dev: (squares / count).sqrt(),
            answer,
            first_stage_score: document.first_stage_score,
            mode: self.options.mode,
            truncated: reports.truncated,
            finish_reason,
            tokens,
            samples,
        };
        Ok((ranked, missing))
    }
}

/// The sink of a pass.
struct Collector<'a, 'b> {
    pass: &'a Pass<'a>,
    tracker: &'a mut ProgressTracker<'b>,
    /// For each document of the pass, the results reported so far.
    reports: Vec<Reports>,
}

/// The results reported for one document.
#[derive(Default)]
struct Reports {
    count: usize,
    /// Samples with their indices, in the order of arrival.
    samples: Vec<(usize, Sample)>,
    truncated: bool,
    /// The first error.
    error: Option<DocumentError>,
}

impl<'a, 'b> Collector<'a, 'b> {
    fn new(pass: &'a Pass<'a>, tracker: &'a mut ProgressTracker<'b>) -> Self {
        let reports = pass.indices.iter().map(|_| Reports::default()).collect();
        Self { pass, tracker, reports }
    }
}

impl Sink for Collector<'_, '_> {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        let requested = self.pass.options.samples;
        // Ignores unknown documents and surplus results of a faulty backend.
        let Some(reports) = self.reports.get_mut(index).filter(|r| r.count < requested) else {
            return;
        };
        reports.count += 1;
        match outcome.and_then(|completion| self.pass.read(&completion)) {
            Ok((number, sample, truncated)) => {
                reports.samples.push((number, sample));
                reports.truncated |= truncated;
            }
            Err(error) => {
                reports.error.get_or_insert(error);
            }
        }
        if reports.count == requested {
            self.tracker.progress.documents_done += 1;
        }
        self.tracker.report();
    }

    fn tokens_processed(&mut self, tokens: TokenCounts) {
        self.tracker.progress.tokens += tokens;
        self.tracker.report();
    }
}
