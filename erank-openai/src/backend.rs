//! The remote backend: a job's documents on their way to the server and back.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use erank_core::{
    BackendError, CancellationToken, Completion, DocumentError, Job, ScoringBackend, Sink,
    TokenCounts,
};
use serde_json::json;

use crate::calls::{Calls, Shared};
use crate::control_tokens::ControlTokens;
use crate::document::{Failure, Work};
use crate::error::{CapabilityError, SetupError};
use crate::fleet::Fleet;
use crate::http::{Connecting, Http};
use crate::prompts::{Framer, Prepared};
use crate::server::{COMPLETIONS, Known, Survey};
use crate::settings::{OpenAiSettings, Prompts, root};

/// How often the calling thread looks whether it should stop.
const POLL: Duration = Duration::from_millis(10);
/// How long a job waits for its common part to be read: a server that is stuck is no reason to wait.
const WARM_UP: Duration = Duration::from_secs(2);
/// Documents from which the common part of their prompts is sent ahead.
const MANY: usize = 3;

/// A model behind an OpenAI-compatible HTTP API: a [`ScoringBackend`] for one server or several that
/// serve the same model.
///
/// Making it sends nothing; each server is asked once, before its first document, what it is and what it
/// can do. One that refuses to say, serves something else than the others or fails is left out for a
/// while, and the work goes elsewhere; the log (`tracing`) says so. Serves any
/// number of threads, which share the connections and the limits of each endpoint. A job holds in
/// memory the documents under way, not all of them.
///
/// ```no_run
/// use erank_core::{Request, Reranker};
/// use erank_openai::{OpenAiBackend, OpenAiSettings};
///
/// let backend = OpenAiBackend::new(["http://gpu-1:8000", "http://gpu-2:8000"], OpenAiSettings::default())?;
/// let reranker = Reranker::builder(backend).build()?;
/// let ranking = reranker.rerank(&Request::new("capital of France", ["a cat", "Paris is …"]))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct OpenAiBackend {
    name: String,
    settings: Arc<OpenAiSettings>,
    shared: Arc<Shared>,
    control_tokens: ControlTokens,
}

impl OpenAiBackend {
    /// From the URLs of one or more servers, each with or without `/v1` at its end. Sends nothing.
    ///
    /// # Errors
    /// [`SetupError`] names the URL or the setting that is wrong.
    pub fn new<U: AsRef<str>>(
        endpoints: impl IntoIterator<Item = U>,
        settings: OpenAiSettings,
    ) -> Result<Self, SetupError> {
        settings.check()?;
        let urls: Vec<String> =
            endpoints.into_iter().map(|url| root(url.as_ref())).collect::<Result<_, _>>()?;
        if urls.is_empty() {
            return Err(SetupError::NoEndpoint);
        }
        let connecting = Connecting {
            connect_timeout: settings.connect_timeout,
            request_timeout: settings.request_timeout,
            most_connections: settings.max_concurrency.saturating_mul(urls.len()),
            root_certificates: settings.root_certificates.as_deref(),
        };
        let http = Http::new(&connecting, settings.api_key.clone())?;
        let control_tokens = ControlTokens::new(&settings.control_tokens).map_err(|_| {
            let (value, wanted) = (settings.control_tokens.len().to_string(), "give fewer");
            SetupError::Setting { name: "control_tokens", value, wanted }
        })?;
        let settings = Arc::new(settings);
        let survey = Survey::new(Arc::clone(&settings), urls.len());
        let fleet = Fleet::new(urls, settings.max_concurrency);
        Ok(Self {
            name: settings.model.clone().unwrap_or_else(|| "openai".into()),
            shared: Arc::new(Shared::new(http, fleet, survey, settings.attempts)),
            settings,
            control_tokens,
        })
    }

