//! The remote backend of erank: ERank on vLLM, llama.cpp, SGLang, or another engine with an
//! OpenAI-compatible HTTP API.
//!
//! | step | action |
//! |---|---|
//! | once per server | detects its kind, renders its chat template, and checks that it returns log-probabilities and adds no token to prompts |
//! | per job | sends the common prefix of the prompts ahead, then as many documents as the servers accept |
//! | per document | generates the thought until `<answer>`; one more token, with its top log-probabilities, is the answer |
//! | after a failure | retries the request, later or at another server; then the document has an error |
//!
//! A document is data. Control tokens in it are broken up ([`QWEN3_CONTROL_TOKENS`]), or encoded as plain
//! text ([`PromptFormat::TokenIds`]).
//!
//! Proxies come from the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`). Redirects are
//! not followed.
//!
//! The crate logs retries. It also logs when an endpoint is ejected, recovers, or rejects every request.
//! These events (`tracing`) contain no keys and no text of documents or responses. The HTTP client logs
//! through the `log` crate. [`ApiKey`] describes what its messages contain.
//!
//! # Limits
//! - An answer that is not among the server's top log-probabilities has an
//!   [upper bound](erank_core::AnswerDistribution::is_bound) instead of a probability.
//! - With raw text, a thought is tokenized again when the answer is read, and limits in tokens become
//!   limits in bytes ([`OpenAiSettings::bytes_per_token`]). With [`PromptFormat::TokenIds`], thoughts are not
//!   tokenized again, and limits are exact.
//! - The same prompt gives the same bits only if the server ensures it. The log-probabilities of
//!   llama.cpp and vLLM depend slightly on the batch and on the cache.

mod api;
mod backend;
mod capabilities;
mod client;
mod control_tokens;
mod endpoint;
mod error;
mod generation;
mod http;
mod job;
mod labels;
mod load_balancer;
mod prompts;
mod settings;
mod tokenizer;

pub use backend::OpenAiBackend;
pub use control_tokens::QWEN3_CONTROL_TOKENS;
pub use error::{CapabilityError, RequestError, SetupError};
pub use http::ApiKey;
pub use settings::{OpenAiSettings, PromptFormat, ServerKind};
pub use tokenizer::{ClientTokenizer, TokenizedPrompt};

/// The parser of replies, for this workspace's fuzzing alone. Semantic versioning does not cover it.
#[doc(hidden)]
pub mod internals {
    use erank_core::Completion;

    /// Parses the body of a reply, as the backend does.
    ///
    /// # Errors
    /// Returns a description of the problem.
    pub fn parse_reply(body: &[u8]) -> Result<Completion, String> {
        let mut completion = Completion::new("");
        crate::api::Response::parse(body)?.append_to(&mut completion);
        Ok(completion)
    }
}

/// The README's example, compiled as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
