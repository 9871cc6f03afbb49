//! The files that documents are read from.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use crate::{Ended, erank};

fn rerank(input: &[u8], more: &[&str]) -> Ended {
    let ended =
        erank(&[&["rerank", "-q", "leaf", "--answer-only", "--json"], more].concat(), input);
    ended.assert_harmless();
    ended
}

/// Returns the ids of the ranked documents, sorted.
fn ids(ended: &Ended) -> Vec<String> {
    let report = ended.json();
    let documents = report["documents"].as_array().expect("documents").iter();
    let id = |document: &Value| document["id"].as_str().expect("an id").to_owned();
    let mut ids: Vec<String> = documents.map(id).collect();
    ids.sort();
    ids
}

/// Asserts that all documents are ranked, and returns their ids.
#[track_caller]
fn ranked(input: &[u8]) -> Vec<String> {
    let ended = rerank(input, &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ids(&ended)
}

/// Asserts that the input is refused as a whole, for this reason.
#[track_caller]
fn refused(input: &[u8], more: &[&str], said: &str) {
    let ended = rerank(input, more);
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{ended:?}");
    assert!(ended.err.contains(said), "{said}: {}", ended.err);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

#[test]
fn documents_are_read_from_json_arrays_and_objects_over_lines() {
    for text in [
        r#"[{"id":"a","text":"a leaf"},{"id":"b","text":"bread"}]"#,
        "[\n  {\n    \"id\": \"a\",\n    \"text\": \"a leaf\"\n  },\n  {\"id\": \"b\", \"text\": \"bread\"}\n]\n",
        "{\n  \"id\": \"a\",\n  \"text\": \"a leaf\"\n}\n{\n  \"id\": \"b\",\n  \"text\": \"bread\"\n}\n",
        "{\"id\":\"a\",\"text\":\"a leaf\"}{\"id\":\"b\",\"text\":\"bread\"}",
        "\u{feff}[{\"_id\":\"a\",\"contents\":\"a leaf\"},\n{\"docid\":\"b\",\"segment\":\"bread\"}]",
    ] {
        assert_eq!(ranked(text.as_bytes()), ["a", "b"], "{text}");
    }
    assert_eq!(ranked(b"[\"a leaf\", \"bread\"]"), ["1", "2"]);
    assert_eq!(ranked(b"[]"), [""; 0]);
    let cut = rerank(br#"[{"id": "a", "text": "a leaf"}, {"id": "b", "te"#, &[]);
    assert_eq!((cut.code, ids(&cut)), (Some(3), vec!["a".to_owned()]));
    let table = erank(&["rerank", "-q", "leaf", "--answer-only"], b"[\"a leaf\", 7]");
    assert!(table.err.contains("element 2: it is neither an object nor a string"), "{table:?}");
    let wrapped = rerank(br#"{"query": "leaf", "documents": ["a leaf"]}"#, &[]);
    assert_eq!(wrapped.code, Some(3));
    let reason = &wrapped.json()["unscored"][0]["reason"];
    assert!(reason.as_str().is_some_and(|reason| reason.contains("jq -c '.[\"documents\"][]'")));
    refused(b"[\"a\", \"a leaf\"]\n[\"b\", \"bread\"]\n", &[], "each line is a JSON array");
}

#[test]
fn documents_are_read_in_utf_8_and_utf_16() {
    let text = "{\"id\": \"caf\u{e9}\", \"text\": \"a leaf\"}\r\n{\"id\": \"東京\", \"text\": \"bread\"}\r\n";
    let units: Vec<u16> = format!("\u{feff}{text}").encode_utf16().collect();
    let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
    for bytes in [text.as_bytes(), &little, &big, &gzip(&little)] {
        assert_eq!(ranked(bytes), ["caf\u{e9}", "東京"]);
    }
    refused(&little[2..], &[], "UTF-16LE without a byte order mark; convert it");
    refused(&big[2..], &[], "UTF-16BE without a byte order mark; convert it");
    refused(&little[..little.len() - 1], &[], "in the middle of a character");
    let latin = rerank(b"a leaf\ncaf\xe9\n", &[]);
    assert_eq!((latin.code, ids(&latin)), (Some(3), vec!["1".to_owned()]));
    let reason = &latin.json()["unscored"][0];
    assert_eq!(
        (&reason["line"], &reason["reason"]),
        (&2.into(), &"not UTF-8: byte 4 of the line is invalid".into())
    );
}

#[test]
fn documents_keep_their_ids_as_written() {
    let numbers = b"{\"id\": 340282366920938463463374607431768211456, \"text\": \"leaf one\"}\n\
                    {\"id\": 340282366920938463463374607431768211457, \"text\": \"leaf two\"}\n\
                    {\"id\": 1e3, \"text\": \"leaf\"}\n{\"id\": 1.0, \"text\": \"leaf\"}\n";
    let expected = ["1.0", "1e3", "340282366920938463463374607431768211456"];
    assert_eq!(ranked(numbers)[..3], expected);
    assert_eq!(ranked(numbers)[3], "340282366920938463463374607431768211457");
    assert_eq!(ranked(b"id,text\n007,a leaf\n1e3,bread\n"), ["007", "1e3"]);
    let twice = rerank(b"{\"id\": 1, \"text\": \"a\"}\n{\"id\": \"1\", \"text\": \"b\"}\n", &[]);
    assert_eq!((twice.code, ids(&twice)), (Some(0), vec!["1".to_owned(); 2]));
    assert!(twice.err.contains("1 documents have the id of an earlier one"), "{}", twice.err);
    assert!(twice.err.contains("such as 1 (lines 1 and 2)"), "{}", twice.err);
}

#[test]
fn documents_without_text_are_unscored_and_blank_lines_are_counted() {
    let plain = rerank("\u{200b}\nleaf\n\n\u{feff}\n\n".as_bytes(), &[]);
    assert_eq!((plain.code, ids(&plain)), (Some(3), vec!["2".to_owned()]));
    let report = plain.json();
    let lines: Vec<&Value> =
        report["unscored"].as_array().expect("a list").iter().map(|entry| &entry["line"]).collect();
    assert_eq!(lines, [&Value::from(1), &Value::from(4)]);
    assert!(plain.err.contains("standard input: left out 2 blank lines."), "{}", plain.err);
    let json = b"{\"text\": null}\n{\"text\": \"\"}\n{\"text\": \"\\u2060\\u00ad\"}\n{\"text\": \"leaf\"}\n\
                 {\"text\": \"a\", \"text\": \"b\"}\n";
    let json = rerank(json, &[]);
    assert_eq!((json.code, ids(&json)), (Some(3), vec!["4".to_owned()]));
    let report = json.json();
    let reasons: Vec<&str> = report["unscored"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|entry| entry["reason"].as_str())
        .collect();
    assert_eq!(reasons[0], "\"text\" is null");
    assert!(reasons[1..3].iter().all(|reason| reason.contains("is empty")), "{reasons:?}");
    assert_eq!(reasons[3], "the field \"text\" occurs twice; remove one");
}

#[test]
fn documents_of_a_lone_surrogate_are_all_scored() {
    let input = br#"{"text":"fine leaf"}
{"text":"cut emoji \ud83d leaf", "more": "\udc00"}
{"id": "\ude00x", "title": "\ud83d\ud83d", "text":"leaf \uDE00\uD83D"}"#;
    assert_eq!(ranked(input), ["1", "2", "\u{fffd}x"]);
}

#[test]
fn documents_of_known_collections_have_ids_and_titles() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let beir = "{\"_id\":\"d1\",\"title\":\"Tides\",\"text\":\"They turn.\"}\n\
                {\"_id\":\"d2\",\"title\":\"Bread\",\"text\":\"It rises.\"}\n";
    let csv = "doc_id,title,text\r\nd1,Tides,They turn.\r\nd2,Bread,It rises.\r\n";
    let tsv = "d1\tTides They turn.\nd2\tBread It rises.\n";
    let custom = "key;head;abstract;text\nd1;Tides;They turn.;no\nd2;Bread;It rises.;no\n";
    let names = ["--text-field", "abstract", "--id-field", "key", "--title-field", "head"];
    let reports: Vec<Value> = [
        (write("beir.jsonl", beir.as_bytes()), &[][..]),
        (write("beir.jsonl.gz", &gzip(beir.as_bytes())), &[]),
        (write("corpus.csv", csv.as_bytes()), &[]),
        (write("collection.tsv", tsv.as_bytes()), &[]),
        (write("export.csv", custom.as_bytes()), &names),
    ]
    .iter()
    .map(|(file, more)| {
        let ended = rerank(b"", &[&["--docs", file], *more].concat());
        assert_eq!((ended.code, ids(&ended)), (Some(0), vec!["d1".into(), "d2".into()]), "{file}");
        ended.json()
    })
    .collect();
    let scores = |report: &Value| {
        let documents = report["documents"].as_array().expect("documents").iter();
        documents.map(|document| document["score"].clone()).collect::<Vec<_>>()
    };
    for report in &reports[1..] {
        assert_eq!(scores(report), scores(&reports[0]));
    }
    refused(b"", &["--docs", &write("no.csv", b"a,b\n1,2\n")], "name it with --text-field");
    refused(b"a leaf\n", &["--text-field", "x"], "leave --text-field x out");
}

#[test]
fn documents_that_are_damaged_or_expand_too_far_are_refused() {
    let compressed = gzip(b"a leaf\nbread\n");
    assert_eq!(ranked(&compressed), ["1", "2"]);
    refused(&compressed[..compressed.len() - 6], &[], "the gzip data is damaged or cut off");
    refused(&gzip(&compressed), &[], "compressed twice");
    refused(b"\x28\xb5\x2f\xfdxxxx", &[], "the zstd data is damaged or cut off");
    refused(&gzip(&vec![b' '; 90 << 20]), &[], "more than 200 times its size");
    refused(b"PK\x03\x04zip", &[], "a zip archive; unpack it");
    if Path::new("/dev/zero").exists() {
        refused(b"", &["--docs", "/dev/zero"], "it is binary, not text");
    }
}

#[test]
#[cfg(unix)]
fn documents_of_a_folder_are_regular_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("a.txt"), "a leaf").expect("written");
    fs::write(path(".hidden.txt"), "a leaf").expect("written");
    fs::write(path("b.json"), "[{\"id\": \"b\", \"text\": \"bread\"}]").expect("written");
    std::os::unix::fs::symlink(folder.path(), path("loop")).expect("a link");
    let fifo = path("pipe.txt");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs");
    assert!(made.success());
    let ended = rerank(b"", &["--docs", folder.path().to_str().expect("UTF-8")]);
    assert_eq!((ended.code, ids(&ended)), (Some(0), vec!["a.txt".to_owned(), "b".to_owned()]));
    assert!(
        ended.err.contains(
            "left out 1 hidden files or folders, 1 links to folders, 1 special files (pipes"
        ),
        "{}",
        ended.err
    );
}
