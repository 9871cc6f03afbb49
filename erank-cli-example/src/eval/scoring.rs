//! Scores the documents that have no score yet, and stores each score as soon as it is known.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use erank_core::{
    AnswerProbability, CancellationToken, DocumentError, PromptTemplate, ScoringBackend,
    ScoringOptions,
};
use erank_core::{Completion, Job, Sink, TokenCounts};

use super::collection::{self, Collection, Query};
use super::scores::{Entry, Outcome, Score, ScoreFile, texts_crc32};
use crate::error::{CommandError, one_line};
use crate::progress::Meter;

/// Number of concurrent queries. While the last documents of one query run, those of the next fill the batch.
const QUERIES_AT_ONCE: usize = 2;

/// The backend and its options.
pub(super) struct Scoring<'a> {
    pub(super) backend: &'a dyn ScoringBackend,
    pub(super) template: &'a PromptTemplate,
    /// The instruction of queries that have none of their own.
    pub(super) instruction: &'a str,
    pub(super) options: ScoringOptions,
    pub(super) cancellation: &'a CancellationToken,
    pub(super) meter: &'a Meter,
}

/// A query with its candidates that have no score yet.
struct Task<'a> {
    query: &'a Query,
    text: &'a str,
    documents: Vec<Pending<'a>>,
}

/// A candidate that has no score yet.
struct Pending<'a> {
    id: &'a str,
    text: &'a str,
    texts_crc32: u32,
}

/// Reasons of temporary failures, by query, then by document. The next start tries these documents again.
pub(super) type Failures = HashMap<String, HashMap<String, String>>;

/// The state that all threads share.
struct Shared {
    scores: ScoreFile,
    failures: Failures,
    /// Number of documents completed since the program started. The total is `documents`.
    done: usize,
    documents: usize,
    tokens: TokenCounts,
    /// The error that ended the work.
    error: Option<CommandError>,
}

impl Scoring<'_> {
    /// Scores each candidate that `scores` lacks, until cancelled. Returns the scores and the temporary
    /// failures.
    ///
    /// # Errors
    ///
    /// Returns the first error of the backend or of the file. Scores before it are in the file.
    pub(super) fn run(
        &self,
        collection: &Collection,
        scores: ScoreFile,
    ) -> Result<(ScoreFile, Failures), CommandError> {
        let tasks = tasks(collection, &scores);
        let documents = tasks.iter().map(|task| task.documents.len()).sum();
        let (failures, tokens) = (HashMap::new(), TokenCounts::default());
        let shared = Shared { scores, failures, done: 0, documents, tokens, error: None };
        let shared = Mutex::new(shared);
        let queue = Mutex::new(tasks.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        thread::scope(|scope| {
            for _ in 0..QUERIES_AT_ONCE {
                scope.spawn(|| {
                    while let Some(task) = next().filter(|_| !self.cancellation.is_cancelled()) {
                        self.score(&task, &shared);
                    }
                });
            }
        });
        self.meter.finish();
        let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        match shared.error {
            Some(error) => Err(error),
            None => Ok((shared.scores, shared.failures)),
        }
    }

    /// Scores the documents of one query.
    fn score(&self, task: &Task<'_>, shared: &Mutex<Shared>) {
        let instruction = task.query.instruction.as_deref().unwrap_or(self.instruction);
        let documents: Vec<&str> = task.documents.iter().map(|document| document.text).collect();
        let job = Job::new(self.template.bind(instruction, task.text), &documents)
            .with_options(self.options)
            .with_cancellation(self.cancellation.clone());
        let mut sink = Recorder { scoring: self, task, shared };
        if let Err(error) = self.backend.score(&job, &mut sink) {
            sink.fail(&mut sink.lock(), error.into());
        }
    }
}

/// Returns the candidates without a score, by query.
fn tasks<'a>(collection: &'a Collection, scores: &ScoreFile) -> Vec<Task<'a>> {
    let task = |query: &'a Query| {
        let pending = query.candidates.iter().filter_map(|candidate| {
            let (query_text, text) = collection::texts(query, candidate).ok()?;
            let crc32 = texts_crc32(query.instruction.as_deref(), query_text, text);
            let is_known = scores.get(&query.id, &candidate.id, crc32).is_some();
            (!is_known).then_some(Pending { id: &candidate.id, text, texts_crc32: crc32 })
        });
        Task {
            query,
            text: query.text.as_deref().unwrap_or_default(),
            documents: pending.collect(),
        }
    };
    collection.queries.iter().map(task).filter(|task| !task.documents.is_empty()).collect()
}

/// Returns the number of candidates without a score.
pub(super) fn open_documents(collection: &Collection, scores: &ScoreFile) -> usize {
    tasks(collection, scores).iter().map(|task| task.documents.len()).sum()
}

/// The sink for the documents of one query.
struct Recorder<'a> {
    scoring: &'a Scoring<'a>,
    task: &'a Task<'a>,
    shared: &'a Mutex<Shared>,
}

impl Recorder<'_> {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, shared: &Shared) {
        self.scoring.meter.show_counts(shared.done, shared.documents, shared.tokens);
    }

    /// Keeps the first error, and cancels the work of all threads.
    fn fail(&self, shared: &mut Shared, error: CommandError) {
        shared.error.get_or_insert(error);
        self.scoring.cancellation.cancel();
    }

    /// Returns the outcome to store, or an error if the failure may be temporary.
    fn read(&self, outcome: Result<Completion, DocumentError>) -> Result<Outcome, DocumentError> {
        let completion = match outcome {
            Ok(completion) => completion,
            Err(error @ DocumentError::PromptTooLong { .. }) => {
                return Ok(Outcome::Failed { error: one_line(&error) });
            }
            Err(error) => return Err(error),
        };
        let probability = AnswerProbability::default();
        Ok(match self.scoring.template.answers().parse(&completion, probability) {
            Ok(answer) => Outcome::Answered(Score::new(answer, &completion)),
            Err(error) => Outcome::Failed { error: one_line(&error) },
        })
    }
}

impl Sink for Recorder<'_> {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        // Ignore an index that a faulty backend made up.
        let Some(document) = self.task.documents.get(index) else { return };
        let outcome = self.read(outcome);
        let mut shared = self.lock();
        let (query, id) = (self.task.query.id.clone(), document.id.to_owned());
        match outcome {
            // After an error the last line may be incomplete, so nothing may follow it.
            Ok(_) if shared.error.is_some() => return,
            Ok(outcome) => {
                let texts_crc32 = document.texts_crc32;
                let entry = Entry { query, document: id, texts_crc32, outcome };
                if let Err(error) = shared.scores.add(entry) {
                    return self.fail(&mut shared, error.into());
                }
            }
            Err(DocumentError::Cancelled) => return,
            Err(error) => {
                shared.failures.entry(query).or_default().insert(id, one_line(&error));
            }
        }
        shared.done += 1;
        self.show(&shared);
    }

    fn tokens_processed(&mut self, tokens: TokenCounts) {
        let mut shared = self.lock();
        shared.tokens += tokens;
        self.show(&shared);
    }
}
