//! Makes ERank a reranking model of [rig](https://docs.rs/rig-core), for code that takes a
//! `DynModel<Rerank>`.
//!
//! ```sh
//! cargo run -p erank-examples --features adapters --example rig
//! ```

use std::sync::Arc;

use erank_candle::CandleBackend;
use erank_core::{CancellationToken, Request, RerankError, Reranker};
use rig_core::driver::{Exchange, Local, Model, Opened, Opening, Step, Transport};
use rig_core::error::ProviderError;
use rig_core::operation::{Rerank, RerankRequest};
use rig_core::rerank::{RerankResponse, RerankResult};
use rig_core::{DynModel, serde_json, wire::Capabilities};

/// A transport of rig, which answers a model's requests. This one answers them in this process.
#[derive(Clone)]
struct ERank(Arc<Reranker<CandleBackend>>);

impl Transport<Local<Rerank>> for ERank {
    fn send(&self, request: RerankRequest, _: Exchange) -> Opening<Step<Rerank>> {
        let reranker = Arc::clone(&self.0);
        Opening::new(async move {
            // Reranking blocks its thread, so it must not run on one of the runtime's own threads. If
            // the caller drops this future, the guard cancels the request.
            let guard = CancelOnDrop(CancellationToken::new());
            let cancellation = guard.0.clone();
            let work = move || rerank(&reranker, request, &cancellation);
            let reply = tokio::task::spawn_blocking(work).await;
            let (response, document) = reply
                .map_err(|error| ProviderError::Provider(error.to_string()))?
                .map_err(|e| ProviderError::Provider(format!("{e}: {}", e.source)))?;
            let end = futures_util::stream::iter([Ok(Step::End(response))]);
            Ok(Opened::new(end).with_document(document))
        })
    }
}

struct CancelOnDrop(CancellationToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Returns the response, and for its field `raw` the whole ranking: answers, probabilities and reasons,
/// and the errors of documents without a score.
fn rerank(
    reranker: &Reranker<CandleBackend>,
    request: RerankRequest,
    cancellation: &CancellationToken,
) -> Result<(RerankResponse, serde_json::Value), RerankError> {
    let request = Request::new(request.query, request.documents);
    let ranking = reranker.rerank_with_cancellation(&request, cancellation)?;
    let results = ranking.documents.iter().map(|document| RerankResult {
        index: document.index,
        document: Some(request.documents[document.index].text.to_string()),
        relevance_score: document.score,
    });
    let response = RerankResponse::new(results.collect());
    Ok((response, serde_json::to_value(&ranking).unwrap_or_default()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let reranker = Reranker::builder(CandleBackend::tiny()?).build()?;
    let wire = Local::<Rerank>::new("erank").with_capabilities(Capabilities::rerank(1000));
    let model: DynModel<Rerank> = Model::new(wire, ERank(Arc::new(reranker))).erase();

    let documents = [
        "The town of Beeston is known for its cakes.",
        "Nectar becomes honey when bees fan it dry with their wings.",
        "",
        "Maple syrup is boiled from the sap of trees.",
    ];
    let query = "how do bees make honey".into();
    let response =
        model.call(RerankRequest { query, documents: documents.map(String::from).into() }).await?;
    for result in response.results {
        println!("{:6.3}  {}", result.relevance_score, result.document.unwrap_or_default());
    }
    println!("without a score: {}", response.raw["unscored"]);
    Ok(())
}
