//! Reranking from asynchronous code (feature `async`).
//!
//! A model blocks the thread that calls it. So never call it on an executor's thread. An [`AsyncReranker`]
//! has its own threads and returns futures that work with any executor, such as tokio, smol or a plain
//! `block_on`.
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
use crate::error::panic_message;
use crate::ranking::Ranking;
use crate::request::Request;
use crate::reranker::{RerankError, Reranker};

/// A reranker with worker threads and futures that wait for them. Clones share the threads. The threads
/// end when the last clone is dropped and all accepted requests are finished.
///
/// Dropping a future cancels its request at the next step of the backend. A cancelled request that still
/// waits in the queue is removed when a thread reaches it. A panic of the backend becomes an error of that
/// future alone.
#[derive(Debug, Clone)]
pub struct AsyncReranker {
    queue: Sender<Work>,
}

/// The settings of an [`AsyncReranker`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AsyncSettings {
    /// The number of threads, which is the number of requests processed at the same time. A backend with
    /// continuous batching, such as `erank-candle`, computes these requests together.
    pub threads: NonZeroUsize,
    /// The number of requests that can wait for a thread.
    pub queue_capacity: NonZeroUsize,
}

impl Default for AsyncSettings {
    /// Returns 4 threads and a queue of 32 requests.
    fn default() -> Self {
        const {
            Self {
                threads: NonZeroUsize::new(4).unwrap(),
                queue_capacity: NonZeroUsize::new(32).unwrap(),
            }
        }
    }
}

/// The error of a full queue.
#[derive(Debug, Error)]
#[error("the queue of requests is full; try again later")]
#[non_exhaustive]
pub struct QueueFull {
    /// The rejected request.
    pub request: Request<'static>,
}

type Outcome = Result<Ranking, RerankError>;

impl AsyncReranker {
    /// Starts the threads with the [default](AsyncSettings::default) settings.
    ///
    /// # Errors
    /// Returns the operating system's error if a thread cannot be started.
    pub fn new<B: ScoringBackend + 'static>(reranker: Reranker<B>) -> io::Result<Self> {
        Self::with_settings(reranker, AsyncSettings::default())
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// Returns the operating system's error if a thread cannot be started.
    pub fn with_settings<B: ScoringBackend + 'static>(
        reranker: Reranker<B>,
        settings: AsyncSettings,
    ) -> io::Result<Self> {
        let reranker =
            Arc::new(reranker.map_backends(CatchPanics, |first| Box::new(CatchPanics(first))));
        let (queue, requests) = async_channel::bounded::<Work>(settings.queue_capacity.get());
        for number in 0..settings.threads.get() {
            let (reranker, requests) = (Arc::clone(&reranker), requests.clone());
            thread::Builder::new().name(format!("erank-worker-{number}")).spawn(move || {
                while let Ok(work) = requests.recv_blocking() {
                    work.run(&reranker);
                }
            })?;
        }
        Ok(Self { queue })
    }

    /// Returns a future of [`Reranker::rerank`]. Polling it sends the request to the queue, and waits
    /// while the queue is full.
    ///
    /// # Errors
    /// The future returns the errors of [`Reranker::rerank`], and [`BackendError::Failed`] if the backend
    /// panicked.
    pub fn rerank(
        &self,
        request: Request<'static>,
    ) -> impl Future<Output = Result<Ranking, RerankError>> + Send + use<> {
        self.rerank_with_cancellation(request, &CancellationToken::new())
    }

    /// Returns a future of [`Reranker::rerank_with_cancellation`]. A deadline includes the time in the
    /// queue. Dropping the future does not cancel `cancellation`, which other requests may share.
    ///
    /// # Errors
    /// The future returns the errors of [`rerank`](Self::rerank).
    pub fn rerank_with_cancellation(
        &self,
        request: Request<'static>,
        cancellation: &CancellationToken,
    ) -> impl Future<Output = Result<Ranking, RerankError>> + Send + use<> {
        let (work, pending) = Work::new(request, cancellation);
        let queue = self.queue.clone();
        async move {
            // If no thread is left, the queue is closed and `wait` returns an error.
            let _ = queue.send(work).await;
            drop(queue);
            pending.wait().await
        }
    }

    /// Sends the request to the queue at once and returns a future of its ranking.
    ///
    /// # Errors
    /// Returns [`QueueFull`] if the queue is full. The future returns the errors of
    /// [`rerank`](Self::rerank).
    pub fn try_rerank(
        &self,
        request: Request<'static>,
    ) -> Result<impl Future<Output = Result<Ranking, RerankError>> + Send + use<>, QueueFull> {
        self.try_rerank_with_cancellation(request, &CancellationToken::new())
    }

    /// Sends the request to the queue at once, as [`try_rerank`](Self::try_rerank) does, with the
    /// `cancellation` of [`rerank_with_cancellation`](Self::rerank_with_cancellation).
    ///
    /// # Errors
    /// Returns the errors of [`try_rerank`](Self::try_rerank).
    pub fn try_rerank_with_cancellation(
        &self,
        request: Request<'static>,
        cancellation: &CancellationToken,
    ) -> Result<impl Future<Output = Result<Ranking, RerankError>> + Send + use<>, QueueFull> {
        let (work, pending) = Work::new(request, cancellation);
        match self.queue.try_send(work) {
            Err(TrySendError::Full(work)) => Err(QueueFull { request: work.request }),
            // If no thread is left, the queue is closed and `wait` returns an error.
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(pending.wait()),
        }
    }
}

/// A request for a worker thread.
struct Work {
    request: Request<'static>,
    cancellation: CancellationToken,
    reply: Sender<Outcome>,
}

/// The future's side of a [`Work`]. Dropping it cancels the request.
struct Pending {
    outcome: Receiver<Outcome>,
    cancellation: CancellationToken,
}

impl Work {
    fn new(request: Request<'static>, cancellation: &CancellationToken) -> (Self, Pending) {
        let (reply, outcome) = async_channel::bounded(1);
        let cancellation = cancellation.child_token();
        let work = Self { request, cancellation: cancellation.clone(), reply };
        (work, Pending { outcome, cancellation })
    }

    fn run<B: ScoringBackend>(self, reranker: &Reranker<B>) {
        let outcome = reranker.rerank_with_cancellation(&self.request, &self.cancellation);
        // Fails if the future was dropped.
        let _ = self.reply.try_send(outcome);
    }
}

impl Pending {
    async fn wait(self) -> Outcome {
        self.outcome.recv().await.unwrap_or_else(|_| {
            let partial = Ranking {
                documents: Vec::new(),
                scored_count: 0,
                below_min_score: Vec::new(),
                unscored: Vec::new(),
                partially_scored: Vec::new(),
                tokens: TokenCounts::default(),
            };
            let source = BackendError::Failed("the worker thread has ended".into());
            Err(RerankError { source, partial: Box::new(partial) })
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.cancellation.cancel();
    }
}

/// A backend that turns a panic into an error of the job, so that the documents scored before it are
/// kept.
struct CatchPanics<B>(B);

impl<B: ScoringBackend> ScoringBackend for CatchPanics<B> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        // The sink stays consistent because each report is complete when it arrives. The contract of a
        // backend requires that it serves the next call after a panic.
        catch_panic(|| self.0.score(job, sink))
    }

    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        catch_panic(|| self.0.token_ends(text, max_tokens))
    }
}

fn catch_panic<T>(call: impl FnOnce() -> Result<T, BackendError>) -> Result<T, BackendError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        Err(BackendError::Failed(format!("it panicked: {}", panic_message(&*panic)).into()))
    })
}
