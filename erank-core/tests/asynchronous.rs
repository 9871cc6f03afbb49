//! Tests of the asynchronous reranker. The executor is a plain `block_on`, and no test depends on the
//! speed of a thread.

use std::pin::Pin;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use erank_core::testing::{ScriptedBackend, answered};
use erank_core::{
    AsyncReranker, AsyncSettings, CancellationToken, Cascade, FirstPass, PromptTemplate, Ranking,
    Request, RerankError, Reranker,
};
use erank_core::{BackendError, DocumentError, Job, ScoringBackend, Sink};
use pollster::block_on;

type Outcome = Result<Ranking, RerankError>;
type BoxedFuture = Pin<Box<dyn Future<Output = Outcome> + Send + 'static>>;

/// A backend that answers each document with the number in it. Before each document, it reports the query
/// and the index to its [`Guide`] and waits for permission to continue.
struct Steps {
    at: Sender<(String, usize)>,
    go: Mutex<Receiver<()>>,
}

/// The controller of a [`Steps`].
struct Guide {
    at: Receiver<(String, usize)>,
    go: Sender<()>,
}

fn steps() -> (Steps, Guide) {
    let ((at, positions), (go, permissions)) = (channel(), channel());
    (Steps { at, go: Mutex::new(permissions) }, Guide { at: positions, go })
}

impl Guide {
    /// Waits until the backend reaches a document. Returns the query and the document's index.
    fn wait(&self) -> (String, usize) {
        self.at.recv_timeout(Duration::from_secs(60)).expect("the backend reaches a document")
    }

    /// Permits this number of documents.
    fn let_go(&self, steps: usize) {
        (0..steps).for_each(|_| self.go.send(()).expect("the backend waits for permission"));
    }
}

impl ScoringBackend for Steps {
    fn name(&self) -> &str {
        "steps"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        for (index, document) in job.documents.iter().enumerate() {
            if job.cancellation.is_cancelled() {
                sink.completed(index, Err(DocumentError::Cancelled));
                continue;
            }
            self.at.send((job.prompt.query().into(), index)).expect("a guide");
            self.go.lock().expect("no panic while it waits").recv().expect("a guide");
            assert_ne!(*document, "panic", "on purpose");
            let number = document.parse().map_err(|_| BackendError::Failed("NaN".into()))?;
            sink.completed(index, Ok(answered(number, 0.5)));
        }
        Ok(())
    }
}

fn start(backend: impl ScoringBackend + 'static, threads: usize, queue: usize) -> AsyncReranker {
    let mut settings = AsyncSettings::default();
    settings.threads = threads.try_into().expect("not 0");
    settings.queue_capacity = queue.try_into().expect("not 0");
    let reranker = Reranker::builder(backend).build().expect("valid");
    AsyncReranker::with_settings(reranker, settings).expect("threads")
}

fn request(query: &str, documents: &[&str]) -> Request<'static> {
    Request::new(query.to_owned(), documents.iter().map(|document| (*document).to_owned()))
}

