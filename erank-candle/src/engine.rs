//! One engine per model: a thread with a running batch that any number of callers feed.
//!
//! ```text
//! caller: document ─tokens─▶ ┐                      ┌ ▶ sink
//! caller: document ─tokens─▶ ┼▶ the engine's thread ┼ ▶ sink        each on its caller's thread
//! caller: document ─tokens─▶ ┘   batch, one step    └ ▶ sink
//!                                after another
//! ```
//!
//! A caller tokenizes its own documents, a few ahead of what runs, and hands results to its own sink,
//! so neither a long document nor a slow or panicking sink holds up the others.

mod batch;
mod draft;
pub(crate) mod labels;
mod prefix_cache;
mod sampler;
pub(crate) mod sequence;
mod statistics;

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use erank_core::{BackendError, CancellationToken, DocumentError, Sink};

use crate::kv_cache::{BLOCK_TOKENS, KvCache};
use crate::model::Qwen3;
use crate::tokenizer::PromptFrame;
use batch::{Batch, Call, CallId, Event};
use sequence::{Sequence, Task};
pub use statistics::Statistics;

/// What bounds a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most tokens that a step computes.
    pub(crate) max_num_batched_tokens: usize,
    /// Most sequences that run at once; no more than `max_num_batched_tokens`.
    pub(crate) sequences: usize,
    /// A step of fewer tokens is filled up to this many with guesses.
    pub(crate) speculative_tokens: usize,
}

/// A running engine. Dropping it ends its thread.
pub(crate) struct Engine {
    limit: usize,
    /// Documents that a caller has tokenized and not got back.
    window: usize,
    next_call: AtomicU64,
    statistics: Arc<Mutex<Statistics>>,
    messages: Option<Sender<Message>>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    Open(Call),
    Submit(CallId, Box<Sequence>),
    Close(CallId),
}

impl Engine {
    pub(crate) fn start(
        model: Arc<Qwen3>,
        threads: Arc<rayon::ThreadPool>,
        cache: KvCache,
        limits: Limits,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let statistics = Arc::new(Mutex::new(Statistics::default()));
        let limit = model.config().max_position_embeddings.min(cache.blocks() * BLOCK_TOKENS);
        let batch = Batch::new(model, threads, limits, cache, Arc::clone(&statistics));
        let thread = std::thread::Builder::new()
            .name("erank-engine".into())
            .spawn(move || serve(batch, &receiver))?;
        Ok(Self {
            limit,
            window: 2 * limits.sequences,
            next_call: AtomicU64::new(0),
            statistics,
            messages: Some(sender),
            thread: Some(thread),
        })
    }

    /// Tokens that one sequence may have: the model's positions, or what fits the cache.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn statistics(&self) -> Statistics {
        *self.statistics.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Generates for every document, and reports each to `sink`.
    pub(crate) fn run(
        &self,
        task: &Arc<Task>,
        frame: &PromptFrame,
        documents: &[&str],
        stop: &CancellationToken,
        sink: &mut dyn Sink,
    ) -> Result<(), BackendError> {
        let (visit, events) = self.visit(stop)?;
        let samples = task.options.samples;
        let mut unread = 0..documents.len();
        let mut under_way = 0;
        loop {
            while under_way < self.window && !stop.is_cancelled() {
                let Some(index) = unread.next() else { break };
                match sequences(task, frame, documents[index], index) {
                    Ok(sequences) => {
                        under_way += sequences.len();
                        sequences.into_iter().try_for_each(|sequence| visit.submit(sequence))?;
                    }
                    Err(error) => refuse(sink, index, samples, error),
                }
            }
            if under_way == 0 {
                break;
            }
            match events.recv().map_err(|_| ended())? {
                Event::Advanced(counts) => sink.tokens_processed(counts),
                Event::Completed(index, result) => {
                    under_way -= 1;
                    sink.completed(index, result);
                }
                Event::Failed(problem) => return Err(BackendError::Failed(problem.into())),
            }
        }
        // After a stop.
        unread.for_each(|index| refuse(sink, index, samples, DocumentError::Cancelled));
        Ok(())
    }

    /// Announces a caller to the engine.
    fn visit(&self, stop: &CancellationToken) -> Result<(Visit, Receiver<Event>), BackendError> {
        let (sender, events) = channel();
        let messages = self.messages.clone().ok_or_else(ended)?;
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let call = Call { id, stop: stop.clone(), events: sender, waiting: VecDeque::new() };
        messages.send(Message::Open(call)).map_err(|_| ended())?;
        Ok((Visit { id, messages }, events))
    }
}

/// All samples of a document.
fn sequences(
    task: &Arc<Task>,
    frame: &PromptFrame,
    document: &str,
    index: usize,
) -> Result<Vec<Sequence>, DocumentError> {
    let prompt = frame.encode(document)?;
    let sequence = |sample| Sequence::new(index, sample, prompt.clone(), Arc::clone(task));
    (0..task.options.samples).map(sequence).collect()
}

/// Reports a document's error, once for each sample that was wanted.
fn refuse(sink: &mut dyn Sink, index: usize, samples: usize, error: DocumentError) {
    let problem = error.to_string();
    sink.completed(index, Err(error));
    for _ in 1..samples {
        sink.completed(index, Err(DocumentError::Backend(problem.as_str().into())));
    }
}

fn ended() -> BackendError {
    BackendError::Failed("the engine's thread has ended".into())
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The thread ends when nobody can send it anything any more.
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, its callers know.
            let _ = thread.join();
        }
    }
}

/// A caller's stay. When it ends, in whatever way, the engine forgets what is left of it.
struct Visit {
    id: CallId,
    messages: Sender<Message>,
}

impl Visit {
    fn submit(&self, sequence: Sequence) -> Result<(), BackendError> {
        self.messages.send(Message::Submit(self.id, Box::new(sequence))).map_err(|_| ended())
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // An engine that has ended has nothing left to forget.
        let _ = self.messages.send(Message::Close(self.id));
    }
}

/// The engine's thread: reads what callers say, and computes as long as there is work.
fn serve(mut batch: Batch, messages: &Receiver<Message>) {
    let hear = |batch: &mut Batch, message| match message {
        Message::Open(call) => batch.open(call),
        Message::Submit(call, sequence) => batch.submit(call, *sequence),
        Message::Close(call) => batch.close(call),
    };
    loop {
        if batch.is_idle() {
            match messages.recv() {
                Ok(message) => hear(&mut batch, message),
                Err(_) => return,
            }
        }
        loop {
            match messages.try_recv() {
                Ok(message) => hear(&mut batch, message),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        // One step's panic ends neither the thread nor the calls that come later.
        if !batch.is_idle()
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| batch.step()))
            && batch.start_over(&format!("a step panicked: {}", message(&*panic))).is_err()
        {
            return;
        }
    }
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}
