//! `--followir`.

use serde_json::{Value, json};

use super::{Collection, QRELS, string};

/// Makes pairs of queries of the collection: the best document of each is not relevant by the changed instruction.
fn paired() -> Collection {
    let collection = Collection::new();
    collection.edit("candidates.jsonl", |text| {
        let pair = |line: &str| {
            let query: Value = serde_json::from_str(line).expect("JSON");
            ["-og", "-changed"].map(|end| {
                let mut query = query.clone();
                query["id"] = json!(format!("{}{end}", string(&query["id"])));
                query["instruction"] = json!(format!("instruction{end}"));
                format!("{query}\n")
            })
        };
        text.lines().flat_map(pair).collect()
    });
    collection.edit("qrels.txt", |text| {
        let pair = |line: &str| {
            let (query, rest) = line.split_once(' ').expect("fields");
            let changed =
                if rest.ends_with(" 3") { rest.replace(" 3", " 0") } else { rest.to_owned() };
            format!("{query}-og {rest}\n{query}-changed {changed}\n")
        };
        text.lines().map(pair).collect()
    });
    collection
}

#[test]
fn eval_reports_p_mrr_of_pairs() {
    let collection = paired();
    let run = collection.eval("jsonl", "out", "--answer-only --followir");
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.out.lines().next().is_some_and(|head| head.ends_with("  p-MRR")), "{}", run.out);
    assert!(run.out.contains("p-MRR: 6 pairs of queries, "), "{}", run.out);
    let report = collection.report("out");
    let p_mrr = &report["p_mrr"];
    assert_eq!((&p_mrr["pairs"], &p_mrr["without_candidates"]), (&json!(6), &json!(0)));
    // The first stage ignores the instruction.
    assert_eq!(p_mrr["means"][0], 0.0);
    let queries = p_mrr["queries"].as_array().expect("pairs");
    assert_eq!(string(&queries[0]["id"]), "bees");

    // The runs give the same value: bees-2 has the grade 3.
    let rank = |query: &str| {
        let ranking = collection.ranking("out/reranked.run", query);
        ranking.iter().position(|document| document == "bees-2").expect("ranked") + 1
    };
    let expected = erank_core::metrics::rank_change(rank("bees-og"), rank("bees-changed"));
    assert_eq!(queries[0]["values"][1], expected);
    let values = queries.iter().map(|query| query["values"][1].as_f64().expect("a value"));
    let mean = values.sum::<f64>() / 6.0;
    assert!((p_mrr["means"][1].as_f64().expect("a mean") - mean).abs() < 1e-12);
}

#[test]
fn eval_names_missing_pairs() {
    let collection = paired();
    collection.edit("candidates.jsonl", |text| {
        let lines = text.lines().filter(|line| !line.contains("\"sea-changed\""));
        lines.map(|line| format!("{line}\n")).collect()
    });
    let run = collection.eval("jsonl", "out", "--answer-only --followir");
    assert!(run.err.contains("1 pairs of queries lack candidates"), "{}", run.err);
    let p_mrr = &collection.report("out")["p_mrr"];
    let documents = QRELS.lines().filter(|line| line.ends_with(" 3") && !line.starts_with("sea "));
    assert_eq!((&p_mrr["pairs"], &p_mrr["documents"]), (&json!(5), &json!(documents.count())));

    let run = Collection::new().eval("jsonl", "out", "--followir");
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.err.contains("-changed"), "{}", run.err);
}
