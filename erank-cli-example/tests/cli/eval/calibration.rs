//! `--calibrate`, and `--calibration` of `erank rerank`.

use serde_json::Value;

use super::{CANDIDATES, Collection, QRELS, string};
use crate::{Ended, erank};

const DOCUMENTS: &[u8] = b"Bees make honey from nectar.\nA gold chain.\nHow do bees sleep?\n";

fn rerank(calibration: &str, more: &[&str]) -> Ended {
    let arguments = ["rerank", "-q", "how do bees make honey", "--calibration", calibration];
    let ended = erank(&[&arguments[..], more].concat(), DOCUMENTS);
    ended.assert_harmless();
    ended
}

#[test]
fn eval_calibrates_scores_and_rerank_reads_the_file() {
    let collection = Collection::new();
    let run = collection.eval("jsonl", "out", "--answer-only --calibrate ./calibration.json");
    assert_eq!(run.code, Some(0), "{run:?}");
    for said in [
        "Calibration, fitted on 3 queries with ",
        "before: expected calibration error 0.",
        "after: expected calibration error 0.",
        "\nprobability  documents   mean  relevant\n",
    ] {
        assert!(run.out.contains(said), "{said}: {}", run.out);
    }
    let report = collection.report("out");
    let calibration = &report["calibration"];
    let count = |part: &str, name: &str| calibration[part][name].as_u64().expect("a count");
    for name in ["queries", "documents", "relevant"] {
        assert_eq!(count("fitted", name) + count("checked", name), count("all", name));
    }
    assert_eq!(count("all", "queries"), 6);
    // Some judged documents are no candidates.
    let judged = QRELS.lines().filter(|line| {
        let document = line.split(' ').nth(2).expect("an id");
        CANDIDATES.contains(&format!("\"id\": \"{document}\""))
    });
    assert_eq!(count("all", "documents"), judged.clone().count() as u64);
    let relevant = judged.filter(|line| !line.ends_with(" 0")).count();
    assert_eq!(count("all", "relevant"), relevant as u64);
    for part in ["before", "after"] {
        let bins = calibration[part]["bins"].as_array().expect("bins");
        let documents: u64 = bins.iter().filter_map(|bin| bin["documents"].as_u64()).sum();
        assert_eq!((bins.len(), documents), (10, count("checked", "documents")));
    }
    let picture = collection.read("out/reliability.svg");
    assert!(picture.contains("<title>after, ") && picture.contains("<title>before, "), "{picture}");

    let file: Value = serde_json::from_str(&collection.read("calibration.json")).expect("JSON");
    assert_eq!(file["score"], "probability_weighted");
    assert_eq!(file["mode"], "answer_only");
    assert_eq!(file["settings"]["model"], "erank-tiny");
    assert_eq!(file["fitted_on"], calibration["all"]);
    // The same scores give the same file.
    let again = collection.eval("jsonl", "out", "--answer-only --calibrate ./again.json");
    assert_eq!(again.out, run.out);
    assert_eq!(collection.read("again.json"), collection.read("calibration.json"));

    let path = collection.path("calibration.json");
    let ranked = rerank(&path, &["--answer-only", "--min-score", "0.5", "--json"]);
    assert_eq!((ranked.code, ranked.err.as_str()), (Some(0), ""), "{ranked:?}");
    let json = ranked.json();
    let of = |list: &str| json[list].as_array().expect("documents").clone();
    let all = [of("documents"), of("below_min_score")];
    assert_eq!(all.concat().len(), 3);
    for (list, is_below) in all.iter().zip([false, true]) {
        for document in list {
            let probability = document["relevance_probability"].as_f64().expect("a probability");
            assert_eq!(probability < 0.5, is_below, "{document}");
        }
    }
    let table = rerank(&path, &["--answer-only"]);
    assert!(table.out.starts_with("rank  score  P(relevant)  integer"), "{}", table.out);
    let other = rerank(&path, &["--answer-only", "--instruction", "Find recipes."]);
    assert_eq!(other.code, Some(0), "{other:?}");
    assert!(other.err.contains("and is \"Find recipes.\""), "{}", other.err);
    for (more, said) in [
        (&["--max-document-tokens", "9"][..], "max_document_tokens was 1024 and is 9"),
        (&["--max-prompt-tokens", "99"], "max_prompt_tokens was null and is 99"),
        (&["--windows", "16"], "windows was null and is 16"),
    ] {
        let other = rerank(&path, &[&["--answer-only"], more].concat());
        assert_eq!(other.code, Some(0), "{other:?}");
        assert!(other.err.contains("its probabilities may be wrong"), "{}", other.err);
        assert!(other.err.contains(said), "{said}: {}", other.err);
        assert_eq!(other.err.matches("may be wrong").count(), 1, "{}", other.err);
    }
    for (more, said) in [
        (&["--answer-only", "--score", "integer"][..], "fitted on the score probability_weighted"),
        (&[], "fitted on answers without reasoning"),
        (&["--answer-only", "--template", "qwen3-reranker"], "another template (\"erank\", now"),
    ] {
        let refused = rerank(&path, more);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains(said), "{said}: {}", refused.err);
    }
    assert_eq!(rerank(&path, &["--think-about", "1"]).code, Some(2));
}

