//! ERank over HTTP: `/v1/rerank` in the wire shape of Jina and Cohere, so that their clients, and what
//! is built on them, rerank with ERank by exchanging a URL.
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
//! In a project of your own, take the three files of service, wire and main, and
//!
//! ```text
//! cargo add axum --no-default-features --features http1,json,tokio
//! cargo add tokio --features macros,net,rt-multi-thread,signal,sync
//! cargo add serde --features derive
//! cargo add serde_json serde_path_to_error erank-candle
//! cargo add erank-core --features async,serde
//! ```
//!
//! [wire.rs](wire.rs) has what goes in and out, [service.rs](service.rs) what happens in between. There
//! are no keys and no TLS: put it behind a proxy that has both.

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
    axum::serve(listener, service.router()).with_graceful_shutdown(asked_to_end()).await?;
    println!("ended; all that was asked is answered");
    Ok(())
}

/// Ctrl-C, or SIGTERM, as service managers and containers send it.
async fn asked_to_end() {
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
