//! The memory that is available to this process.

use std::fs::read_to_string;

/// Returns the bytes of memory that can be allocated without swapping, within the limit of the
/// control group (cgroup v2). Returns `None` on systems other than Linux.
pub(crate) fn available() -> Option<usize> {
    let free = field(&read_to_string("/proc/meminfo").ok()?, "MemAvailable:")? * 1024;
    let number = |file: &str| read_to_string(file).ok()?.trim().parse().ok();
    let limit: Option<usize> = number("/sys/fs/cgroup/memory.max");
    let used: usize = number("/sys/fs/cgroup/memory.current").unwrap_or(0);
    Some(limit.map_or(free, |limit| free.min(limit.saturating_sub(used))))
}

/// Returns the number that follows `name` in a text with lines of the form "name: number unit".
fn field(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_returns_number_after_name() {
        let text = "MemTotal:       24 kB\nMemAvailable:   17 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(17));
        assert_eq!(field(text, "SwapTotal:"), None);
        assert_eq!(field("MemAvailable:", "MemAvailable:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn available_on_linux_is_known() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
