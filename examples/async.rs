//! Reranks from asynchronous code. The futures run on any runtime; here `pollster::block_on` polls them.
//!
//! ```sh
//! cargo run -p erank-examples --example async
//! ```

use std::time::{Duration, Instant};

use erank_candle::CandleBackend;
use erank_core::{AsyncReranker, AsyncSettings, CancellationToken, Request, Reranker};

async fn search(reranker: &AsyncReranker) -> Result<(), Box<dyn std::error::Error>> {
    // `rerank` waits while the queue is full. The future owns its request.
    let honey = reranker.rerank(Request::new("how do bees make honey", DOCUMENTS));
    let ranking = honey.await?;
    println!("{}", DOCUMENTS[ranking.documents[0].index]);

    // `try_rerank` and its variants return an error instead if the queue is full, as a service wants.
    // Both requests start at once, and the model computes them in one batch.
    let cancellation = CancellationToken::with_deadline(Instant::now() + Duration::from_secs(60));
    let syrup = Request::new("syrup from trees", DOCUMENTS);
    let cakes = Request::new("known for cakes", DOCUMENTS);
    let syrup = reranker.try_rerank_with_cancellation(syrup, &cancellation)?;
    let cakes = reranker.try_rerank_with_cancellation(cakes, &cancellation)?;
    for ranking in [syrup.await?, cakes.await?] {
        println!("{}", DOCUMENTS[ranking.documents[0].index]);
    }

    // Dropping a future, as a timeout or a disconnected client does, cancels its request.
    drop(reranker.try_rerank(Request::new("never mind", DOCUMENTS.repeat(1000)))?);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut settings = AsyncSettings::default();
    settings.queue_capacity = 100.try_into()?;
    let reranker = Reranker::builder(CandleBackend::tiny()?).build()?;
    pollster::block_on(search(&AsyncReranker::with_settings(reranker, settings)?))
}

const DOCUMENTS: [&str; 3] = [
    "The town of Beeston is known for its cakes.",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "Maple syrup is boiled from the sap of trees.",
];
