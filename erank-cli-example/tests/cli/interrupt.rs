//! Cancellation of `erank rerank` by Ctrl-C and by a timeout.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use crate::{ERANK, Ended};

const DOCUMENTS: usize = 30_000;

/// Starts a command with minutes of work. Returns the folder of its input, and the process.
fn long_work(more: &[&str]) -> (TempDir, Child) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("long.txt");
    let document =
        "The boats leave the harbour at high tide, and come back when the night begins.\n";
    fs::write(&file, document.repeat(DOCUMENTS)).expect("written");
    let mut command = Command::new(ERANK);
    command.args([
        "rerank",
        "--query",
        "boats at high tide",
        "--json",
        "--answer-only",
        "--threads",
        "1",
    ]);
    command.args(more).stdin(File::open(file).expect("it is there"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    (folder, command.spawn().expect("it starts"))
}

/// Asserts that the other documents are listed as cancelled, and returns the number of ranked ones.
fn ranked(ended: &Ended, stopped: &str) -> u64 {
    let report = ended.json();
    assert_eq!(report["stopped"], stopped);
    let count = |name: &str| report["counts"][name].as_u64().expect("a count");
    assert_eq!(count("ranked") + count("unscored"), DOCUMENTS as u64);
    assert!(count("unscored") > 0);
    assert!(report["unscored"][0]["reason"].as_str().is_some_and(|why| why.contains("cancelled")));
    count("ranked")
}

#[test]
fn rerank_prints_partial_ranking_on_ctrl_c() {
    // The time of the first result depends on the machine.
    for seconds in [2, 4, 8, 16, 32] {
        let (_folder, child) = long_work(&[]);
        sleep(Duration::from_secs(seconds));
        let pid = child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().expect("kill runs");
        assert!(sent.success());
        let ended = Ended::new(child.wait_with_output().expect("it ends"));
        assert_eq!(ended.code, Some(130), "{}", ended.err);
        // Before ranking begins, there is nothing to print.
        if !ended.out.is_empty() && ranked(&ended, "interrupted") > 0 {
            assert!(ended.err.contains("Ctrl-C again"), "{}", ended.err);
            return;
        }
    }
    panic!("nothing was ranked within 32 seconds");
}

#[test]
fn rerank_prints_partial_ranking_on_timeout() {
    let (_folder, child) = long_work(&["--timeout", "1.5"]);
    let ended = Ended::new(child.wait_with_output().expect("it ends"));
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    ranked(&ended, "timeout");
}
