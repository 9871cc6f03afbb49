//! What several tests share.

pub mod local;
pub mod random_model;

/// The README's examples, compiled and run as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// Likewise; what it quotes from examples is compared with them by their own tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/backends.md")]
pub struct Backends;

/// Likewise.
#[cfg(doctest)]
#[doc = include_str!("../../docs/evaluation.md")]
pub struct Evaluation;
