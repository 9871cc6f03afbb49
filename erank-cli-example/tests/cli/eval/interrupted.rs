//! Evaluations that are ended before they are done, and go on.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Collection, string};
use crate::{ERANK, Ended};

/// Lines of the scores' file, the first one included.
fn lines(collection: &Collection) -> usize {
    let scores = fs::read(collection.path("out/scores.jsonl")).unwrap_or_default();
    scores.iter().filter(|byte| **byte == b'\n').count()
}

/// Starts the evaluation, and sends it a signal once something is scored. Most is not by then.
fn interrupted(collection: &Collection, signal: &str) -> Ended {
    let mut command = Command::new(ERANK);
    command.args(collection.arguments("jsonl", "out", "--threads 1"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let begin = Instant::now();
    while lines(collection) < 3 {
        assert!(begin.elapsed() < Duration::from_secs(120), "nothing was scored");
        sleep(Duration::from_millis(1));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
    Ended::new(child.wait_with_output().expect("it ends"))
}

/// Goes on, and checks that the outcome is the one of an evaluation that was not ended.
fn goes_on(collection: &Collection) {
    let kept = lines(collection) - 1;
    assert!((1..48).contains(&kept), "{kept}");
    assert!(!fs::exists(collection.path("out/report.json")).expect("known"), "it was not done");
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
    assert_eq!(lines(collection), 1 + 48, "nothing was computed twice");

    let whole = collection.eval("jsonl", "whole", "");
    assert_eq!(whole.code, Some(0), "{whole:?}");
    for file in ["report.json", "first_stage.run", "reranked.run", "hybrid.run", "gains.svg"] {
        let of_whole = collection.read(&format!("whole/{file}"));
        assert_eq!(collection.read(&format!("out/{file}")), of_whole, "{file}");
    }
    assert_eq!(run.out, whole.out);
    let again = collection.eval("jsonl", "out", "");
    assert!(again.err.contains("48 documents, 0 of them to be scored"), "{}", again.err);
    assert_eq!(again.out, whole.out);
}

#[test]
fn what_was_scored_survives_kill_9() {
    let collection = Collection::new();
    let ended = interrupted(&collection, "-KILL");
    assert_eq!(ended.code, None, "{ended:?}");
    // As if it had happened within a line.
    collection.edit("out/scores.jsonl", |text| format!("{text}{{\"query\":\"bees\",\"docu"));
    goes_on(&collection);
}

#[test]
fn ctrl_c_keeps_what_is_done_and_says_how_to_go_on() {
    let collection = Collection::new();
    let ended = interrupted(&collection, "-INT");
    assert_eq!((ended.code, ended.out.as_str()), (Some(130), ""), "{ended:?}");
    for said in ["of 48 documents are done", "scores.jsonl; the same command goes on from there"] {
        assert!(ended.err.contains(said), "{said}: {}", ended.err);
    }
    goes_on(&collection);
}

#[test]
fn so_does_a_timeout() {
    let collection = Collection::new();
    let ended = collection.eval("jsonl", "out", "--timeout 0");
    assert_eq!((ended.code, ended.out.as_str()), (Some(4), ""), "{ended:?}");
    assert!(ended.err.contains("Stopped: 0 of 48 documents are done"), "{}", ended.err);
    assert!(ended.err.contains("goes on from there"), "{}", ended.err);
}