#[test]
fn rerank_refuses_broken_calibrations() {
    let collection = Collection::new();
    collection.eval("jsonl", "out", "--answer-only --calibrate ./good.json");
    let good: Value = serde_json::from_str(&collection.read("good.json")).expect("JSON");
    let edited = |field: &str, value: Value| {
        let mut file = good.clone();
        file[field] = value;
        file.to_string()
    };
    for (text, said) in [
        ("{".to_owned(), "EOF"),
        ("{}".to_owned(), "missing field"),
        (edited("erank_calibration", 2.into()), "version 2"),
        (edited("points", serde_json::json!([[1.0, 0.5], [2.0, 0.4]])), "point 1 (from 0)"),
        (edited("score", "best".into()), "unknown variant"),
    ] {
        collection.write("bad.json", &text);
        let run = rerank(&collection.path("bad.json"), &["--answer-only"]);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.err.contains("bad.json") && run.err.contains(said), "{said}: {}", run.err);
    }
    let mut other_model = good["settings"].clone();
    other_model["fingerprint"] = 7.into();
    collection.write("bad.json", &edited("settings", other_model));
    let run = rerank(&collection.path("bad.json"), &["--answer-only"]);
    assert!(run.err.contains("another model of the same name (fingerprint 7, now "), "{}", run.err);
    let run = rerank(&collection.path("none.json"), &["--answer-only"]);
    assert!(run.err.contains("cannot use the calibration"), "{}", run.err);
}

#[test]
fn rerank_says_that_samples_differ_from_a_calibration() {
    let collection = Collection::new();
    let run = collection.eval("jsonl", "out", "--depth 4 --calibrate ./calibration.json");
    assert_eq!(run.code, Some(0), "{run:?}");
    let more = ["--samples", "2", "--temperature", "0.5", "--max-tokens", "50"];
    let run = rerank(&collection.path("calibration.json"), &more);
    assert_eq!(run.code, Some(0), "{run:?}");
    for said in
        ["sampling was null and is \"--temperature, --samples\"", "max_tokens was 4096 and is 50"]
    {
        assert!(run.err.contains(said), "{said}: {}", run.err);
    }
}

#[test]
fn eval_checks_the_path_of_a_calibration_before_it_scores() {
    let collection = Collection::new();
    for (path, said) in [
        ("./none/calibration.json", "none does not exist; make it first"),
        ("./out", "out: it is a folder; name a file"),
    ] {
        let run = collection.eval("jsonl", "out", &format!("--answer-only --calibrate {path}"));
        assert_eq!((run.code, run.out.as_str()), (Some(1), ""), "{run:?}");
        assert!(run.err.contains(said), "{said}: {}", run.err);
        assert!(!run.err.contains("to be scored"), "{}", run.err);
    }
    let run = collection.eval("jsonl", "out", "--answer-only --calibrate ./out/calibration.json");
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn eval_writes_the_report_if_the_calibration_fails() {
    let collection = Collection::new();
    // No document of the queries has a text, so that none has a score.
    collection.edit("candidates.jsonl", |text| text.replace("\"text\":", "\"other\":"));
    let run = collection.eval("jsonl", "out", "--answer-only --calibrate ./calibration.json");
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.err.contains("error: ") && run.err.contains("judged"), "{}", run.err);
    let report = collection.report("out");
    assert_eq!((&report["calibration"], &report["counts"]["unscored"]), (&Value::Null, &48.into()));
    assert!(run.out.starts_with("system "), "{}", run.out);
    for file in ["first_stage.run", "reranked.run", "hybrid.run", "gains.svg", "report.html"] {
        assert!(!collection.read(&format!("out/{file}")).is_empty(), "{file}");
    }
}

#[test]
fn eval_refuses_to_calibrate_on_too_few_judgements() {
    let collection = Collection::new();
    let refused = |more: &str, said: &str| {
        let more = format!("--answer-only --calibrate ./calibration.json {more}");
        let run = collection.eval("jsonl", "out", &more);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.err.contains(said), "{said}: {}", run.err);
    };
    refused("--relevance-level 4", "0 of ");
    let only_relevant = |text: &str| {
        let lines = text.lines().filter(|line| !line.ends_with(" 0"));
        lines.collect::<Vec<_>>().join("\n")
    };
    collection.edit("qrels.txt", only_relevant);
    refused("", "--unjudged-not-relevant");
    let more = "--answer-only --calibrate ./calibration.json --unjudged-not-relevant";
    let run = collection.eval("jsonl", "out", more);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(collection.report("out")["calibration"]["all"]["documents"], 48);

    collection.edit("qrels.txt", |text| {
        let lines =
            text.lines().filter(|line| line.starts_with("bees ") || line.starts_with("sea "));
        lines.collect::<Vec<_>>().join("\n")
    });
    refused("--unjudged-not-relevant", "at least 4 queries with judged candidates");
    let run = collection.eval("jsonl", "out", "--relevance-level 2");
    assert_eq!(run.code, Some(2), "{run:?}");
    let report = collection.report("out");
    assert_eq!(string(&report["queries"][0]["id"]), "bees");
}
