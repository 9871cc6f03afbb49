//! Adds ERank to a query pipeline of [swiftide](https://docs.rs/swiftide), between the retriever and the
//! model that answers.
//!
//! ```sh
//! cargo run -p erank-examples --features adapters --example swiftide
//! ```

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use erank_candle::CandleBackend;
use erank_core::{Request, Reranker};
use swiftide::query::search_strategies::SimilaritySingleEmbedding;
use swiftide::query::{Pipeline, Query, states};
use swiftide::traits::TransformResponse;

#[derive(Clone)]
struct ERank {
    reranker: Arc<Reranker<CandleBackend>>,
    /// Number of documents passed on to the model that answers.
    keep: usize,
}

#[async_trait]
impl TransformResponse for ERank {
    async fn transform_response(
        &self,
        mut query: Query<states::Retrieved>,
    ) -> Result<Query<states::Retrieved>> {
        let Self { reranker, keep } = self.clone();
        // Reranking blocks its thread, so it must not run on one of the runtime's own threads.
        let work = move || {
            let texts = query.documents().iter().map(|document| document.content());
            let ranking = reranker.rerank(&Request::new(query.original(), texts))?;
            // Documents without a score come last, in the retriever's order.
            let scored = ranking.documents.iter().map(|document| document.index);
            let unscored = ranking.unscored.iter().map(|document| document.index);
            let order = scored.chain(unscored).take(keep);
            let documents = order.map(|index| query.documents()[index].clone()).collect();
            query.documents = documents;
            Ok(query)
        };
        tokio::task::spawn_blocking(work).await?
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let reranker = Arc::new(Reranker::builder(CandleBackend::tiny()?).build()?);
    let pipeline = Pipeline::default()
        // Replace this with your retriever; it returns the whole collection.
        .then_retrieve(|_: &SimilaritySingleEmbedding, query: Query<states::Pending>| {
            Ok(query.retrieved_documents(COLLECTION.map(Into::into).into()))
        })
        .then_transform_response(ERank { reranker, keep: 3 })
        // Replace this with your language model; it answers with the documents themselves.
        .then_answer(|query: Query<states::Retrieved>| {
            let texts: Vec<&str> = query.documents().iter().map(|d| d.content()).collect();
            let answer = texts.join("\n");
            Ok(query.answered(answer))
        });
    println!("{}", pipeline.query("how do bees make honey").await?.answer());
    Ok(())
}

const COLLECTION: [&str; 5] = [
    "",
    "The town of Beeston is known for its cakes.",
    "Nectar becomes honey when bees fan it dry with their wings.",
    "Maple syrup is boiled from the sap of trees.",
    "Honey is made by bees from nectar, which they thicken in the comb.",
];
