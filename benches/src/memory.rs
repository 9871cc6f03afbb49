//! Resident memory of this process, as Linux counts it.

use std::fs;
use std::io;

/// Forgets the peak so far.
///
/// # Errors
/// Where Linux's `/proc` does not offer it.
pub fn reset_peak() -> io::Result<()> {
    fs::write("/proc/self/clear_refs", "5")
}

/// The peak since [`reset_peak`], in bytes.
///
/// # Errors
/// Where Linux's `/proc` does not tell it.
pub fn peak() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(|| io::Error::other("no VmHWM"))
}
