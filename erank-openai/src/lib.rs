//! The remote backend of erank: ERank on vLLM, llama.cpp, or another engine with an OpenAI-compatible
//! HTTP API.
//!
//! | step | what happens |
//! |---|---|
//! | once | each server says what it is, renders its chat template, shows that it gives log-probabilities |
//! | a job | what its prompts have in common goes ahead, then the documents, as many as the servers take |
//! | a document | the model thinks until `<answer>`; one more token, with its alternatives, is the answer |
//! | a fault | the request goes out again, later or elsewhere; then it is that document's error |
//!
//! What a document says stays data: control tokens in it are broken up ([`QWEN3_CONTROL_TOKENS`]), or
//! cannot arise ([`Prompts::TokenIds`]).
//!
//! Proxies are those of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).
//! Redirects are not followed.
//!
//! Retries, and endpoints that are left alone, refuse or work again, are told through `tracing`, without
//! keys and without what documents or replies say. The HTTP client logs through the `log` crate; see
//! [`ApiKey`] for what it shows.
//!
//! # Limits
//! - An answer that is not among the server's alternatives has
//!   [a bound](erank_core::AnswerDistribution::is_bound), not a probability.
//! - As text, a thought is tokenized again when the answer is read, and limits in tokens are limits in
//!   bytes ([`OpenAiSettings::bytes_per_token`]); [`Prompts::TokenIds`] has neither flaw.
//! - The same prompt gives the same bits only if the server sees to it. llama.cpp's and vLLM's
//!   log-probabilities depend a little on what else runs and on what is cached.

mod api;
mod backend;
mod calls;
mod control_tokens;
mod document;
mod error;
mod fleet;
mod http;
mod labels;
mod prompts;
mod server;
mod settings;

pub use backend::OpenAiBackend;
pub use control_tokens::QWEN3_CONTROL_TOKENS;
pub use error::{CapabilityError, RequestError, SetupError};
pub use http::ApiKey;
pub use prompts::{TokenPrompt, TokenPrompts};
pub use server::Server;
pub use settings::{OpenAiSettings, Prompts};

/// The README's example, compiled as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
