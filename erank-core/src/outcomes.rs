//! What a backend reports during one pass over documents, read as it arrives.

use crate::answer::{Answer, AnswerError, AnswerProbability};
use crate::backend::{DocumentError, Sink};
use crate::cancellation::CancellationToken;
use crate::completion::{Completion, TokenCounts};
use crate::options::ScoringOptions;
use crate::progress::Progress;
use crate::prompt::PromptTemplate;
use crate::ranking::{RankedDocument, Sample};
use crate::request::Request;
use crate::reranker::ProgressCallback;

/// How far the work is, over all passes.
pub(crate) struct Tally<'a> {
    pub(crate) progress: Progress,
    pub(crate) stop: &'a CancellationToken,
    pub(crate) on_progress: Option<&'a ProgressCallback>,
}

impl Tally<'_> {
    fn report(&self) {
        if self.on_progress.is_some_and(|on_progress| on_progress(&self.progress).is_break()) {
            self.stop.cancel();
        }
    }
}

/// One pass: some of a request's documents, asked in one way.
pub(crate) struct Pass<'a> {
    pub(crate) request: &'a Request<'a>,
    pub(crate) template: &'a PromptTemplate,
    pub(crate) options: ScoringOptions,
    pub(crate) reading: AnswerProbability,
    pub(crate) score: &'a dyn Fn(&Answer) -> Result<f64, AnswerError>,
    /// The request's index of each of the pass's documents.
    pub(crate) indices: &'a [usize],
}

/// Collects what is reported for a pass.
pub(crate) struct Outcomes<'a, 'b> {
    pass: &'a Pass<'a>,
    tally: &'a mut Tally<'b>,
    /// By the pass's index.
    reports: Vec<Reports>,
}

/// What was reported for one document.
#[derive(Default)]
struct Reports {
    count: usize,
    /// With their numbers, in the order of arrival.
    samples: Vec<(usize, Sample)>,
    truncated: bool,
    error: Option<DocumentError>,
}

/// A document's score or why it has none; and why, if it is made of fewer samples than it should be.
pub(crate) type PassOutcome = Result<(RankedDocument, Option<DocumentError>), DocumentError>;

impl<'a, 'b> Outcomes<'a, 'b> {
    pub(crate) fn new(pass: &'a Pass<'a>, tally: &'a mut Tally<'b>) -> Self {
        let reports = pass.indices.iter().map(|_| Reports::default()).collect();
        Self { pass, tally, reports }
    }

    /// The outcome of each of the pass's documents, in order.
    pub(crate) fn into_results(self) -> impl Iterator<Item = (usize, PassOutcome)> {
        let Self { pass, reports, .. } = self;
        pass.indices.iter().zip(reports).map(|(&index, reports)| (index, pass.rank(index, reports)))
    }
}

impl Sink for Outcomes<'_, '_> {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        let wanted = self.pass.options.samples;
        // A backend that names an unknown document, or one too often, does no harm.
        let Some(reports) = self.reports.get_mut(index).filter(|r| r.count < wanted) else {
            return;
        };
        reports.count += 1;
        match outcome.and_then(|completion| self.pass.read(&completion)) {
            Ok((sample, number, truncated)) => {
                reports.samples.push((number, sample));
                reports.truncated |= truncated;
            }
            Err(error) => {
                reports.error.get_or_insert(error);
            }
        }
        if reports.count == wanted {
            self.tally.progress.documents_done += 1;
        }
        self.tally.report();
    }

    fn advanced(&mut self, tokens: TokenCounts) {
        self.tally.progress.tokens += tokens;
        self.tally.report();
    }
}

impl Pass<'_> {
    /// A completion's answer with its score, its number, and whether a field was truncated.
    fn read(&self, completion: &Completion) -> Result<(Sample, usize, bool), DocumentError> {
        let answer = self.template.answers().parse(completion, self.reading)?;
        let score = (self.score)(&answer)?;
        let Completion {
            finish_reason, usage: tokens, query_truncated, document_truncated, ..
        } = *completion;
        let sample = Sample { score, answer, finish_reason, tokens };
        Ok((sample, completion.sample, query_truncated || document_truncated))
    }

    /// The mean of a document's samples.
    fn rank(&self, index: usize, reports: Reports) -> PassOutcome {
        let mut samples = reports.samples;
        samples.sort_by_key(|(number, _)| *number);
        let mut samples: Vec<Sample> = samples.into_iter().map(|(_, sample)| sample).collect();
        let is_complete = samples.len() == self.options.samples;
        let count = samples.len() as f64;
        let score = samples.iter().map(|sample| sample.score).sum::<f64>() / count;
        let distance = |sample: &Sample| (sample.score - score).abs();
        let mut nearest = 0;
        for (place, sample) in samples.iter().enumerate() {
            if distance(sample) < distance(&samples[nearest]) {
                nearest = place;
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
        let lacking = (!is_complete).then(|| reports.error.unwrap_or(DocumentError::NotReported));
        let ranked = RankedDocument {
            index,
            id: document.id.as_deref().map(str::to_owned),
            score,
            std_dev: (squares / count).sqrt(),
            answer,
            first_stage_score: document.first_stage_score,
            mode: self.options.mode,
            truncated: reports.truncated,
            finish_reason,
            tokens,
            samples,
        };
        Ok((ranked, lacking))
    }
}
