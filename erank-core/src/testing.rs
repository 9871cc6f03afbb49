//! Support for tests (feature `testing`): a scripted backend for code that uses a reranker, and
//! [`conformance`] checks for backends.

pub mod conformance;
mod scripted;

pub use scripted::{ScriptedBackend, answered};
