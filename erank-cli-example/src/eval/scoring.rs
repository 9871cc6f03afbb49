//! Has the model score what has no score yet, and writes each down as it comes.

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

/// While the last documents of a query are thought about, the next query's fill the batch.
const QUERIES_AT_ONCE: usize = 2;

/// How the model is asked.
pub(super) struct Scoring<'a> {
    pub(super) backend: &'a dyn ScoringBackend,
    pub(super) instruction: &'a str,
    pub(super) options: ScoringOptions,
    pub(super) stop: &'a CancellationToken,
    pub(super) meter: &'a Meter,
}

/// A query with those of its candidates that are to be scored.
struct Task<'a> {
    query: &'a Query,
    text: &'a str,
    documents: Vec<Todo<'a>>,
}

struct Todo<'a> {
    id: &'a str,
    text: &'a str,
    texts_crc32: u32,
}

/// What this start could not score but the next one may: reasons by query, then by document.
pub(super) type Failures = HashMap<String, HashMap<String, String>>;

/// What all threads write to.
struct Shared {
    scores: ScoreFile,
    failures: Failures,
    /// Documents that are done now, of so many that were to do.
    done: usize,
    documents: usize,
    tokens: TokenCounts,
    /// What ended the work.
    error: Option<CommandError>,
}

impl Scoring<'_> {
    /// Scores every candidate that `scores` does not have, until done or stopped. What was scored is
    /// kept also if an error ends the work.
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
                    while let Some(task) = next().filter(|_| !self.stop.is_cancelled()) {
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

    fn score(&self, task: &Task<'_>, shared: &Mutex<Shared>) {
        let template = PromptTemplate::erank();
        let documents: Vec<&str> = task.documents.iter().map(|document| document.text).collect();
        let job = Job::new(template.bind(self.instruction, task.text), &documents)
            .with_options(self.options)
            .with_cancellation(self.stop.clone());
        let mut sink = Recorder { scoring: self, template: &template, task, shared };
        if let Err(error) = self.backend.score(&job, &mut sink) {
            sink.fail(&mut sink.lock(), error.into());
        }
    }
}

/// What is to be done, query by query.
fn tasks<'a>(collection: &'a Collection, scores: &ScoreFile) -> Vec<Task<'a>> {
    let task = |query: &'a Query| {
        let todo = query.candidates.iter().filter_map(|candidate| {
            let (query_text, text) = collection::texts(query, candidate).ok()?;
            let crc32 = texts_crc32(query_text, text);
            let is_known = scores.get(&query.id, &candidate.id, crc32).is_some();
            (!is_known).then_some(Todo { id: &candidate.id, text, texts_crc32: crc32 })
        });
        Task { query, text: query.text.as_deref().unwrap_or_default(), documents: todo.collect() }
    };
    collection.queries.iter().map(task).filter(|task| !task.documents.is_empty()).collect()
}

/// Documents still to be scored.
pub(super) fn open_documents(collection: &Collection, scores: &ScoreFile) -> usize {
    tasks(collection, scores).iter().map(|task| task.documents.len()).sum()
}

/// Writes down what the model says of one query's documents.
struct Recorder<'a> {
    scoring: &'a Scoring<'a>,
    template: &'a PromptTemplate,
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

    /// Ends the work of all threads.
    fn fail(&self, shared: &mut Shared, error: CommandError) {
        shared.error.get_or_insert(error);
        self.scoring.stop.cancel();
    }

    /// The outcome to write down; an error if it may be another next time.
    fn read(&self, outcome: Result<Completion, DocumentError>) -> Result<Outcome, DocumentError> {
        let completion = match outcome {
            Ok(completion) => completion,
            Err(error @ DocumentError::PromptTooLong { .. }) => {
                return Ok(Outcome::Failed { error: one_line(&error) });
            }
            Err(error) => return Err(error),
        };
        let reading = AnswerProbability::default();
        Ok(match self.template.answers().parse(&completion, reading) {
            Ok(answer) => Outcome::Answered(Score::new(answer, &completion)),
            Err(error) => Outcome::Failed { error: one_line(&error) },
        })
    }
}

impl Sink for Recorder<'_> {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        // A backend that names an unknown document does no harm.
        let Some(document) = self.task.documents.get(index) else { return };
        let outcome = self.read(outcome);
        let mut shared = self.lock();
        let (query, id) = (self.task.query.id.clone(), document.id.to_owned());
        match outcome {
            // After an error nothing may be written behind what is perhaps half a line.
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
