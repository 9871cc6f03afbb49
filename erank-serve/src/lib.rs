//! An HTTP service for erank, which clients of Cohere, Jina, vLLM and text-embeddings-inference can use.
//!
//! ```text
//! connection ─▶ guard: host, origin, key ─▶ request: JSON → query, documents, options
//!     ─▶ queue: a free worker ─▶ ranking: a reranker for this request ─▶ reply: JSON, or events
//! ```
//!
//! [`Service::router`] is an [`axum::Router`], which any axum program can serve. [`serve`] serves it with limits for
//! hostile clients: time for headers, bodies and replies, a number of connections, and an end after the shutdown.
//!
//! ```
//! use erank_core::testing::ScriptedBackend;
//! use erank_serve::{Service, Settings};
//!
//! let backend = ScriptedBackend::texts(["<think>it fits</think><answer>9</answer>"]);
//! let service = Service::new(backend, Settings::default());
//! let router: axum::Router = service.router();
//! # let _ = router;
//! ```
//!
//! | file | content |
//! |---|---|
//! | [`settings`] | limits, names, keys |
//! | [`service`] | the routes |
//! | `guard` | host, origin, API key, request id, access log |
//! | `body` | the bytes of requests and replies, within limits of time and memory |
//! | `request` | the fields of a request, by any client's names |
//! | `ranking` | the queue, and the reranker of a request |
//! | `events` | server-sent events |
//! | `reply` | replies as JSON |
//! | `problem` | error replies |
//! | `metrics` | metrics for Prometheus |
//! | [`server`] | the loop over connections |
//!
//! docs/service.md in the repository describes the routes and the fields.

mod body;
mod connection;
mod events;
mod guard;
mod metrics;
mod page;
mod problem;
mod ranking;
mod reply;
mod request;
pub mod server;
pub mod service;
pub mod settings;

pub use metrics::{EngineMetric, MetricKind};
pub use server::{ServerSettings, serve};
pub use service::Service;
pub use settings::{ApiKeys, Settings, Unscored};

/// The README's example, compiled as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
