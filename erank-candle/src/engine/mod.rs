//! The engine: a thread with one running batch for all callers of a model.
//!
//! ```text
//! caller: document ─tokens─▶ ┐                        ┌ ▶ sink
//! caller: document ─tokens─▶ ┼▶ the engine's thread   ┼ ▶ sink        each on its caller's thread
//! caller: document ─tokens─▶ ┘  batch, step by step   └ ▶ sink
//! ```
//!
//! A caller tokenizes its documents, a few ahead of those that run, and passes results to its sink on its own
//! thread. A long document and a slow or panicking sink therefore delay no other caller.
//!
//! | file | content |
//! |---|---|
//! | [`scheduler`] | admission, preemption, and the loop over one step |
//! | [`step_plan`] | the tokens of a step: decoding, chunks of prompts, speculation |
//! | [`sequence`] | one document's generation, from its prompt to its answer |
//! | [`answer_trie`] | the joint probabilities of answers of several tokens |
//! | [`prefix_cache`] | blocks that hold the beginnings of prompts |
//! | [`block_allocator`] | free and allocated blocks |
//! | [`sampler`], [`prompt_lookup`] | the next token; speculative tokens |

pub(crate) mod answer_trie;
pub(crate) mod block_allocator;
mod caller;
pub(crate) mod limits;
mod prefix_cache;
mod prompt_lookup;
mod sampler;
mod scheduler;
pub(crate) mod sequence;
pub(crate) mod statistics;
mod step_plan;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use erank_core::error::panic_message;
use erank_core::{BackendError, CancellationToken, Cause, DocumentError, Sink};

use crate::model::Model;
use crate::model::step::BLOCK_TOKENS;
use crate::tokenizer::PromptFrame;
use caller::{Caller, CallerId, Event};
use limits::Limits;
use scheduler::Scheduler;
use sequence::{JobContext, Sequence};
use statistics::Statistics;

/// A running engine. Dropping it ends its thread.
pub(crate) struct Engine {
    /// Maximum number of tokens of one sequence.
    max_tokens: usize,
    /// Maximum number of sequences that one caller has submitted and not got back.
    max_in_flight: usize,
    next_caller: AtomicU64,
    statistics: Arc<Mutex<Statistics>>,
    messages: Option<Sender<Message>>,
    thread: Option<JoinHandle<()>>,
}

/// A message from a caller to the engine.
enum Message {
    Join(Caller),
    Submit(CallerId, Box<Sequence>),
    Leave(CallerId),
}

impl Engine {
    /// Allocates the KV cache and starts the engine's thread.
    ///
    /// # Errors
    /// Returns an error if the device has no memory for the cache, or the system starts no thread.
    pub(crate) fn start(
        model: Arc<dyn Model>,
        threads: Arc<rayon::ThreadPool>,
        limits: Limits,
    ) -> Result<Self, Cause> {
        let (sender, receiver) = channel();
        let statistics = Arc::new(Mutex::new(Statistics::default()));
        let max_tokens = model.shape().max_tokens.min(limits.blocks * BLOCK_TOKENS);
        let scheduler = Scheduler::new(model, threads, limits, Arc::clone(&statistics))?;
        let thread = std::thread::Builder::new()
            .name("erank-engine".into())
            .spawn(move || serve(scheduler, &receiver))?;
        Ok(Self {
            max_tokens,
            max_in_flight: 2 * limits.max_num_seqs,
            next_caller: AtomicU64::new(0),
            statistics,
            messages: Some(sender),
            thread: Some(thread),
        })
    }

