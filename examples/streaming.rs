//! Prints each answer as soon as the model gives it, sets a deadline, and cancels a request.
//!
//! ```sh
//! cargo run -p erank-examples --example streaming
//! ```

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use erank_candle::CandleBackend;
use erank_core::{AnswerProbability, CancellationToken, Request, Reranker, ScoringBackend, Sink};
use erank_core::{BackendError, Completion, DocumentError, Job, TokenCounts};

/// A backend that prints the answers of another backend and passes them on.
struct Printing<B>(B);

impl<B: ScoringBackend> ScoringBackend for Printing<B> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        self.0.score(job, &mut PrintingSink { job, sink })
    }

    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        self.0.token_ends(text, max_tokens)
    }
}

/// Receives a job's results from the inner backend.
struct PrintingSink<'a> {
    job: &'a Job<'a>,
    sink: &'a mut dyn Sink,
}

impl Sink for PrintingSink<'_> {
    fn completed(&mut self, index: usize, outcome: Result<Completion, DocumentError>) {
        let document = self.job.documents[index];
        match &outcome {
            Ok(completion) => {
                let format = self.job.prompt.answers();
                match format.parse(completion, AnswerProbability::default()) {
                    Ok(answer) => println!("{:2}  {document}", answer.integer),
                    Err(error) => println!(" -  {document}: {error}"),
                }
            }
            Err(error) => println!(" -  {document}: {error}"),
        }
        self.sink.completed(index, outcome);
    }

    fn tokens_processed(&mut self, tokens: TokenCounts) {
        self.sink.tokens_processed(tokens);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = CandleBackend::tiny()?;
    let request = Request::new("how do bees make honey", DOCUMENTS);

    // The answers come in any order; the ranking follows when all have come.
    let reranker = Reranker::builder(Printing(&backend)).build()?;
    let ranking = reranker.rerank(&request)?;
    println!("best: {}", DOCUMENTS[ranking.documents[0].index]);

    // At the deadline the ranking is returned as it is. Documents without an answer are listed as cancelled.
    // Any thread can end the work earlier with `cancellation.cancel()`.
    let cancellation = CancellationToken::with_deadline(Instant::now() + Duration::from_secs(60));
    let reranker = Reranker::builder(&backend).build()?;
    let ranking = reranker.rerank_with_cancellation(&request, &cancellation)?;
    println!("in time: {}, too late: {}", ranking.scored_count, ranking.unscored.len());

    // The progress callback can cancel the request as well, here after three documents.
    let reranker = Reranker::builder(&backend)
        .on_progress(|progress| {
            eprint!("\r{} of {} documents", progress.documents_done, progress.documents);
            match progress.documents_done {
                ..3 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })
        .build()?;
    let many = Request::new("how do bees make honey", DOCUMENTS.repeat(100));
    let ranking = reranker.rerank(&many)?;
    println!("enough: {} of {} documents", ranking.scored_count, many.documents.len());
    Ok(())
}

const DOCUMENTS: [&str; 4] = [
    "The town of Beeston is known for its cakes.",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "Maple syrup is boiled from the sap of trees.",
    "Do bears like honey?",
];
