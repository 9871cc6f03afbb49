//! The demonstration.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::{ERANK, erank};

/// The queries, and the beginnings of their answers.
const ANSWERS: [(&str, &str); 6] = [
    ("why do leaves change colour in autumn", "Many trees change"),
    ("boil eggs at high altitude", "At high altitude, water"),
    ("animals that live in tide pools", "When the tide goes out"),
    ("who invented the stethoscope", "The French doctor"),
    ("bicycle chain keeps slipping", "If the bicycle chain"),
    ("how to remove coffee stains from cotton", "Rinse fresh coffee"),
];

#[test]
fn demo_ranks_each_answer_first() {
    let no_arguments: [&str; 0] = [];
    let demo = erank(&no_arguments, b"");
    assert_eq!(demo.code, Some(0), "{demo:?}");
    assert_eq!(demo.err, "");
    demo.assert_harmless();
    for (query, answer) in ANSWERS {
        let mut lines = demo.out.lines().skip_while(|line| *line != query).skip(1);
        let titles = lines.next().expect("titles");
        for title in ["rank", "score", "integer", "prob.", "first", "document", "thought"] {
            assert!(titles.contains(title), "{titles}");
        }
        let best = lines.next().expect("a best document");
        assert!(best.trim_start().starts_with('1'), "{best}");
        assert!(best.contains(answer), "{query}: {best}");
    }
    assert!(demo.out.lines().all(|line| line.chars().count() <= 120));
}

#[test]
fn demo_succeeds_if_the_reader_closes_the_pipe() {
    let mut child = Command::new(ERANK)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("a line");
    let ended = child.wait_with_output().expect("it ends");
    assert!(first.contains("first stage"), "{first}");
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}

#[test]
#[cfg(target_os = "linux")]
fn demo_fails_if_the_output_is_full() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    let ended = Command::new(ERANK).stdout(full).output().expect("it runs");
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("cannot write the result"));
}
