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

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
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
    let said = "not UTF-8: byte 4 of the line is invalid; convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8";
    assert_eq!((&reason["line"], &reason["reason"]), (&2.into(), &said.into()));
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

/// Returns the documents as `id: text`, in order of their lines, and the messages.
#[track_caller]
fn texts(input: &[u8], more: &[&str]) -> (Vec<String>, String) {
    let ended = rerank(input, &[&["--score", "integer"], more].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report = ended.json();
    let mut documents = report["documents"].as_array().expect("documents").clone();
    documents.sort_by_key(|document| document["line"].as_u64());
    let ids = documents.iter().map(|document| document["id"].as_str().unwrap_or("-").to_owned());
    (ids.collect(), ended.err)
}

#[test]
fn documents_beside_a_stray_quote_are_ranked() {
    let rows = |delimiter: char| {
        let row = |number: usize| match number {
            10 => format!("{number}{delimiter}\"The tide turns.\n"),
            1500 => format!("{number}{delimiter}She said \"hello\" there.\n"),
            _ => format!("{number}{delimiter}Bread needs salt.\n"),
        };
        format!("id{delimiter}text\n") + &(1..2000).map(row).collect::<String>()
    };
    for delimiter in [',', '\t', ';'] {
        let (ids, _) = texts(rows(delimiter).as_bytes(), &["--top-k", "2000"]);
        assert_eq!(ids.len(), 1999, "{delimiter}");
    }
    let doubtful = b"id,text\n1,\"a leaf\n2,bread\n3,size 5\"\n4,tea\n";
    let (ids, said) = texts(doubtful, &[]);
    assert_eq!(ids, ["1", "4"]);
    assert!(said.contains("the quotes of line 2 hold 2 more lines that look like rows"), "{said}");
}

#[test]
fn documents_are_said_to_be_read_in_one_of_several_ways() {
    for (input, more, expected, said) in [
        ("d1\ta leaf\nd2\tbread\n", &[][..], &["d1", "d2"][..], "before the first tab is its id"),
        ("leaf\tgreen\nbread\tbrown\n", &[], &["1", "2"], "name the file .tsv"),
        ("id,text\n1,a\nid,text\n2,b\n", &[], &["1", "2"], "left out 1 repeated headers"),
        (
            "{\"id\": \"x\", \"text\": \"a\"}\n",
            &["--id-field", "nosuch"],
            &["1"],
            "no document has the field \"nosuch\" of --id-field",
        ),
        ("id,abstract\nx,a\n", &["--text-field", "abstract", "--id-field", "ID"], &["x"], ""),
        (
            "{\"id\":\"z\",\"text\":\"t\"}\n{\"id\":\"a\",\"text\":\"t\"}{\"id\":\"b\",\"text\":\"t\"}\n",
            &[],
            &["z", "a", "b"],
            "",
        ),
        ("7\ta leaf\n8\tbread\n\ttea\n", &[], &["7", "8", "3"], ""),
    ] {
        let (ids, err) = texts(input.as_bytes(), more);
        assert_eq!(ids, expected, "{input}");
        assert!(err.contains(said), "{said}: {err}");
    }
    let table = b"id,text\n1,a\n";
    refused(table, &["--id-field", "nosuch"], "lacks the field \"nosuch\" of --id-field");
    refused(table, &["--title-field", "nosuch"], "leave --title-field out");
    refused(b"id;\xdcberschrift;text\n1;x;a leaf\n", &[], "not UTF-8; convert it");
    let lost = rerank(b"[\n{\"id\":\"a\",\"text\":\"x\"},\n{\"id\":\"b\",\"text\":\"x \" y\"},\n{\"id\":\"c\",\"text\":\"x\"}\n]\n", &[]);
    assert_eq!((lost.code, ids(&lost)), (Some(3), vec!["a".to_owned(), "c".to_owned()]));
    let cut = erank(&["rerank", "-q", "leaf", "--answer-only"], b"[{\"text\": \"a\"}, {\"text\": ");
    assert!(cut.err.contains("the file ends within this element"), "{}", cut.err);
}

#[test]
fn documents_of_a_beir_collection_are_its_corpus() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).expect("written");
    };
    fs::create_dir(folder.path().join("qrels")).expect("made");
    write("corpus.jsonl", "{\"_id\": \"d1\", \"text\": \"a leaf\"}\n");
    write("queries.jsonl", "{\"_id\": \"q1\", \"text\": \"leaf\"}\n");
    write("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\n");
    let (ids, said) = texts(b"", &["--docs", folder.path().to_str().expect("UTF-8")]);
    assert_eq!(ids, ["d1"]);
    assert!(said.contains("left out 2 files or folders beside the corpus"), "{said}");
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
