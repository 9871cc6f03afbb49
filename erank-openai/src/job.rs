//! The execution of one job. Its documents are sent as fast as the endpoints accept them.
//!
//! The calling thread builds the prompts, starts one thread per open document, and forwards their results
//! to the sink. It also checks for cancellation.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use erank_core::{BackendError, Completion, DocumentError, Job, Sink, TokenCounts};
use serde_json::json;

use crate::api::COMPLETIONS;
use crate::generation::{GenerationError, JobContext};
use crate::prompts::{DocumentPrompt, PromptBuilder};

/// The interval at which the calling thread checks for cancellation.
pub(crate) const POLL: Duration = Duration::from_millis(10);
/// The maximum time that a job waits for its warm-up requests, in case a server does not respond.
const MAX_WARM_UP: Duration = Duration::from_secs(2);
/// The minimum number of documents for warm-up requests.
const MIN_WARM_UP_DOCUMENTS: usize = 3;

/// A message from a thread to the job.
enum Event {
    Tokens(TokenCounts),
    /// The result of one sample of a document.
    Sample(usize, Result<Completion, DocumentError>),
    /// The job has failed.
    Failed(BackendError),
    /// A thread has ended its document.
    DocumentDone,
    /// A thread has ended its warm-up request.
    WarmUpDone,
}

/// The reports that a job still owes to its sink.
pub(crate) struct PendingReports {
    /// Documents without a prompt yet.
    unread: Range<usize>,
    /// The number of missing samples of each other document, by index.
    open: BTreeMap<usize, usize>,
    samples: usize,
}

impl PendingReports {
    pub(crate) fn new(job: &Job<'_>) -> Self {
        let unread = 0..job.documents.len();
        Self { unread, open: BTreeMap::new(), samples: job.options.samples.max(1) }
    }

    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.unread.is_empty()
    }

    fn report(
        &mut self,
        index: usize,
        outcome: Result<Completion, DocumentError>,
        sink: &mut dyn Sink,
    ) {
        if let Some(left) = self.open.get_mut(&index) {
            *left -= 1;
            if *left == 0 {
                self.open.remove(&index);
            }
            sink.completed(index, outcome);
        }
    }

    /// Reports the samples that a thread left open because it panicked.
    fn report_lost(&mut self, sink: &mut dyn Sink) {
        for (index, samples) in std::mem::take(&mut self.open) {
            (0..samples).for_each(|_| sink.completed(index, Err(DocumentError::NotReported)));
        }
    }

    /// Reports everything as cancelled.
    pub(crate) fn report_cancelled(self, sink: &mut dyn Sink) {
        let unread = self.unread.map(|index| (index, self.samples));
        for (index, samples) in self.open.into_iter().chain(unread) {
            (0..samples).for_each(|_| sink.completed(index, Err(DocumentError::Cancelled)));
        }
    }
}

