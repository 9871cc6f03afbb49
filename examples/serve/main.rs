//! Serves ERank over HTTP at `/v1/rerank`, in the format of Jina and Cohere. Their clients need only another
//! URL.
//!
//! ```sh
//! cargo run --release -p erank-examples --features serve --example serve -- 127.0.0.1:8080 [FOLDER]
//! ```
//!
//! ```text
//! curl -s localhost:8080/v1/rerank -H 'content-type: application/json' -d '{
//!     "query": "how do bees make honey", "top_n": 1, "return_documents": true,
//!     "documents": ["Wasps make paper nests.", "Bees fan nectar dry, which makes it honey."]}'
//! ```
//!
//! The optional field `instruction` states the goal of the search, such as "A document is relevant if it
//! contradicts the claim.".
//!
//! To use the service in your own project, copy `main.rs`, `service.rs` and `wire.rs`, and add:
//!
//! ```text
//! cargo add axum --no-default-features --features http1,json,tokio
//! cargo add tokio --features macros,net,rt-multi-thread,signal,sync
//! cargo add serde --features derive
//! cargo add serde_json serde_path_to_error erank-candle
//! cargo add erank-core --features async,serde
//! ```
//!
//! [wire.rs](wire.rs) defines requests and replies, and [service.rs](service.rs) defines the routes and the
//! limits. The service has neither API keys nor TLS. So run it behind a proxy that adds both.

mod service;
mod wire;

use erank_candle::CandleBackend;
use erank_core::{AsyncReranker, Reranker, ScoringBackend};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".into());
    // The bundled demonstration model, or a folder with ERank's.
    let backend = match arguments.next() {
        Some(folder) => CandleBackend::open(folder)?,
        None => CandleBackend::tiny()?,
    };
    let model = backend.name().to_owned();
    let reranker = AsyncReranker::new(Reranker::builder(backend).build()?)?;

    let listener = TcpListener::bind(&address).await?;
    println!("{model} listens on http://{}", listener.local_addr()?);
    let service = service::Service { reranker, model, limits: service::Limits::default() };
    axum::serve(listener, service.router()).with_graceful_shutdown(shutdown_signal()).await?;
    println!("stopped; all requests are answered");
    Ok(())
}

/// Waits for Ctrl-C, or for SIGTERM, which service managers and containers send.
async fn shutdown_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
