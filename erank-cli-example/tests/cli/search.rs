//! `erank search`.

use std::fs;

use crate::erank;

#[test]
fn search_ranks_the_matching_files_of_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in [
        ("chain.txt", "A worn bicycle chain keeps slipping over the teeth; put on a new chain."),
        ("jewels.md", "A gold chain for the neck."),
        ("tea.txt", "Tea is grown on hills."),
        ("bad.txt", "Chain."),
    ] {
        fs::write(folder.path().join(name), text).expect("written");
    }
    fs::write(folder.path().join("bad.txt"), b"chain \xff").expect("written");
    let docs = folder.path().to_str().expect("UTF-8");
    let query = "why does the bicycle chain keep slipping?";

    let run = erank(&["search", "-q", query, "--docs", docs, "--hybrid", "--json"], b"");
    assert_eq!(run.code, Some(3), "{run:?}");
    let report = run.json();
    let documents = report["documents"].as_array().expect("documents");
    let ids: Vec<_> = documents.iter().filter_map(|document| document["id"].as_str()).collect();
    assert_eq!(ids, ["chain.txt", "jewels.md"]);
    let first = &documents[0];
    assert_eq!(first["first_stage_rank"], 1);
    assert!(first["first_stage_score"].as_f64().is_some_and(|score| score > 0.0), "{run:?}");
    assert_eq!(report["unscored"][0]["id"], "bad.txt");
    assert!(run.err.contains("BM25 selected 2 of 3 documents"), "{}", run.err);

    let run = erank(&["search", "-q", query, "--docs", docs, "--candidates", "1"], b"");
    assert!(run.out.contains("chain.txt") && !run.out.contains("jewels"), "{}", run.out);
}

#[test]
fn search_reports_that_nothing_matches() {
    let run = erank(&["search", "-q", "boat"], b"tea\ncoffee\n");
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.err.contains("0 of 2 documents match the query"), "{}", run.err);
    assert_eq!(run.out, "");
    assert!(!run.err.contains("has no documents"), "{}", run.err);
    let run = erank(&["search", "-q", "boat"], b"\n");
    assert!(run.err.contains("standard input has no documents to rank"), "{}", run.err);
}

#[test]
fn search_reads_the_query_as_words_unless_asked() {
    let documents =
        b"[{\"id\": 1, \"text\": \"a jet flies\"}, {\"id\": 2, \"text\": \"noise of tea\"}]";
    for query in
        ["+jet -noise", "-jet +noise", "\"noise jet\"", "jet AND noise", "what: (jet [noise"]
    {
        let run = erank(&["search", "-q", query, "--answer-only"], documents);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(run.err.contains("BM25 selected 2 of 2 documents"), "{query}: {}", run.err);
    }
    let run = erank(&["search", "-q", "+jet -noise", "--query-syntax", "--answer-only"], documents);
    assert!(run.err.contains("BM25 selected 1 of 2 documents"), "{}", run.err);
    let run = erank(&["search", "-q", "what: (jet", "--query-syntax"], documents);
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""), "{run:?}");
    assert!(run.err.contains("leave --query-syntax out"), "{}", run.err);
}
