//! One pass of a backend over documents of a request, or over their windows: its job, and the results that it
//! reports.

use crate::answer::AnswerProbability;
use crate::backend::{BackendError, DocumentError, Job, ScoringBackend, Sink};
use crate::cancellation::CancellationToken;
use crate::completion::{Completion, TokenCounts};
use crate::error::AnswerError;
use crate::fusion::best_first;
use crate::options::{ConfigError, ScoringOptions};
use crate::progress::{Progress, ProgressCallback};
use crate::prompt::PromptTemplate;
use crate::ranking::{DocumentFailure, RankedDocument, Sample, ScoredWindow};
use crate::request::Request;
use crate::score::ScoreKind;
use crate::windows::{Split, Windows};

/// The progress over all passes of a request, with the callback that receives it and the token that the callback can
/// cancel.
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
    /// `None` if each document is scored as a whole.
    pub(crate) windows: Option<Windows>,
    pub(crate) documents: &'a [PassDocument],
}

/// A document of a pass.
pub(crate) struct PassDocument {
    /// The document's index in the request.
    pub(crate) index: usize,
    /// The parts of its text to score. Without windows, it is the whole text.
    pub(crate) split: Split,
}

impl PassDocument {
    /// Returns the document for a pass over the windows that `ranked` is scored by.
    pub(crate) fn selected(&self, ranked: &RankedDocument) -> Self {
        let mut split = self.split.clone();
        split.windows.retain(|bytes| {
            ranked.windows.is_empty() || ranked.windows.iter().any(|window| window.bytes == *bytes)
        });
        Self { index: self.index, split }
    }
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
    /// Returns the results of a pass over `documents` that was refused because of `error`.
    pub(crate) fn refused(
        request: &Request<'_>,
        documents: &[PassDocument],
        error: ConfigError,
    ) -> Self {
        let failure = |document: &PassDocument| {
            DocumentFailure::new(request, document.index, DocumentError::NotReached)
        };
        Self {
            scored: Vec::new(),
            unscored: documents.iter().map(failure).collect(),
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
        let windows = self.documents.iter().flat_map(|document| {
            let text = self.request.documents[document.index].text.as_ref();
            document.split.windows.iter().map(move |bytes| &text[bytes.clone()])
        });
        let texts: Vec<&str> = windows.collect();
        let prompt = self.template.bind(self.instruction, &self.request.query);
        let job = Job::new(prompt, &texts)
            .with_options(self.options)
            .with_cancellation(tracker.cancellation.clone());
        let mut collector = Collector::new(self, tracker);
        let result = if texts.is_empty() { Ok(()) } else { backend.score(&job, &mut collector) };
        self.results(collector.reports, result)
    }

    fn results(&self, mut reports: Vec<Reports>, result: Result<(), BackendError>) -> PassResults {
        let (mut scored, mut unscored, mut partially_scored) = (Vec::new(), Vec::new(), Vec::new());
        if result.is_err() {
            for reports in &mut reports {
                reports.error.get_or_insert(DocumentError::NotReached);
            }
        }
        let mut reports = reports.into_iter();
        for document in self.documents {
            let of_document = reports.by_ref().take(document.split.windows.len()).collect();
            let failure = |error| DocumentFailure::new(self.request, document.index, error);
            match self.rank_document(document, of_document) {
                Ok((ranked, missing)) => {
                    scored.push(ranked);
                    partially_scored.extend(missing.map(failure));
                }
                Err(error) => unscored.push(failure(error)),
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

    /// Computes a document's score from those of its windows. The second part of the result is the error of the
    /// first missing sample.
    fn rank_document(
        &self,
        document: &PassDocument,
        reports: Vec<Reports>,
    ) -> Result<(RankedDocument, Option<DocumentError>), DocumentError> {
        let windows = &document.split.windows;
        let (mut ranked, mut missing) = (Vec::new(), None);
        for (bytes, reports) in windows.iter().zip(reports) {
            let in_window = |error: DocumentError| match windows.len() {
                1 => error,
                _ => error.in_window(bytes),
            };
            let (window, error) = self.rank_window(document.index, reports).map_err(in_window)?;
            ranked.push(window);
            missing = missing.or(error.map(in_window));
        }
        let scores: Vec<f64> = ranked.iter().map(|window| window.score).collect();
        let relevances: Vec<Option<f64>> = ranked.iter().map(|window| window.relevance).collect();
        let mut tokens = TokenCounts::default();
        ranked.iter().for_each(|window| tokens += window.tokens);
        let truncated = ranked.iter().any(|window| window.truncated);

        let mut order = best_first(&scores);
        let best = order.first().ok_or(DocumentError::NotReported)?;
        let best = ranked.swap_remove(*best);
        order.truncate(self.windows.map_or(1, |windows| windows.aggregation.count()));
        let count = order.len() as f64;
        let score = order.iter().map(|&window| scores[window]).sum::<f64>() / count;
        let relevance: Option<f64> = order.iter().map(|&window| relevances[window]).sum();
        let scored = |&window: &usize| ScoredWindow {
            bytes: windows[window].clone(),
            score: scores[window],
        };
        let document = RankedDocument {
            score,
            relevance: relevance.map(|sum| sum / count),
            truncated: truncated || !document.split.is_complete,
            tokens,
            windows: self.windows.iter().flat_map(|_| order.iter().map(scored)).collect(),
            ..best
        };
        Ok((document, missing))
    }

    /// Averages the samples of a window, or of a document without windows. The second part of the result is the
    /// error of the first missing sample.
    fn rank_window(
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
            windows: Vec::new(),
        };
        Ok((ranked, missing))
    }
}

/// The sink of a pass.
struct Collector<'a, 'b> {
    pass: &'a Pass<'a>,
    tracker: &'a mut ProgressTracker<'b>,
    /// For each window of the pass, the results reported so far.
    reports: Vec<Reports>,
    /// For each window of the pass, the position of its document in the pass.
    documents: Vec<usize>,
    /// For each document of the pass, the number of unfinished windows.
    unfinished: Vec<usize>,
}

/// The results reported for one window.
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
        let unfinished: Vec<usize> =
            pass.documents.iter().map(|document| document.split.windows.len()).collect();
        let documents = unfinished.iter().enumerate();
        let documents: Vec<usize> = documents
            .flat_map(|(document, windows)| std::iter::repeat_n(document, *windows))
            .collect();
        let reports = documents.iter().map(|_| Reports::default()).collect();
        Self { pass, tracker, reports, documents, unfinished }
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
            let unfinished = &mut self.unfinished[self.documents[index]];
            *unfinished -= 1;
            if *unfinished == 0 {
                self.tracker.progress.documents_done += 1;
            }
        }
        self.tracker.report();
    }

    fn tokens_processed(&mut self, tokens: TokenCounts) {
        self.tracker.progress.tokens += tokens;
        self.tracker.report();
    }
}
