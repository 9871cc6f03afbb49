//! Runs the examples as their users do, and looks at what they print.

use std::path::Path;
use std::process::Command;

use erank_core::testing::conformance::{Options, check};

#[path = "backend.rs"]
#[expect(dead_code, reason = "its main function")]
mod backend;

#[path = "../tests/remote/llama_cpp.rs"]
#[expect(dead_code, reason = "what the tests of the remote backend need besides")]
mod llama_cpp;

/// What an example prints; it must succeed.
fn output_of(example: &str, features: &[&str]) -> String {
    output_with(example, features, &[])
}

fn output_with(example: &str, features: &[&str], arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "--package", "erank-examples", "--example", example])
        .args(features.iter().flat_map(|feature| ["--features", feature]))
        .arg("--")
        .args(arguments)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("examples print UTF-8")
}

#[test]
fn rerank_puts_honey_first() {
    let output = output_of("rerank", &[]);
    assert_eq!(output.lines().count(), 10, "{output}");
    let first = output.lines().next().expect("a line");
    assert!(first.contains("Nectar becomes honey") || first.contains("Honey is made"), "{output}");
}

/// Its lines without the heading.
fn rows(output: &str) -> Vec<&str> {
    output.lines().skip(1).collect()
}

#[test]
fn tantivy_finds_and_erank_orders() {
    let output = output_of("tantivy", &[]);
    let rows = rows(&output);
    assert!((3..=5).contains(&rows.len()), "{output}");
    assert!(rows[0].ends_with("drying") || rows[0].ends_with("honey"), "{output}");
}

#[test]
fn answers_are_shown_as_they_come_and_work_ends_early() {
    let output = output_of("streaming", &[]);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 7, "{output}");
    // Each document once, in any order.
    for word in ["Beeston", "Nectar", "Maple", "bears"] {
        assert_eq!(lines[..4].iter().filter(|line| line.contains(word)).count(), 1, "{output}");
    }
    assert!(lines[4].starts_with("best: Nectar"), "{output}");
    assert_eq!(lines[5], "in time: 4, too late: 0");
    let done = lines[6].strip_prefix("enough: ").and_then(|rest| rest.split(' ').next());
    let done: usize = done.expect("a number").parse().expect("a number");
    assert!((3..400).contains(&done), "{output}");
}

/// The rows of the example: name, tokens, and the documents with score and spread.
#[test]
fn thinking_costs_tokens_and_a_cascade_saves_them() {
    let output = output_of("thinking", &[]);
    let rows = &rows(&output)[..5];
    let tokens: Vec<usize> = rows
        .iter()
        .map(|row| row[15..22].trim().parse().unwrap_or_else(|_| panic!("{output}")))
        .collect();
    let [each, briefly, not, best, five] = tokens[..] else { panic!("{output}") };
    assert!(not < briefly && briefly < each && each < five, "{output}");
    assert!(not < best && best < each, "{output}");
    for row in rows {
        assert!(row[22..].starts_with("  Nectar"), "{output}");
    }
    // Without a thought: all, and in the cascade all but two.
    let stars: Vec<usize> = rows.iter().map(|row| row.matches('*').count()).collect();
    assert_eq!(stars, [0, 0, 4, 2, 0], "{output}");
    // Only samples can differ from one another.
    let differ = |row: &&str| row.split("± ").skip(1).any(|rest| !rest.starts_with("0.00"));
    assert_eq!(rows.iter().map(differ).collect::<Vec<_>>(), [false, false, false, false, true]);
}

#[test]
fn instructions_and_prompts_are_exchanged() {
    let output = output_of("prompt", &[]);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 5, "{output}");
    assert!(lines[..2].iter().all(|line| line.contains("Nectar")), "{output}");
    for line in &lines[2..] {
        let (score, _) = line.split_once(" of 3  ").unwrap_or_else(|| panic!("{output}"));
        assert!((0.0..=3.0).contains(&score.parse::<f64>().expect("a number")), "{output}");
    }
}

