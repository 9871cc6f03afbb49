//! `report.html`.

use serde_json::{Value, json};

use super::{Collection, mean};

/// Text that must not become markup, and that must not change the direction of other text.
const HOSTILE: &str = "<script>alert(1)</script></p>\"' onload=\"x\" &amp; \u{202e}evil\u{1b}[31m";
const ESCAPED: &str = "&lt;script&gt;alert(1)&lt;/script&gt;&lt;/p&gt;&quot;&#39; onload=&quot;x&quot; &amp;amp; \
                       \\u{202e}evil\\u{1b}[31m";

/// Asserts that each tag is closed, that the page has no script and needs no other file, and that no text contains a
/// dangerous character.
#[track_caller]
fn assert_well_formed(html: &str) {
    let mut open = Vec::new();
    for part in html.split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("the tag ends");
        let name = tag.split([' ', '\n']).next().unwrap_or_default();
        assert!(!text.contains('>') || name == "style", "{part}");
        match name.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed), "{part}"),
            None if ["!doctype", "meta"].contains(&name) || tag.ends_with('/') => {}
            None => open.push(name),
        }
        // The attributes have an even number of quotes, and none of them is a handler.
        assert!(tag.matches('"').count() % 2 == 0 && !tag.contains(" on"), "{tag}");
    }
    assert!(open.is_empty(), "{open:?}");
    for absent in ["<script", "<link", "<img", " src=", "href=", "@import", "url(http", "\u{202e}"]
    {
        assert!(!html.contains(absent), "{absent}");
    }
    let control = html.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(control, None);
}

#[test]
fn page_has_the_figures_of_the_report() {
    let collection = Collection::new();
    let run = collection.eval("jsonl", "out", "--calibrate ./calibration.json");
    assert_eq!(run.code, Some(0), "{run:?}");
    let (report, html) = (collection.report("out"), collection.read("out/report.html"));
    assert_well_formed(&html);
    for system in 0..2 + 9 {
        for figure in 0..4 {
            let mean = mean(&report, system, figure);
            assert!(html.contains(&format!("<td>{mean:.4}</td>")), "{mean}");
        }
    }
    let gain = &report["systems"][1]["figures"][0]["gain"];
    let number = |value: &Value| value.as_f64().expect("a number");
    let signed = |value: &Value| format!("{:+.4}", number(value)).replace('-', "−");
    let interval = &gain["confidence_interval"];
    for said in [
        format!("<dd class=\"up\">{}</dd>", signed(&gain["mean"])),
        format!(
            "95 % interval {} to {}, p = {:.3}",
            signed(&interval["low"]),
            signed(&interval["high"]),
            number(&gain["t_test"]["p_value"])
        ),
        "<h2>Largest gains</h2>".into(),
        "<h2>Largest losses</h2>".into(),
        "role=\"img\" aria-label=\"nDCG@10 of each query".into(),
        "48 of 48".into(),
        "documents a second".into(),
        "<h2>Calibration</h2>".into(),
        report["settings"]["description"].as_str().expect("text").to_owned(),
    ] {
        assert!(html.contains(&said), "{said}");
    }
    assert_eq!(html.matches("<details class=\"query\"").count(), 6);
    assert!(html.matches("<summary>Thought</summary>").count() > 6);

    // No document is scored again, so the time is unknown.
    collection.eval("jsonl", "out", "");
    assert!(collection.read("out/report.html").contains("not recorded"));
}

