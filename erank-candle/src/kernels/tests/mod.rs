//! Helpers for the kernels' tests.

#[cfg(target_os = "linux")]
pub(super) mod guard_pages;
pub(super) mod matrix;
pub(super) mod oracle;
