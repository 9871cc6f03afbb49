//! Answers as they come, progress, and an end to the work: by hand, or at a deadline.
//!
//! ```sh
//! cargo run -p erank-examples --example streaming
//! ```

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use erank_candle::CandleBackend;
use erank_core::{AnswerProbability, CancellationToken, Request, Reranker, ScoringBackend, Sink};
use erank_core::{BackendError, Completion, DocumentError, Job, TokenCounts};

/// A backend that shows what another one answers, as it comes, on the way to the ranking.
struct Shown<B>(B);

impl<B: ScoringBackend> ScoringBackend for Shown<B> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        self.0.score(job, &mut Show { job, sink })
    }
}

struct Show<'a> {
    job: &'a Job<'a>,
    sink: &'a mut dyn Sink,
}

impl Sink for Show<'_> {
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

    let reranker = Reranker::builder(Shown(&backend)).build()?;
    let ranking = reranker.rerank(&request)?;
    println!("best: {}", DOCUMENTS[ranking.documents[0].index]);

    // What is not done within a minute is not lost, but listed as stopped.
    let stop = CancellationToken::with_deadline(Instant::now() + Duration::from_secs(60));
    let ranking = Reranker::builder(&backend).build()?.rerank_with_cancellation(&request, &stop)?;
    println!("in time: {}, too late: {}", ranking.scored_count, ranking.unscored.len());

    // Any thread can call `stop.cancel()`; so can the work itself, here after three documents.
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