/// Runs one job.
pub(crate) struct JobRunner<'a> {
    context: Arc<JobContext>,
    builder: PromptBuilder<'a>,
    job: &'a Job<'a>,
    /// Prompts that are built but not sent, with their documents' indices.
    ready: VecDeque<(usize, DocumentPrompt)>,
    pending: &'a mut PendingReports,
    /// The number of threads with a document.
    running: usize,
    /// The number of threads with a warm-up request.
    warming_up: usize,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl<'a> JobRunner<'a> {
    pub(crate) fn new(
        context: Arc<JobContext>,
        builder: PromptBuilder<'a>,
        job: &'a Job<'a>,
        pending: &'a mut PendingReports,
    ) -> Self {
        let (sender, events) = mpsc::channel();
        let (ready, running, warming_up) = (VecDeque::new(), 0, 0);
        Self { context, builder, job, ready, pending, running, warming_up, sender, events }
    }

    /// Runs the job to its end. Returns false if it was cancelled.
    pub(crate) fn run(mut self, sink: &mut dyn Sink) -> Result<bool, BackendError> {
        self.warm_up(sink)?;
        self.run_documents(sink)
    }

    /// Sends the common prefix of the first two prompts to every endpoint, and waits for the responses.
    /// The endpoints then have it in their prefix caches when all documents arrive at once.
    fn warm_up(&mut self, sink: &mut dyn Sink) -> Result<(), BackendError> {
        if self.job.documents.len() < MIN_WARM_UP_DOCUMENTS {
            return Ok(());
        }
        while self.ready.len() < 2 && self.build_next(sink) {}
        let [first, second] = [self.ready.front(), self.ready.get(1)];
        let prefix = first.zip(second).and_then(|(a, b)| a.1.prompt.common_prefix(&b.1.prompt));
        let Some(prefix) = prefix.filter(|prompt| !prompt.is_empty()) else { return Ok(()) };
        let fields = json!({"prompt": prefix.to_json(), "max_tokens": 1, "temperature": 0});
        let body = Arc::new(self.context.server.request(fields));
        for endpoint in 0..self.context.client.balancer().len() {
            let (context, body) = (Arc::clone(&self.context), Arc::clone(&body));
            self.spawn(Event::WarmUpDone, move |_| {
                context.client.warm_up(endpoint, COMPLETIONS, &body)
            })?;
            self.warming_up += 1;
        }
        let begin = Instant::now();
        while self.warming_up > 0
            && begin.elapsed() < MAX_WARM_UP
            && !self.job.cancellation.is_cancelled()
        {
            self.poll_event(sink)?;
        }
        Ok(())
    }

    /// Sends all documents. Returns false if the job was cancelled.
    fn run_documents(&mut self, sink: &mut dyn Sink) -> Result<bool, BackendError> {
        loop {
            if self.job.cancellation.is_cancelled() {
                // Report the results that have already arrived.
                while let Ok(event) = self.events.try_recv() {
                    self.handle(event, sink)?;
                }
                return Ok(self.pending.is_empty());
            }
            let capacity = self.context.client.balancer().capacity();
            while self.running < capacity && (!self.ready.is_empty() || self.build_next(sink)) {
                if let Some((index, document)) = self.ready.pop_front() {
                    self.start(index, document)?;
                }
            }
            if self.running == 0 {
                self.pending.report_lost(sink);
                return Ok(true);
            }
            self.poll_event(sink)?;
        }
    }

    /// Builds the prompt of the next document, and reports the errors of those before it. Returns false
    /// if there is no further document.
    fn build_next(&mut self, sink: &mut dyn Sink) -> bool {
        while let Some(index) = self.pending.unread.next() {
            self.pending.open.insert(index, self.pending.samples);
            match self.builder.build(self.job.documents[index]) {
                Ok(document) => {
                    self.ready.push_back((index, document));
                    return true;
                }
                Err(error) => {
                    let message = error.to_string();
                    self.pending.report(index, Err(error), sink);
                    for _ in 1..self.pending.samples {
                        let error = DocumentError::Backend(message.as_str().into());
                        self.pending.report(index, Err(error), sink);
                    }
                }
            }
        }
        false
    }

    /// Starts a thread for a document. It generates the samples one after the other, so that the server
    /// has the prompt in its cache from the second sample on.
    fn start(&mut self, index: usize, document: DocumentPrompt) -> Result<(), BackendError> {
        let (context, samples) = (Arc::clone(&self.context), self.pending.samples);
        let client = context.client.for_new_task();
        self.running += 1;
        self.spawn(Event::DocumentDone, move |sender| {
            let send = |event| {
                // The receiver is gone if the job has ended.
                let _ = sender.send(event);
            };
            for sample in 0..samples {
                let progress = |tokens| send(Event::Tokens(tokens));
                match context.generate(&client, &document, sample, &progress) {
                    Ok(completion) => send(Event::Sample(index, Ok(completion))),
                    Err(GenerationError::Document(error)) => send(Event::Sample(index, Err(error))),
                    Err(GenerationError::Job(error)) => return send(Event::Failed(error)),
                }
            }
        })
    }

    /// Starts a thread that runs `task` and then sends `done`.
    fn spawn(
        &self,
        done: Event,
        task: impl FnOnce(&Sender<Event>) + Send + 'static,
    ) -> Result<(), BackendError> {
        /// Sends the event on drop, and thus also after a panic.
        struct SendOnDrop(Sender<Event>, Option<Event>);
        impl Drop for SendOnDrop {
            fn drop(&mut self) {
                if let Some(done) = self.1.take() {
                    let _ = self.0.send(done);
                }
            }
        }
        let guard = SendOnDrop(self.sender.clone(), Some(done));
        spawn_thread("erank-request", move || {
            let guard = guard;
            task(&guard.0);
        })
    }

    /// Waits for an event for at most [`POLL`].
    fn poll_event(&mut self, sink: &mut dyn Sink) -> Result<(), BackendError> {
        match self.events.recv_timeout(POLL) {
            Ok(event) => self.handle(event, sink),
            // This is a timeout. The channel cannot be disconnected, because `self` holds a sender.
            Err(_) => Ok(()),
        }
    }

    fn handle(&mut self, event: Event, sink: &mut dyn Sink) -> Result<(), BackendError> {
        match event {
            Event::Tokens(tokens) => sink.tokens_processed(tokens),
            Event::Sample(index, outcome) => self.pending.report(index, outcome, sink),
            Event::Failed(error) => return Err(error),
            Event::DocumentDone => self.running -= 1,
            Event::WarmUpDone => self.warming_up -= 1,
        }
        Ok(())
    }
}

/// Starts a thread within the current `tracing` span.
pub(crate) fn spawn_thread(
    name: &str,
    task: impl FnOnce() + Send + 'static,
) -> Result<(), BackendError> {
    let span = tracing::Span::current();
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || span.in_scope(task));
    thread.map(|_| ()).map_err(|error| BackendError::Unavailable(error.into()))
}
