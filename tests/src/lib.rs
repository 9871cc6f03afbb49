//! Code that several tests share, and documentation pages whose examples run as tests.

pub mod local;
pub mod parity;
pub mod qwen3_tokenizer;
pub mod random_model;

/// Compiles and runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// Compiles and runs the examples of `docs/backends.md`. A test of `erank-examples` checks its quotes.
#[cfg(doctest)]
#[doc = include_str!("../../docs/backends.md")]
pub struct Backends;

/// Compiles and runs the examples of `docs/evaluation.md`.
#[cfg(doctest)]
#[doc = include_str!("../../docs/evaluation.md")]
pub struct Evaluation;

/// Compiles and runs the examples of `docs/long-documents.md`.
#[cfg(doctest)]
#[doc = include_str!("../../docs/long-documents.md")]
pub struct LongDocuments;
