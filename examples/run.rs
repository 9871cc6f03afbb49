//! Runs every example as its users do, and checks what it prints.

use std::path::Path;
use std::process::Command;

use erank_core::testing::conformance::{Options, check};

#[path = "backend.rs"]
#[expect(dead_code, reason = "the example's `main`")]
mod backend;

mod built;

#[path = "../tests/remote/llama_cpp.rs"]
#[expect(dead_code, reason = "functions that only the remote backend's tests call")]
mod llama_cpp;

/// Runs an example, asserts that it succeeds, and returns what it printed.
fn output_of(example: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(built::example(example)).args(arguments).output().expect("the example starts");
    assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("examples print UTF-8")
}

/// Returns the lines of a table without its heading.
fn rows(output: &str) -> Vec<&str> {
    output.lines().skip(1).collect()
}

#[test]
fn rerank_ranks_honey_first() {
    let output = output_of("rerank", &[]);
    assert_eq!(output.lines().count(), 10, "{output}");
    let first = output.lines().next().expect("a line");
    assert!(first.contains("Nectar becomes honey") || first.contains("Honey is made"), "{output}");
}

#[test]
fn tantivy_ranks_honey_first() {
    let output = output_of("tantivy", &[]);
    let rows = rows(&output);
    assert!((3..=5).contains(&rows.len()), "{output}");
    assert!(rows[0].ends_with("drying") || rows[0].ends_with("honey"), "{output}");
}

#[test]
fn streaming_prints_every_answer_and_cancels_the_last_request() {
    let output = output_of("streaming", &[]);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 7, "{output}");
    // The model answers in any order.
    for word in ["Beeston", "Nectar", "Maple", "bears"] {
        assert_eq!(lines[..4].iter().filter(|line| line.contains(word)).count(), 1, "{output}");
    }
    assert!(lines[4].starts_with("best: Nectar"), "{output}");
    assert_eq!(lines[5], "in time: 4, too late: 0");
    let done = lines[6].strip_prefix("enough: ").and_then(|rest| rest.split(' ').next());
    let done: usize = done.expect("a number").parse().expect("a number");
    assert!((3..400).contains(&done), "{output}");
}

/// A row has the setting's name, the generated tokens, and the documents with score and standard deviation.
#[test]
fn thinking_costs_fewer_tokens_with_a_cascade() {
    let output = output_of("thinking", &[]);
    let rows = &rows(&output)[..5];
    let tokens: Vec<usize> = rows
        .iter()
        .map(|row| row[15..22].trim().parse().unwrap_or_else(|_| panic!("{output}")))
        .collect();
    let [full, brief, none, cascade, samples] = tokens[..] else { panic!("{output}") };
    assert!(none < brief && brief < full && full < samples, "{output}");
    assert!(none < cascade && cascade < full, "{output}");
    for row in rows {
        assert!(row[22..].starts_with("  Nectar"), "{output}");
    }
    // A star marks an answer without a thought: all four, or all but the two best of the cascade.
    let stars: Vec<usize> = rows.iter().map(|row| row.matches('*').count()).collect();
    assert_eq!(stars, [0, 0, 4, 2, 0], "{output}");
    // Only several samples of one document can have a standard deviation other than 0.
    let differ = |row: &&str| row.split("± ").skip(1).any(|rest| !rest.starts_with("0.00"));
    assert_eq!(rows.iter().map(differ).collect::<Vec<_>>(), [false, false, false, false, true]);
}

#[test]
fn cascade_thinks_about_the_best_three_only() {
    let output = output_of("cascade", &[]);
    let rows = rows(&output);
    assert_eq!(rows.len(), 3, "{output}");
    let numbers = |column: usize| -> Vec<usize> {
        let words = rows.iter().map(|row| row[20..].split_whitespace().nth(column));
        words.map(|word| word.expect("a word").parse().expect("a number")).collect()
    };
    assert_eq!(numbers(0), [0, 10, 3], "{output}");
    let generated = numbers(1);
    assert!(generated[0] < generated[2] && generated[2] < generated[1], "{output}");
}

#[test]
fn prompt_accepts_custom_instruction_and_template() {
    let output = output_of("prompt", &[]);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 5, "{output}");
    assert!(lines[..2].iter().all(|line| line.contains("Nectar")), "{output}");
    for line in &lines[2..] {
        let (score, _) = line.split_once(" of 3  ").unwrap_or_else(|| panic!("{output}"));
        assert!((0.0..=3.0).contains(&score.parse::<f64>().expect("a number")), "{output}");
    }
}

/// Reads the files of erank-core's own tests, for which trec_eval and scipy made the expected values.
#[test]
fn evaluate_prints_the_values_of_trec_eval_and_scipy() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-core/tests/trec");
    let file = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let output = output_of(
        "evaluate",
        &[&file("qrels.txt"), &file("before.run"), &file("after.run"), "nDCG@10", "AP"],
    );
    // The last column of the first line with this prefix.
    let expected = |name: &str, prefix: &str| {
        let lines = std::fs::read_to_string(file(name)).expect("a file");
        let line = lines.lines().find(|line| line.starts_with(prefix)).expect("a line");
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
fn async_prints_the_best_document_of_each_query() {
    let output = output_of("async", &[]);
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0].contains("Nectar") && lines[1].contains("Maple"), "{output}");
    assert!(lines[2].contains("Beeston") && lines.len() == 3, "{output}");
}

/// The server runs a language model that was not trained to rerank, so any document may fail.
#[test]
fn remote_reports_every_document_of_a_real_server() {
    let Some(python) = llama_cpp::python() else { return };
    let model = llama_cpp::small_language_model(&python);
    let server = llama_cpp::LlamaCpp::start(&python, &model, 2, 1024);
    let output = output_of("remote", &[&server.url()]);
    for word in ["Beeston", "Nectar", "Maple"] {
        assert_eq!(output.matches(word).count(), 1, "{output}");
    }
}

#[test]
#[cfg(feature = "vector-store")]
fn vector_store_ranks_nectar_first() {
    let output = output_of("vector_store", &[]);
    let rows = rows(&output);
    assert_eq!(rows.len(), 4, "{output}");
    assert!(rows[0].contains("nectar"), "{output}");
}

#[test]
#[cfg(feature = "adapters")]
fn rig_ranks_nectar_first_and_reports_the_blank_document() {
    let output = output_of("rig", &[]);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 4, "{output}");
    assert!(lines[0].contains("Nectar becomes honey"), "{output}");
    // The blank document has an error instead of a score.
    assert!(lines[3].contains(r#""index":2"#) && lines[3].contains("empty"), "{output}");
}

#[test]
#[cfg(feature = "adapters")]
fn swiftide_answers_from_the_best_documents() {
    let output = output_of("swiftide", &[]);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 3, "{output}");
    assert!(lines[..2].iter().all(|line| line.to_lowercase().contains("nectar")), "{output}");
}

/// The one test that the author of a backend writes.
#[test]
fn custom_backend_passes_the_conformance_suite() {
    let report = check(&backend::Words, &Options::default());
    assert!(report.is_conformant(), "{report}");
}

#[test]
fn custom_backend_ranks_by_shared_words() {
    let output = output_of("backend", &[]);
    let expected = " 7.50  Bees make honey.\n 2.50  Do bears like honey?\n";
    assert_eq!(output, expected);
}

#[test]
fn backends_page_quotes_the_examples_verbatim() {
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
    assert!(page.contains(&format!("one in {lines} lines")), "backend.rs has {lines} lines");
}
