//! Evaluations that are interrupted and resumed.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Collection, string};
use crate::{ERANK, Ended};

/// Returns the number of lines in the file of scores, including the first.
fn lines(collection: &Collection) -> usize {
    let scores = fs::read(collection.path("out/scores.jsonl")).unwrap_or_default();
    scores.iter().filter(|byte| **byte == b'\n').count()
}

/// Starts the evaluation, and sends a signal after the first scores.
fn interrupted(collection: &Collection, signal: &str) -> Ended {
    let mut command = Command::new(ERANK);
    command.args(collection.arguments("jsonl", "out", "--threads 1"));
    let child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    let begin = Instant::now();
    while lines(collection) < 3 {
        assert!(begin.elapsed() < Duration::from_secs(120), "nothing was scored");
        sleep(Duration::from_millis(1));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
    Ended::new(child.wait_with_output().expect("it ends"))
}

/// Resumes, and asserts that the output equals that of an uninterrupted evaluation.
fn assert_resumes(collection: &Collection) {
    let kept = lines(collection) - 1;
    assert!((1..48).contains(&kept), "{kept}");
    assert!(
        !fs::exists(collection.path("out/report.json")).expect("known"),
        "the evaluation was complete"
    );
    let run = collection.eval("jsonl", "out", "");
    assert_eq!(run.code, Some(0), "{run:?}");
    let said = format!("48 documents, {} of them to be scored", 48 - kept);
    assert!(run.err.contains(&said), "{said}: {}", run.err);

    let scores = collection.read("out/scores.jsonl");
    let entries = scores.lines().skip(1).map(|line| {
        let entry: Value = serde_json::from_str(line).expect("JSON");
        (string(&entry["query"]).to_owned(), string(&entry["document"]).to_owned())
    });
    assert_eq!(entries.collect::<BTreeSet<_>>().len(), 48);
    assert_eq!(lines(collection), 1 + 48, "a document was scored twice");

    let whole = collection.eval("jsonl", "whole", "");
    assert_eq!(whole.code, Some(0), "{whole:?}");
    assert_same_files(collection, "out");
    assert_eq!(run.out, whole.out);
    let again = collection.eval("jsonl", "out", "");
    assert!(again.err.contains("48 documents, 0 of them to be scored"), "{}", again.err);
    assert_eq!(again.out, whole.out);
}

/// Asserts that the files of a resumed evaluation equal those of the uninterrupted one, to the byte.
fn assert_same_files(collection: &Collection, out: &str) {
    for file in ["report.json", "first_stage.run", "reranked.run", "hybrid.run", "gains.svg"] {
        let of_whole = collection.read(&format!("whole/{file}"));
        assert_eq!(collection.read(&format!("{out}/{file}")), of_whole, "{file}");
    }
}

#[test]
fn eval_resumes_after_kill_9() {
    let collection = Collection::new();
    let ended = interrupted(&collection, "-KILL");
    assert_eq!(ended.code, None, "{ended:?}");
    // An incomplete last line imitates a kill during a write.
    collection.edit("out/scores.jsonl", |text| format!("{text}{{\"query\":\"bees\",\"docu"));
    assert_resumes(&collection);
}

/// Beyond a limit of file sizes, a write fails as on a full disk.
#[cfg(unix)]
#[test]
fn eval_resumes_after_a_full_disk() {
    let collection = Collection::new();
    // Without a handler, the limit's signal would end the process.
    let limited = r#"trap "" XFSZ; ulimit -f 4; exec "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", limited, "sh", ERANK]);
    command.args(collection.arguments("jsonl", "out", "--threads 1"));
    let ended = Ended::new(command.output().expect("it runs"));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("scores.jsonl: "), "{}", ended.err);
    // The last line is incomplete.
    assert!(!collection.read("out/scores.jsonl").ends_with('\n'));
    assert_resumes(&collection);
}

/// Evaluations are killed at random moments of their run, and resumed until they end. `ERANK_KILLS` sets the number of
/// kills.
#[test]
fn eval_killed_at_any_moment_ends_with_the_same_report() {
    let kills: usize = match std::env::var("ERANK_KILLS") {
        Ok(count) => count.parse().expect("a number"),
        Err(_) => 10,
    };
    let collection = Collection::new();
    let begin = Instant::now();
    let whole = collection.eval("jsonl", "whole", "--threads 1");
    let duration = begin.elapsed();
    assert_eq!(whole.code, Some(0), "{whole:?}");
    let (mut killed, mut evaluations) = (0, 0);
    while killed < kills {
        let out = format!("out-{evaluations}");
        evaluations += 1;
        let ended = loop {
            let mut command = Command::new(ERANK);
            command.args(collection.arguments("jsonl", &out, "--threads 1"));
            let mut child =
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
            // Each `RandomState` has random keys.
            let random = RandomState::new().hash_one(killed) as f64 / u64::MAX as f64;
            sleep(duration.mul_f64(1.1 * random));
            child.kill().expect("kill runs");
            let ended = Ended::new(child.wait_with_output().expect("it ends"));
            if ended.code.is_some() {
                break ended;
            }
            killed += 1;
        };
        assert_eq!((ended.code, &ended.out), (Some(0), &whole.out), "{ended:?}");
        assert_same_files(&collection, &out);
    }
    println!("{killed} kills of {evaluations} evaluations");
}

#[test]
fn eval_resumes_after_ctrl_c() {
    let collection = Collection::new();
    let ended = interrupted(&collection, "-INT");
    assert_eq!((ended.code, ended.out.as_str()), (Some(130), ""), "{ended:?}");
    for said in ["of 48 documents are scored", "scores.jsonl. The same command resumes from there"]
    {
        assert!(ended.err.contains(said), "{said}: {}", ended.err);
    }
    assert_resumes(&collection);
}

#[test]
fn eval_keeps_scores_on_timeout() {
    let collection = Collection::new();
    let ended = collection.eval("jsonl", "out", "--timeout 0");
    assert_eq!((ended.code, ended.out.as_str()), (Some(4), ""), "{ended:?}");
    assert!(ended.err.contains("Stopped: 0 of 48 documents are scored"), "{}", ended.err);
    assert!(ended.err.contains("resumes from there"), "{}", ended.err);
}
