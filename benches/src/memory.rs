//! Resident memory of this process, as Linux counts it.

use std::fs;
use std::io;

/// Resets the peak, so that [`peak`] counts from now on.
///
/// # Errors
/// Returns an error if Linux's `/proc/self/clear_refs` cannot be written.
pub fn reset_peak() -> io::Result<()> {
    fs::write("/proc/self/clear_refs", "5")
}

/// Returns the peak of the resident memory since [`reset_peak`], in bytes.
///
/// # Errors
/// Returns an error if Linux's `/proc/self/status` has no `VmHWM`.
pub fn peak() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(|| io::Error::other("no VmHWM"))
}
