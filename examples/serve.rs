//! Adds erank's routes to an axum program of your own, beside its other routes.
//!
//! ```sh
//! cargo run --release -p erank-examples --features serve --example serve -- 127.0.0.1:8080 [FOLDER]
//! ```
//!
//! ```text
//! curl -s localhost:8080/v1/rerank -H 'content-type: application/json' -d '{
//!     "query": "how do bees make honey", "top_n": 1,
//!     "documents": ["Wasps make paper nests.", "Bees fan nectar dry, which makes it honey."]}'
//! ```
//!
//! `erank serve` is a whole service. docs/service.md describes its routes.

use axum::routing::get;
use erank_candle::CandleBackend;
use erank_serve::{ServerSettings, Service, Settings};
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
    let mut settings = Settings::default();
    settings.aliases = vec!["reranker".into()];
    let service = Service::new(backend, settings);

    let program = service.router().route("/version", get(async || env!("CARGO_PKG_VERSION")));
    let listener = TcpListener::bind(&address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
        service.stop();
    };
    // `axum::serve` works too, without the limits for slow and vanishing clients.
    let left = erank_serve::serve(listener, program, ServerSettings::default(), shutdown).await?;
    println!("stopped; {left} connections were closed amid a request");
    Ok(())
}
