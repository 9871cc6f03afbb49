//! Reranking from asynchronous code, on any runtime; here on a plain `block_on`.
//!
//! ```sh
//! cargo run -p erank-examples --example async
//! ```

use std::time::{Duration, Instant};

use erank_candle::CandleBackend;
use erank_core::{AsyncReranker, AsyncSettings, CancellationToken, Request, Reranker};

async fn search(reranker: &AsyncReranker) -> Result<(), Box<dyn std::error::Error>> {
    // A future waits for room if many others ask. What it asks for is its own, not borrowed.
    let honey = reranker.rerank(Request::new("how do bees make honey", DOCUMENTS));
    let ranking = honey.await?;
    println!("{}", DOCUMENTS[ranking.documents[0].index]);

    // A service would rather say that it is busy. Both requests are under way at once, and the model
    // computes them together.
    let stop = CancellationToken::with_deadline(Instant::now() + Duration::from_secs(60));
    let syrup = Request::new("syrup from trees", DOCUMENTS);
    let cakes = Request::new("known for cakes", DOCUMENTS);
    let syrup = reranker.try_rerank_with_cancellation(syrup, &stop)?;
    let cakes = reranker.try_rerank_with_cancellation(cakes, &stop)?;
    for ranking in [syrup.await?, cakes.await?] {
        println!("{}", DOCUMENTS[ranking.documents[0].index]);
    }

    // A future that is dropped, as by a timeout or a client that went away, stops its work.
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
