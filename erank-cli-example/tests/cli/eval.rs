//! `erank eval`.

mod calibration;
mod followir;
mod html;
mod input;
#[cfg(unix)]
mod interrupted;
mod remote;

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::{Ended, erank};

/// Six queries with eight documents each.
const CANDIDATES: &str = include_str!("../../evaluation/candidates.jsonl");
const QRELS: &str = include_str!("../../evaluation/qrels.txt");

/// A folder with the collection as JSON lines, in TREC's format, and in BEIR's.
struct Collection {
    folder: TempDir,
}

impl Collection {
    fn new() -> Self {
        let collection = Self { folder: tempfile::tempdir().expect("a folder") };
        let (mut run, mut topics, mut corpus, mut beir_queries) =
            (String::new(), String::new(), String::new(), String::new());
        let mut beir_corpus = String::new();
        for line in CANDIDATES.lines() {
            let query: Value = serde_json::from_str(line).expect("JSON");
            let (id, text) = (string(&query["id"]), string(&query["query"]));
            topics += &format!("{id}\t{text}\n");
            beir_queries += &format!("{}\n", serde_json::json!({"_id": id, "text": text}));
            for document in query["documents"].as_array().expect("documents") {
                let (document_id, text) = (string(&document["id"]), string(&document["text"]));
                run += &format!("{id} Q0 {document_id} 0 {} bm25\n", document["score"]);
                if !corpus.contains(&format!("{document_id}\t")) {
                    corpus += &format!("{document_id}\t{text}\n");
                    // The first word is the title.
                    let (title, rest) = text.split_once(' ').expect("two words");
                    let document =
                        serde_json::json!({"_id": document_id, "title": title, "text": rest});
                    beir_corpus += &format!("{document}\n");
                }
            }
        }
        let mut beir_qrels = "query-id\tcorpus-id\tscore\n".to_owned();
        for line in QRELS.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            beir_qrels += &format!("{}\t{}\t{}\n", fields[0], fields[2], fields[3]);
        }
        collection.write("candidates.jsonl", CANDIDATES);
        collection.write("qrels.txt", QRELS);
        collection.write("bm25.run", &run);
        collection.write("topics.tsv", &topics);
        collection.write("corpus.tsv", &corpus);
        collection.write("beir/queries.jsonl", &beir_queries);
        collection.write("beir/corpus.jsonl", &beir_corpus);
        collection.write("beir/qrels/test.tsv", &beir_qrels);
        collection
    }

    fn path(&self, file: &str) -> String {
        self.folder.path().join(file).to_str().expect("UTF-8").to_owned()
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.folder.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file))
            .unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// Changes a file.
    fn edit(&self, file: &str, change: impl Fn(&str) -> String) {
        self.write(file, &change(&self.read(file)));
    }

    /// Returns the arguments for the collection in a format. Words that name a file begin with "./",
    /// also in `more`.
    fn arguments(&self, format: &str, output: &str, more: &str) -> Vec<String> {
        let format = match format {
            "jsonl" => "--jsonl ./candidates.jsonl --qrels ./qrels.txt",
            "beir" => "--run ./bm25.run --beir ./beir",
            "trec" => {
                "--run ./bm25.run --qrels ./qrels.txt --queries ./topics.tsv --corpus ./corpus.tsv"
            }
            other => panic!("{other}"),
        };
        let words = format!("eval {format} --output ./{output} {more}");
        let path = |word: &str| word.strip_prefix("./").map_or(word.into(), |file| self.path(file));
        words.split_whitespace().map(path).collect()
    }

    fn eval(&self, format: &str, output: &str, more: &str) -> Ended {
        let ended = erank(&self.arguments(format, output, more), b"");
        ended.assert_harmless();
        ended
    }

    fn report(&self, output: &str) -> Value {
        serde_json::from_str(&self.read(&format!("{output}/report.json"))).expect("JSON")
    }

    /// Returns the documents of a query in a run file.
    fn ranking(&self, run: &str, query: &str) -> Vec<String> {
        let run = self.read(run);
        let lines = run.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        lines.filter(|fields| fields[0] == query).map(|fields| fields[2].to_owned()).collect()
    }
}