/// With the files of erank-core's own tests, which trec_eval and scipy were asked about.
#[test]
fn runs_are_evaluated() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-core/tests/trec");
    let file = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let output = output_with(
        "evaluate",
        &[],
        &[&file("qrels.txt"), &file("before.run"), &file("after.run"), "nDCG@10", "AP"],
    );
    // The last column of the line that begins so.
    let expected = |name: &str, begins: &str| {
        let lines = std::fs::read_to_string(file(name)).expect("a file");
        let line = lines.lines().find(|line| line.starts_with(begins)).expect("a line");
        let value = line.rsplit('\t').next().expect("a column");
        format!("{:.4}", value.parse::<f64>().expect("a number"))
    };
    let rows = rows(&output);
    assert_eq!(rows.len(), 2, "{output}");
    for row in rows {
        let [measure, before, after, _, p] = row.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{output}")
        };
        for (run, value) in [("before", before), ("after", after)] {
            let line = format!("{measure}\t{run}\tall\t");
            assert_eq!(value, expected("expected.tsv", &line), "{output}");
        }
        assert_eq!(p, expected("t_test.tsv", &format!("{measure}\t")), "{output}");
    }
}

#[test]
fn futures_are_waited_for() {
    let output = output_of("async", &[]);
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0].contains("Nectar") && lines[1].contains("Maple"), "{output}");
    assert!(lines[2].contains("Beeston") && lines.len() == 3, "{output}");
}

/// A real server, with a language model that is no reranker: each document has a score or a reason.
#[test]
fn a_server_is_asked() {
    let Some(python) = llama_cpp::python() else { return };
    let model = llama_cpp::small_language_model(&python);
    let server = llama_cpp::LlamaCpp::start(&python, &model, 2, 1024);
    let output = output_with("remote", &[], &[&server.url()]);
    for word in ["Beeston", "Nectar", "Maple"] {
        assert_eq!(output.matches(word).count(), 1, "{output}");
    }
}

#[test]
#[cfg(feature = "vector-store")]
fn usearch_finds_and_erank_orders() {
    let output = output_of("vector_store", &["vector-store"]);
    let rows = rows(&output);
    assert_eq!(rows.len(), 4, "{output}");
    assert!(rows[0].contains("nectar"), "{output}");
}

#[test]
#[cfg(feature = "adapters")]
fn rig_calls_erank() {
    let output = output_of("rig", &["adapters"]);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 4, "{output}");
    assert!(lines[0].contains("Nectar becomes honey"), "{output}");
    // The blank document is told of, and has no score.
    assert!(lines[3].contains(r#""index":2"#) && lines[3].contains("empty"), "{output}");
}

#[test]
#[cfg(feature = "adapters")]
fn a_swiftide_pipeline_answers_from_what_erank_puts_first() {
    let output = output_of("swiftide", &["adapters"]);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 3, "{output}");
    assert!(lines[..2].iter().all(|line| line.to_lowercase().contains("nectar")), "{output}");
}

/// The test that a backend's author writes.
#[test]
fn the_backend_of_ones_own_keeps_the_contract() {
    let report = check(&backend::Words, &Options::default());
    assert!(report.is_conformant(), "{report}");
}

#[test]
fn the_backend_of_ones_own_finds_words() {
    let output = output_of("backend", &[]);
    let expected = " 7.50  Bees make honey.\n 2.50  Do bears like honey?\n";
    assert_eq!(output, expected);
}

#[test]
fn what_the_documents_quote_stands_in_the_examples() {
    let sources = [include_str!("backend.rs"), include_str!("run.rs")];
    let page = include_str!("../docs/backends.md");
    let quotes: Vec<&str> = page
        .split("```rust,ignore\n")
        .skip(1)
        .map(|rest| rest.split("```").next().expect("the end of a quote"))
        .collect();
    assert!(quotes.len() >= 7, "{}", quotes.len());
    for quote in quotes {
        assert!(sources.iter().any(|source| source.contains(quote)), "{quote}");
    }
    let lines = sources[0].lines().count();
    assert!(page.contains(&format!("one in {lines} lines")), "it has {lines}");
}