#[test]
fn page_escapes_hostile_texts() {
    let collection = Collection::new();
    // The query keeps its words, so that the model ranks as before.
    collection.edit("candidates.jsonl", |text| {
        let hostile = |line: &str| {
            let mut query: Value = serde_json::from_str(line).expect("JSON");
            query["query"] = json!(format!("{} {HOSTILE}", query["query"].as_str().expect("text")));
            query["instruction"] = json!(format!("Find {HOSTILE}"));
            for document in query["documents"].as_array_mut().expect("documents") {
                let text = document["text"].as_str().expect("text");
                document["text"] = json!(format!("{text} {HOSTILE}"));
                document["id"] = json!(document["id"].as_str().expect("an id").replace('-', "<b>"));
            }
            format!("{query}\n")
        };
        text.lines().map(hostile).collect()
    });
    collection.edit("qrels.txt", |text| text.replace('-', "<b>"));
    let run = collection.eval("jsonl", "out", "");
    assert_eq!(run.code, Some(0), "{run:?}");
    collection.edit("out/scores.jsonl", |text| {
        let hostile = |line: &str| {
            let mut entry: Value = serde_json::from_str(line).expect("JSON");
            if entry["reasoning"].is_string() {
                entry["reasoning"] = json!(format!("Thinking: {HOSTILE}{}", " x".repeat(5000)));
            }
            format!("{entry}\n")
        };
        text.lines().map(hostile).collect()
    });
    let run = collection.eval("jsonl", "out", "");
    assert!(run.err.contains(" 0 of them to be scored"), "{}", run.err);
    let html = collection.read("out/report.html");
    assert_well_formed(&html);
    for said in [
        format!("how do bees make honey {ESCAPED}"),
        format!("<bdi>Find {ESCAPED}</bdi>"),
        format!(". {ESCAPED}</p>"),
        format!("Thinking: {ESCAPED} x x"),
        "bees&lt;b&gt;2".into(),
        "more characters</span></p></details>".into(),
    ] {
        assert!(html.contains(&said), "{said}");
    }
    assert_well_formed(&collection.read("out/gains.svg"));
}

#[test]
fn page_names_what_is_missing() {
    let collection = Collection::new();
    collection
        .edit("candidates.jsonl", |text| text.replacen("Wasps make paper from wood.", " ", 1));
    collection.edit("qrels.txt", |text| format!("{text}other 0 x 1\n"));
    let run = collection.eval("jsonl", "out", "--answer-only");
    assert_eq!(run.code, Some(3), "{run:?}");
    let html = collection.read("out/report.html");
    assert_well_formed(&html);
    for said in [
        "<p>1 judged queries are not in the run, and count as 0.</p>",
        "<p>1 documents could not be scored; they rank last, in the first stage&#39;s order.</p>",
        "<li>query <bdi>bees</bdi>, document <bdi>bees-8</bdi>: <bdi>",
        "without a thought",
    ] {
        assert!(html.contains(said), "{said}");
    }
    assert!(!html.contains("<summary>Thought</summary>"));
}

#[test]
fn page_that_cannot_be_written_is_an_error() {
    let collection = Collection::new();
    collection.write("out/report.html/file", "");
    let run = collection.eval("jsonl", "out", "--answer-only");
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.err.contains("out/report.html: "), "{}", run.err);
    assert!(!std::path::Path::new(&collection.path("out/report.html.part")).exists());
}

#[test]
fn page_of_many_queries_is_small() {
    let collection = Collection::new();
    let (mut candidates, mut qrels) = (String::new(), String::new());
    for number in 0..1000 {
        let long = "\u{202e}".repeat(if number < 10 { 1000 } else { 0 });
        let wasps = json!({"id": "wasps", "text": format!("wasps {long}"), "score": 2});
        let bees = json!({"id": "bees", "text": format!("how bees make honey {long}"), "score": 1});
        let documents = if number < 10 { vec![wasps, bees] } else { vec![bees] };
        let id = format!("query-{number}-{}", "x".repeat(100));
        let query = json!({"id": id, "query": format!("honey {}", "\u{202e}".repeat(100)), "documents": documents});
        candidates += &format!("{query}\n");
        qrels += &format!("{id} 0 bees 1\n");
    }
    collection.write("candidates.jsonl", &candidates);
    collection.write("qrels.txt", &qrels);
    let run = collection.eval("jsonl", "out", "--answer-only --measure nDCG@10");
    assert_eq!(run.code, Some(0), "{run:?}");
    let html = collection.read("out/report.html");
    assert_well_formed(&html);
    assert_eq!(html.matches("<details class=\"query\"").count(), 5);
    assert!(html.len() < 2_000_000, "{}", html.len());
}