    /// What the servers can do, asked on the first call that gets an answer. `None` if stopped.
    fn known(
        &self,
        calls: &Calls,
        stop: &CancellationToken,
    ) -> Result<Option<Known>, BackendError> {
        if let Some(known) = self.shared.survey.known() {
            return Ok(Some(Arc::clone(known)));
        }
        let probing = calls.clone();
        let (sender, receiver) = mpsc::channel();
        spawn("erank-probe", move || {
            // Nobody listens any more after a stop.
            let _ = sender.send(probing.capabilities());
        })?;
        let probed = loop {
            match receiver.recv_timeout(POLL) {
                Ok(probed) => break probed,
                Err(RecvTimeoutError::Timeout) if stop.is_cancelled() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(BackendError::Failed(
                        "the thread that asks the server ended".into(),
                    ));
                }
            }
        };
        Ok(Some(probed?))
    }

    /// Runs a job with its connections; false once it is stopped.
    fn run(
        &self,
        calls: &Calls,
        job: &Job<'_>,
        open: &mut Open,
        sink: &mut dyn Sink,
    ) -> Result<bool, BackendError> {
        if matches!(self.settings.prompts, Prompts::Chat) && !job.options.mode.is_reason() {
            return Err(CapabilityError::ChatAnswerOnly.into());
        }
        let Some(known) = self.known(calls, &job.cancellation)? else { return Ok(false) };
        known.check_sampling(&job.options.sampling)?;
        let framer =
            Framer::new(job.prompt, job.options, &self.settings, &known, &self.control_tokens)?;
        let work = Arc::new(Work {
            calls: calls.clone(),
            known: Arc::clone(&known),
            settings: Arc::clone(&self.settings),
            format: job.prompt.answers().clone(),
            options: job.options,
            label_ids: OnceLock::new(),
        });
        let (sender, events) = mpsc::channel();
        let ready = VecDeque::new();
        let mut run =
            Run { work, framer, job, ready, open, running: 0, warming: 0, sender, events };
        run.warm_up(sink)?;
        run.all(sink)
    }
}

impl ScoringBackend for OpenAiBackend {
    /// The model's name as set, or `openai`.
    fn name(&self) -> &str {
        &self.name
    }

    /// As the trait says. Threads that wait for a name or a connection when a job is stopped end after
    /// [`OpenAiSettings::connect_timeout`]; the call itself returns at once.
    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let _span = tracing::debug_span!("score", documents = job.documents.len()).entered();
        let calls = Calls::new(&self.shared);
        let mut open = Open::new(job);
        match self.run(&calls, job, &mut open, sink) {
            Ok(true) => calls.finish(),
            Ok(false) => {
                calls.stop();
                open.abandon(sink);
            }
            Err(error) => {
                calls.stop();
                return Err(error);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for OpenAiBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenAiBackend")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .field("known", &self.shared.survey.known())
            .finish_non_exhaustive()
    }
}

/// What a thread tells the job.
enum Event {
    Tokens(TokenCounts),
    Sample(usize, Result<Completion, DocumentError>),
    /// The job cannot go on.
    Failed(BackendError),
    /// A thread is done with its document.
    Done,
    /// A thread is done with the common part.
    Warm,
}

/// What is not reported yet.
struct Open {
    /// Documents that were not looked at.
    unread: Range<usize>,
    /// Samples left of those that were.
    started: BTreeMap<usize, usize>,
    samples: usize,
}

impl Open {
    fn new(job: &Job<'_>) -> Self {
        let unread = 0..job.documents.len();
        Self { unread, started: BTreeMap::new(), samples: job.options.samples.max(1) }
    }

    fn report(
        &mut self,
        index: usize,
        outcome: Result<Completion, DocumentError>,
        sink: &mut dyn Sink,
    ) {
        if let Some(left) = self.started.get_mut(&index) {
            *left -= 1;
            if *left == 0 {
                self.started.remove(&index);
            }
            sink.completed(index, outcome);
        }
    }

    /// Reports what a thread that panicked has left behind.
    fn report_lost(&mut self, sink: &mut dyn Sink) {
        for (index, samples) in std::mem::take(&mut self.started) {
            (0..samples).for_each(|_| sink.completed(index, Err(DocumentError::NotReported)));
        }
    }

    /// Reports everything as stopped.
    fn abandon(self, sink: &mut dyn Sink) {
        let unread = self.unread.map(|index| (index, self.samples));
        for (index, samples) in self.started.into_iter().chain(unread) {
            (0..samples).for_each(|_| sink.completed(index, Err(DocumentError::Cancelled)));
        }
    }
}

/// A job under way.
struct Run<'a> {
    work: Arc<Work>,
    framer: Framer<'a>,
    job: &'a Job<'a>,
    /// Prompts that are made but not sent.
    ready: VecDeque<(usize, Prepared)>,
    open: &'a mut Open,
    /// Threads that do documents, and threads that warm up.
    running: usize,
    warming: usize,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Run<'_> {
    /// Sends what the first two prompts have in common, up to the document, to every endpoint, and
    /// waits: the servers then have it in their prefix caches when all the documents come at once.
    fn warm_up(&mut self, sink: &mut dyn Sink) -> Result<(), BackendError> {
        if self.job.documents.len() < MANY {
            return Ok(());
        }
        while self.ready.len() < 2 && self.make_ready(sink) {}
        let [first, second] = [self.ready.front(), self.ready.get(1)];
        let common = first.zip(second).and_then(|(a, b)| a.1.prompt.common_prefix(&b.1.prompt));
        let Some(common) = common.filter(|prompt| !prompt.is_empty()) else { return Ok(()) };
        let fields = json!({"prompt": common.value(), "max_tokens": 1, "temperature": 0});
        let body = Arc::new(self.work.known.request(fields));
        for endpoint in 0..self.work.calls.fleet().len() {
            let (work, body) = (Arc::clone(&self.work), Arc::clone(&body));
            self.spawn(Event::Warm, move |_| work.calls.warm_up(endpoint, COMPLETIONS, &body))?;
            self.warming += 1;
        }
        let begin = Instant::now();
        while self.warming > 0 && begin.elapsed() < WARM_UP && !self.job.cancellation.is_cancelled()
        {
            self.hear(sink)?;
        }
        Ok(())
    }