/// Polls a future that is not ready yet.
fn begin(future: Pin<&mut impl Future<Output = Outcome>>) {
    assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

fn integers(ranking: &Ranking) -> Vec<u32> {
    ranking.documents.iter().map(|document| document.answer.integer).collect()
}

#[test]
fn dropped_future_cancels_its_request_at_the_next_step() {
    let (backend, guide) = steps();
    let reranker = start(backend, 1, 1);
    let cancellation = CancellationToken::new();
    let mut dropped =
        Box::pin(reranker.rerank_with_cancellation(request("dropped", &["1"; 100]), &cancellation));
    begin(dropped.as_mut());
    assert_eq!(guide.wait(), ("dropped".into(), 0));
    guide.let_go(1);
    assert_eq!(guide.wait(), ("dropped".into(), 1));
    drop(dropped);
    // The backend finishes the current step only.
    let next = reranker.try_rerank(request("next", &["7"])).expect("a free slot");
    guide.let_go(2);
    assert_eq!(guide.wait(), ("next".into(), 0));
    assert_eq!(integers(&block_on(next).expect("a ranking")), [7]);
    // Dropping the future does not cancel the shared token.
    assert!(!cancellation.is_cancelled());
}

#[test]
fn dropped_future_removes_its_request_from_the_queue() {
    let (backend, guide) = steps();
    let reranker = start(backend, 1, 2);
    let first = reranker.try_rerank(request("first", &["1"])).expect("a free slot");
    guide.wait();
    let dropped = reranker.try_rerank(request("dropped", &["2"])).expect("a free slot");
    let last = reranker.try_rerank(request("last", &["3"])).expect("a free slot");
    drop(dropped);
    // A future that is never polled sends no request.
    drop(reranker.rerank(request("never polled", &["4"])));
    guide.let_go(2);
    assert_eq!(guide.wait(), ("last".into(), 0));
    assert_eq!(integers(&block_on(first).expect("a ranking")), [1]);
    assert_eq!(integers(&block_on(last).expect("a ranking")), [3]);
}

#[test]
fn full_queue_rejects_or_delays_requests() {
    let (backend, guide) = steps();
    let reranker = start(backend, 1, 1);
    let running = reranker.try_rerank(request("running", &["1"])).expect("a free slot");
    guide.wait();
    let queued = reranker.try_rerank(request("queued", &["2"])).expect("a free slot");
    let rejected = reranker.try_rerank(request("rejected", &["3"])).err().expect("no free slot");
    assert_eq!(rejected.request, request("rejected", &["3"]));
    assert!(rejected.to_string().ends_with("try again later"), "{rejected}");
    let mut waiting = Box::pin(reranker.rerank(request("waiting", &["4"])));
    begin(waiting.as_mut());
    guide.let_go(3);
    for (future, expected) in [(Box::pin(running) as BoxedFuture, 1), (Box::pin(queued), 2)] {
        assert_eq!(integers(&block_on(future).expect("a ranking")), [expected]);
    }
    assert_eq!(integers(&block_on(waiting).expect("a ranking")), [4]);
}

#[test]
fn panic_of_the_backend_fails_only_its_future() {
    let (backend, guide) = steps();
    let reranker = start(backend, 2, 4);
    guide.let_go(4);
    let bad = reranker.try_rerank(request("bad", &["8", "panic", "3"])).expect("a free slot");
    let error = block_on(bad).expect_err("it panics");
    let BackendError::Failed(cause) = &error.source else { panic!("{:?}", error.source) };
    assert!(cause.to_string().contains("on purpose"), "{cause}");
    // The documents finished before the panic are in the ranking, and the others are listed as unscored.
    assert_eq!(integers(&error.partial), [8]);
    assert_eq!(error.partial.unscored.len(), 2);
    for query in ["good", "better"] {
        let good = reranker.try_rerank(request(query, &["5"])).expect("a free slot");
        guide.let_go(1);
        assert_eq!(integers(&block_on(good).expect("a ranking")), [5]);
    }
}

#[test]
fn panic_of_the_first_pass_fails_only_its_future() {
    let (first, guide) = steps();
    let reranker = Reranker::builder(ScriptedBackend::new([answered(7, 0.5)]))
        .cascade(Cascade::best(1))
        .first_pass(FirstPass::new(first, PromptTemplate::erank()))
        .build()
        .expect("valid");
    let reranker = AsyncReranker::new(reranker).expect("threads");
    guide.let_go(3);
    let bad = reranker.try_rerank(request("bad", &["8", "panic"])).expect("a free slot");
    let error = block_on(bad).expect_err("it panics");
    let BackendError::Failed(cause) = &error.source else { panic!("{:?}", error.source) };
    assert!(cause.to_string().contains("on purpose"), "{cause}");
    // The answer of the first pass is kept, and there is no second pass.
    assert_eq!(integers(&error.partial), [8]);
    let good = reranker.try_rerank(request("good", &["5"])).expect("a free slot");
    assert_eq!(integers(&block_on(good).expect("a ranking")), [7]);
}

#[test]
fn many_futures_in_one_task_complete() {
    let (backend, guide) = steps();
    let reranker = start(backend, 3, 2);
    guide.let_go(200);
    let mut open: Vec<(u32, BoxedFuture)> = (0..100)
        .map(|number| {
            let documents = [(number % 11).to_string(), "0".into()];
            let request = Request::new("many", documents);
            (number % 11, Box::pin(reranker.rerank(request)) as _)
        })
        .collect();
    let mut done = 0;
    block_on(std::future::poll_fn(|context| {
        open.retain_mut(|(expected, future)| match future.as_mut().poll(context) {
            Poll::Ready(outcome) => {
                let ranking = outcome.expect("a ranking");
                assert_eq!(integers(&ranking), [*expected, 0]);
                done += 1;
                false
            }
            Poll::Pending => true,
        });
        if open.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }));
    assert_eq!(done, 100);
}

#[test]
fn cancellation_and_deadline_return_finished_documents() {
    let (backend, guide) = steps();
    let reranker = start(backend, 1, 1);
    let cancellation = CancellationToken::new();
    let future = reranker
        .try_rerank_with_cancellation(request("q", &["4", "9", "2"]), &cancellation)
        .expect("a free slot");
    guide.wait();
    cancellation.cancel();
    guide.let_go(1);
    let ranking = block_on(future).expect("a ranking");
    assert_eq!(integers(&ranking), [4]);
    assert!(ranking.unscored.iter().all(|d| matches!(d.error, DocumentError::Cancelled)));
    assert_eq!(ranking.unscored.len(), 2);

    let past = CancellationToken::with_deadline(Instant::now());
    let late = block_on(reranker.rerank_with_cancellation(request("late", &["4"]), &past))
        .expect("a ranking");
    assert_eq!((late.documents.len(), late.unscored.len()), (0, 1));
}

#[test]
fn threads_end_after_the_last_clone_is_dropped() {
    struct Ends(Steps, Sender<()>);
    impl ScoringBackend for Ends {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
            self.0.score(job, sink)
        }
    }
    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = self.1.send(());
        }
    }
    let (backend, guide) = steps();
    let (sender, ended) = channel();
    let reranker = start(Ends(backend, sender), 2, 4);
    let clone = reranker.clone();
    let future = reranker.try_rerank(request("q", &["6"])).expect("a free slot");
    guide.wait();
    drop((reranker, clone));
    assert!(ended.try_recv().is_err(), "the backend still works");
    guide.let_go(1);
    assert_eq!(integers(&block_on(future).expect("a ranking")), [6]);
    ended.recv_timeout(Duration::from_secs(60)).expect("the threads end");
}