fn string(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// Returns the mean of a figure of a system, both by position.
fn mean(report: &Value, system: usize, figure: usize) -> f64 {
    report["systems"][system]["figures"][figure]["mean"].as_f64().expect("a mean")
}

#[test]
fn eval_gives_the_same_report_for_all_formats() {
    let collection = Collection::new();
    for format in ["jsonl", "trec", "beir"] {
        let run = collection.eval(format, format, "--json");
        assert_eq!(run.code, Some(0), "{run:?}");
        assert_eq!(run.out, collection.read(&format!("{format}/report.json")));
    }
    for file in ["report.json", "first_stage.run", "reranked.run", "hybrid.run", "gains.svg"] {
        let of_jsonl = collection.read(&format!("jsonl/{file}"));
        assert_eq!(of_jsonl, collection.read(&format!("trec/{file}")), "{file}");
        assert_eq!(of_jsonl, collection.read(&format!("beir/{file}")), "{file}");
    }
    let report = collection.report("jsonl");
    assert_eq!(report["counts"]["queries"], 6);
    assert_eq!(report["counts"]["documents"], 48);
    assert_eq!(report["counts"]["scored"], 48);
    assert_eq!(report["systems"].as_array().map(Vec::len), Some(2 + 9));
    assert_eq!(collection.read("jsonl/gains.svg").matches("<title>query ").count(), 6);
    for (figure, expected) in FIRST_STAGE.into_iter().enumerate() {
        assert!((mean(&report, 0, figure) - expected).abs() < 1e-6, "{figure}");
    }
    assert!(
        mean(&report, 1, 0) > FIRST_STAGE[0] + 0.05,
        "the model gains on queries that were written for it"
    );
}

/// nDCG@10, RR@10, AP and P@10 of the first stage, computed by pytrec_eval-terrier 0.5.11.
const FIRST_STAGE: [f64; 4] = [0.686_276_933, 0.666_666_667, 0.613_425_926, 0.3];

#[test]
fn eval_writes_the_runs_that_it_measured() {
    let collection = Collection::new();
    let more = "--hybrid 0.25 --measure nDCG@3,RR@1 --depth 5 --score expected-value --answer-only";
    let run = collection.eval("trec", "out", more);
    assert_eq!(run.code, Some(0), "{run:?}");
    let report = collection.report("out");
    let measure = |run: &str, measure: &str| {
        let run = erank_core::trec::Run::read(collection.read(run).as_bytes()).expect("a run");
        let qrels = erank_core::trec::Qrels::read(QRELS.as_bytes()).expect("qrels");
        let measure: erank_core::metrics::Measure = measure.parse().expect("a measure");
        measure.evaluate(&qrels, &run).mean().expect("queries")
    };
    let alphas = report["systems"].as_array().expect("systems").iter();
    let hybrid = alphas.clone().position(|system| system["alpha"] == 0.25).expect("0.25");
    assert_eq!(alphas.len(), 2 + 10);
    for (system, run) in [(0, "first_stage.run"), (1, "reranked.run"), (hybrid, "hybrid.run")] {
        assert_eq!(mean(&report, system, 0), measure(&format!("out/{run}"), "nDCG@3"), "{run}");
        assert_eq!(mean(&report, system, 1), measure(&format!("out/{run}"), "RR@1"), "{run}");
        assert_eq!(collection.ranking(&format!("out/{run}"), "bees").len(), 5);
    }
    let first: Vec<&str> = run.out.lines().next().expect("a head").split_whitespace().collect();
    assert_eq!(first, ["system", "nDCG@3", "gain", "p", "wins", "ties", "losses", "RR@1"]);
    assert!(run.out.contains("\nhybrid 0.25 "), "{}", run.out);
    // A greater depth scores only the additional documents.
    let deeper = collection.eval("trec", "out", "--depth 6 --answer-only");
    assert!(deeper.err.contains("36 documents, 6 of them to be scored"), "{}", deeper.err);
}

#[test]
fn eval_keeps_first_stage_order_for_ties() {
    let collection = Collection::new();
    collection.edit("candidates.jsonl", |text| {
        // All documents have the same text.
        let first = text.lines().next().expect("a line");
        let mut query: Value = serde_json::from_str(first).expect("JSON");
        for document in query["documents"].as_array_mut().expect("documents") {
            document["text"] = "Bees make honey.".into();
        }
        format!("{query}\n")
    });
    let run = collection.eval("jsonl", "out", "--answer-only");
    assert_eq!(run.code, Some(0), "{run:?}");
    let first_stage = collection.ranking("out/first_stage.run", "bees");
    assert_eq!(first_stage, (1..=8).map(|number| format!("bees-{number}")).collect::<Vec<_>>());
    assert_eq!(collection.ranking("out/reranked.run", "bees"), first_stage);
    // The order also holds in single precision.
    let run = collection.read("out/reranked.run");
    let scores = run.lines().map(|line| line.split(' ').nth(4).expect("a score"));
    let scores: Vec<f32> = scores.map(|score| score.parse().expect("a number")).collect();
    assert!(scores.is_sorted_by(|a, b| a > b), "{scores:?}");
    // Five queries of the qrels are not in the run.
    assert_eq!(collection.report("out")["counts"]["without_candidates"], 5);
    assert!(Path::new(&collection.path("out/scores.jsonl")).exists());
}