    /// Sends all documents; false once stopped.
    fn all(&mut self, sink: &mut dyn Sink) -> Result<bool, BackendError> {
        loop {
            if self.job.cancellation.is_cancelled() {
                // What has arrived is not thrown away.
                while let Ok(event) = self.events.try_recv() {
                    self.take(event, sink)?;
                }
                return Ok(self.open.started.is_empty() && self.open.unread.is_empty());
            }
            let capacity = self.work.calls.fleet().capacity();
            while self.running < capacity && (!self.ready.is_empty() || self.make_ready(sink)) {
                if let Some((index, prepared)) = self.ready.pop_front() {
                    self.start(index, prepared)?;
                }
            }
            if self.running == 0 {
                self.open.report_lost(sink);
                return Ok(true);
            }
            self.hear(sink)?;
        }
    }

    /// Makes the next document's prompt; its error, if any, goes to `sink`. False when there is none.
    fn make_ready(&mut self, sink: &mut dyn Sink) -> bool {
        while let Some(index) = self.open.unread.next() {
            self.open.started.insert(index, self.open.samples);
            match self.framer.prepare(self.job.documents[index]) {
                Ok(prepared) => {
                    self.ready.push_back((index, prepared));
                    return true;
                }
                Err(error) => {
                    let again = error.to_string();
                    self.open.report(index, Err(error), sink);
                    for _ in 1..self.open.samples {
                        let again = DocumentError::Backend(again.as_str().into());
                        self.open.report(index, Err(again), sink);
                    }
                }
            }
        }
        false
    }

    /// Has a thread do a document: its samples one after the other, so that the server has the prompt
    /// in its cache from the second on.
    fn start(&mut self, index: usize, prepared: Prepared) -> Result<(), BackendError> {
        let (work, samples) = (Arc::clone(&self.work), self.open.samples);
        let calls = work.calls.about_another();
        self.running += 1;
        self.spawn(Event::Done, move |sender| {
            let tell = |event| {
                // Nobody listens any more once the job has ended.
                let _ = sender.send(event);
            };
            for sample in 0..samples {
                let progress = |tokens| tell(Event::Tokens(tokens));
                match work.complete(&calls, &prepared, sample, &progress) {
                    Ok(completion) => tell(Event::Sample(index, Ok(completion))),
                    Err(Failure::Document(error)) => tell(Event::Sample(index, Err(error))),
                    Err(Failure::Job(error)) => return tell(Event::Failed(error)),
                }
            }
        })
    }

    /// Has a thread do `task`, and then tell `done`.
    fn spawn(
        &self,
        done: Event,
        task: impl FnOnce(&Sender<Event>) + Send + 'static,
    ) -> Result<(), BackendError> {
        /// Tells also if the thread panics.
        struct TellDone(Sender<Event>, Option<Event>);
        impl Drop for TellDone {
            fn drop(&mut self) {
                if let Some(done) = self.1.take() {
                    let _ = self.0.send(done);
                }
            }
        }
        let tell = TellDone(self.sender.clone(), Some(done));
        spawn("erank-request", move || {
            let tell = tell;
            task(&tell.0);
        })
    }

    /// Waits a little for an event.
    fn hear(&mut self, sink: &mut dyn Sink) -> Result<(), BackendError> {
        match self.events.recv_timeout(POLL) {
            Ok(event) => self.take(event, sink),
            // `self` holds a sender, so it is not disconnected.
            Err(_) => Ok(()),
        }
    }

    fn take(&mut self, event: Event, sink: &mut dyn Sink) -> Result<(), BackendError> {
        match event {
            Event::Tokens(tokens) => sink.tokens_processed(tokens),
            Event::Sample(index, outcome) => self.open.report(index, outcome, sink),
            Event::Failed(error) => return Err(error),
            Event::Done => self.running -= 1,
            Event::Warm => self.warming -= 1,
        }
        Ok(())
    }
}

fn spawn(name: &str, task: impl FnOnce() + Send + 'static) -> Result<(), BackendError> {
    let span = tracing::Span::current();
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || span.in_scope(task));
    thread.map(|_| ()).map_err(|error| BackendError::Unavailable(error.into()))
}
