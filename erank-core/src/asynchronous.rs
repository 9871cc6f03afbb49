//! Reranking from asynchronous code (feature `async`).
//!
//! A model blocks the thread it is called on, and an executor's threads must not be blocked. An
//! [`AsyncReranker`] has threads of its own, and gives futures that depend on no runtime: tokio,
//! smol and a plain `block_on` wait for them alike.
//!
//! ```
//! use erank_core::testing::{ScriptedBackend, answered};
//! use erank_core::{AsyncReranker, Request, Reranker};
//!
//! let backend = ScriptedBackend::new([answered(3, 0.9), answered(8, 0.7)]);
//! let reranker = AsyncReranker::new(Reranker::builder(backend).build()?)?;
//! let ranking = pollster::block_on(async {
//!     reranker.rerank(Request::new("jet noise", ["A recipe.", "Jets are loud."])).await
//! })?;
//! assert_eq!(ranking.documents[0].index, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::any::Any;
use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use async_channel::{Receiver, Sender, TrySendError};
use thiserror::Error;

use crate::backend::{BackendError, Job, ScoringBackend, Sink};
use crate::cancellation::CancellationToken;
use crate::completion::TokenCounts;
use crate::ranking::Ranking;
use crate::request::Request;
use crate::reranker::{RerankError, Reranker};

/// A reranker whose threads do the work while futures wait for it. Clones share the threads, which
/// end when the last clone is gone and what it was asked for is done.
///
/// Dropping a future stops its work at the next step of the backend; if that is still to begin, its
/// place in the queue is free once a thread comes to it. A panic of the backend is an error of that
/// future alone.
#[derive(Debug, Clone)]
pub struct AsyncReranker {
    queue: Sender<Work>,
}

/// How much an [`AsyncReranker`] takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Workers {
    /// Requests that are worked on at the same time, a thread each. A backend with a running batch,
    /// as that of `erank-candle`, computes them together.
    pub threads: NonZeroUsize,
    /// Requests that wait for a thread.
    pub queue: NonZeroUsize,
}

impl Default for Workers {
    /// 4 threads, and 32 requests that wait.
    fn default() -> Self {
        const { Self { threads: NonZeroUsize::new(4).unwrap(), queue: NonZeroUsize::new(32).unwrap() } }
    }
}

/// The queue is full: try again later, or tell the caller to.
#[derive(Debug, Error)]
#[error("as many requests wait as the queue holds; try again later")]
#[non_exhaustive]
pub struct QueueFull {
    /// The request, given back.
    pub request: Request<'static>,
}

type Outcome = Result<Ranking, RerankError>;