    /// Returns the maximum number of tokens of one sequence. It is the model's limit or the size of the
    /// cache, whichever is smaller.
    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub(crate) fn statistics(&self) -> Statistics {
        *self.statistics.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Generates for every document and reports each to `sink`.
    ///
    /// # Errors
    /// Returns [`BackendError::Failed`] if a step with this caller's sequences failed.
    pub(crate) fn run(
        &self,
        context: &Arc<JobContext>,
        frame: &PromptFrame,
        documents: &[&str],
        cancellation: &CancellationToken,
        sink: &mut dyn Sink,
    ) -> Result<(), BackendError> {
        let (membership, events) = self.join(cancellation)?;
        let samples = context.options.samples;
        let mut unread = 0..documents.len();
        let mut in_flight = 0;
        loop {
            while in_flight < self.max_in_flight && !cancellation.is_cancelled() {
                let Some(index) = unread.next() else { break };
                match sequences(context, frame, documents[index], index, cancellation) {
                    Ok(sequences) => {
                        in_flight += sequences.len();
                        sequences
                            .into_iter()
                            .try_for_each(|sequence| membership.submit(sequence))?;
                    }
                    Err(error) => report_error(sink, index, samples, error),
                }
            }
            if in_flight == 0 {
                break;
            }
            match events.recv().map_err(|_| thread_ended())? {
                Event::Advanced(counts) => sink.tokens_processed(counts),
                Event::Text(piece) => sink.text_generated(piece.index, piece.sample, &piece.text),
                Event::Completed(index, result) => {
                    in_flight -= 1;
                    sink.completed(index, result);
                }
                Event::Failed(problem) => return Err(BackendError::Failed(problem.into())),
            }
        }
        // Documents remain unread only after cancellation.
        unread.for_each(|index| report_error(sink, index, samples, DocumentError::Cancelled));
        Ok(())
    }

    /// Registers a caller. The engine forgets the caller when the returned value is dropped.
    fn join(
        &self,
        cancellation: &CancellationToken,
    ) -> Result<(Membership, Receiver<Event>), BackendError> {
        let (sender, events) = channel();
        let messages = self.messages.clone().ok_or_else(thread_ended)?;
        let id = self.next_caller.fetch_add(1, Ordering::Relaxed);
        let caller = Caller::new(id, cancellation.clone(), sender);
        messages.send(Message::Join(caller)).map_err(|_| thread_ended())?;
        Ok((Membership { id, messages }, events))
    }
}

/// Encodes a document's prompt and returns a sequence for each of its samples.
fn sequences(
    context: &Arc<JobContext>,
    frame: &PromptFrame,
    document: &str,
    index: usize,
    cancellation: &CancellationToken,
) -> Result<Vec<Sequence>, DocumentError> {
    let prompt = frame.encode_with_cancellation(document, cancellation)?;
    let sequence = |sample| Sequence::new(index, sample, prompt.clone(), Arc::clone(context));
    (0..context.options.samples).map(sequence).collect()
}

/// Reports a document's error once for each sample.
fn report_error(sink: &mut dyn Sink, index: usize, samples: usize, error: DocumentError) {
    let problem = error.to_string();
    sink.completed(index, Err(error));
    for _ in 1..samples {
        sink.completed(index, Err(DocumentError::Backend(problem.as_str().into())));
    }
}

fn thread_ended() -> BackendError {
    BackendError::Failed("the engine's thread has ended".into())
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The thread ends when the last sender is gone.
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has reached its callers as an error.
            let _ = thread.join();
        }
    }
}

/// A caller's registration. Dropping it, in any way, makes the engine discard the caller's sequences.
struct Membership {
    id: CallerId,
    messages: Sender<Message>,
}

impl Membership {
    fn submit(&self, sequence: Sequence) -> Result<(), BackendError> {
        let message = Message::Submit(self.id, Box::new(sequence));
        self.messages.send(message).map_err(|_| thread_ended())
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // An engine whose thread has ended has nothing to discard.
        let _ = self.messages.send(Message::Leave(self.id));
    }
}

/// Runs the engine's thread: reads messages, and computes steps while there is work.
fn serve(mut scheduler: Scheduler, messages: &Receiver<Message>) {
    let handle = |scheduler: &mut Scheduler, message| match message {
        Message::Join(caller) => scheduler.add_caller(caller),
        Message::Submit(caller, sequence) => scheduler.submit(caller, *sequence),
        Message::Leave(caller) => scheduler.remove_caller(caller),
    };
    loop {
        if scheduler.is_idle() {
            match messages.recv() {
                Ok(message) => handle(&mut scheduler, message),
                Err(_) => return,
            }
        }
        loop {
            match messages.try_recv() {
                Ok(message) => handle(&mut scheduler, message),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        // A step that panics ends neither the thread nor later calls.
        if !scheduler.is_idle()
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| scheduler.step()))
            && scheduler.reset(&format!("a step panicked: {}", panic_message(&*panic))).is_err()
        {
            return;
        }
    }
}
