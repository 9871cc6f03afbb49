//! A process that gets no more memory from the system.

use std::process::Command;

use crate::{ERANK, Ended};

/// An allocation that fails is an error with a reason, or the work fits. It never ends the process by a signal.
#[test]
fn rerank_reports_failed_allocations() {
    let documents = concat!(env!("CARGO_MANIFEST_DIR"), "/data/hits.jsonl");
    let mut codes = Vec::new();
    for kibibytes in [150_000, 400_000, 800_000, 8_000_000] {
        let limited = format!("ulimit -v {kibibytes}; exec \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &limited, "sh", ERANK, "rerank", "--threads", "1", "--answer-only"])
            .args(["--query", "jet", "--docs", documents])
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("sh");
        let ended = Ended::new(output);
        assert!(ended.code.is_some_and(|code| code < 126), "{kibibytes} KiB: {ended:?}");
        assert_eq!(ended.err.is_empty(), ended.code == Some(0), "{ended:?}");
        codes.push(ended.code);
    }
    assert_ne!(codes[0], Some(0), "the limit has no effect");
    assert_eq!(codes[3], Some(0), "the work fits in 8 GB");
}