impl AsyncReranker {
    /// Starts the threads, as many as [`Workers::default`] says.
    ///
    /// # Errors
    /// The operating system's, if it starts no thread.
    pub fn new<B: ScoringBackend + 'static>(reranker: Reranker<B>) -> io::Result<Self> {
        Self::with_workers(reranker, Workers::default())
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system's, if it starts no thread.
    pub fn with_workers<B: ScoringBackend + 'static>(
        reranker: Reranker<B>,
        workers: Workers,
    ) -> io::Result<Self> {
        let reranker = Arc::new(reranker.map_backend(CatchPanics));
        let (queue, waiting) = async_channel::bounded::<Work>(workers.queue.get());
        for number in 0..workers.threads.get() {
            let (reranker, waiting) = (Arc::clone(&reranker), waiting.clone());
            thread::Builder::new().name(format!("erank-worker-{number}")).spawn(move || {
                while let Ok(work) = waiting.recv_blocking() {
                    work.run(&reranker);
                }
            })?;
        }
        Ok(Self { queue })
    }

    /// [`Reranker::rerank`], which the future waits for. While the queue is full, it waits for a
    /// place in it. Nothing happens before it is first polled.
    ///
    /// # Errors
    /// The future's output, as of [`Reranker::rerank`]; a backend that panicked is
    /// [`BackendError::Failed`].
    pub fn rerank(
        &self,
        request: Request<'static>,
    ) -> impl Future<Output = Result<Ranking, RerankError>> + Send + use<> {
        self.rerank_with_cancellation(request, &CancellationToken::new())
    }

    /// As [`rerank`](Self::rerank), ending early once `stop` is set or past its deadline, with the
    /// documents still open as [`DocumentError::Cancelled`](crate::DocumentError::Cancelled). Time in
    /// the queue counts. Dropping the future does not set `stop`, which may be that of others too.
    ///
    /// # Errors
    /// As [`rerank`](Self::rerank).
    pub fn rerank_with_cancellation(
        &self,
        request: Request<'static>,
        stop: &CancellationToken,
    ) -> impl Future<Output = Result<Ranking, RerankError>> + Send + use<> {
        let (work, done) = Work::new(request, stop);
        let queue = self.queue.clone();
        async move {
            // Without threads there is no queue, which `wait` then says.
            let _ = queue.send(work).await;
            drop(queue);
            done.wait().await
        }
    }

    /// As [`rerank`](Self::rerank), but the request takes its place in the queue at once, polled or
    /// not.
    ///
    /// # Errors
    /// [`QueueFull`] if the queue is full. The future's output is as of [`rerank`](Self::rerank).
    pub fn try_rerank(
        &self,
        request: Request<'static>,
    ) -> Result<impl Future<Output = Result<Ranking, RerankError>> + Send + use<>, QueueFull> {
        self.try_rerank_until(request, &CancellationToken::new())
    }

    /// [`try_rerank`](Self::try_rerank) with the `stop` of [`rerank_with_cancellation`](Self::rerank_with_cancellation).
    ///
    /// # Errors
    /// As [`try_rerank`](Self::try_rerank).
    pub fn try_rerank_until(
        &self,
        request: Request<'static>,
        stop: &CancellationToken,
    ) -> Result<impl Future<Output = Result<Ranking, RerankError>> + Send + use<>, QueueFull> {
        let (work, done) = Work::new(request, stop);
        match self.queue.try_send(work) {
            Err(TrySendError::Full(work)) => Err(QueueFull { request: work.request }),
            // Without threads there is no queue, which `wait` then says.
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(done.wait()),
        }
    }
}

/// A request on its way to a thread.
struct Work {
    request: Request<'static>,
    stop: CancellationToken,
    reply: Sender<Outcome>,
}

/// The future's end of it.
struct Done {
    outcome: Receiver<Outcome>,
    stop: CancellationToken,
}

impl Work {
    fn new(request: Request<'static>, stop: &CancellationToken) -> (Self, Done) {
        let (reply, outcome) = async_channel::bounded(1);
        let stop = stop.child_token();
        (Self { request, stop: stop.clone(), reply }, Done { outcome, stop })
    }

    fn run<B: ScoringBackend>(self, reranker: &Reranker<B>) {
        let outcome = reranker.rerank_with_cancellation(&self.request, &self.stop);
        // Refused if nobody waits for it any more.
        let _ = self.reply.try_send(outcome);
    }
}

impl Done {
    async fn wait(self) -> Outcome {
        self.outcome.recv().await.unwrap_or_else(|_| {
            let partial = Ranking {
                documents: Vec::new(),
                scored: 0,
                unscored: Vec::new(),
                incomplete: Vec::new(),
                tokens: TokenCounts::default(),
            };
            let source = BackendError::Failed("the thread that worked on it has ended".into());
            Err(RerankError { source, partial: Box::new(partial) })
        })
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Makes a panic an error of the job, so that what was scored until then is kept.
struct CatchPanics<B>(B);

impl<B: ScoringBackend> ScoringBackend for CatchPanics<B> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        // Each report to the sink is whole, and the backend's contract is to serve the next call.
        catch_unwind(AssertUnwindSafe(|| self.0.score(job, sink))).unwrap_or_else(|panic| {
            Err(BackendError::Failed(format!("it panicked: {}", message(&*panic)).into()))
        })
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
