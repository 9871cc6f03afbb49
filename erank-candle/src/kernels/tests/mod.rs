//! Means of the kernels' tests: the oracle, and slices between guard pages.

#[cfg(target_os = "linux")]
pub(super) mod guard_pages;
pub(super) mod oracle;
