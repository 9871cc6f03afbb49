//! Runs the examples as their users do, and looks at what they print.

use std::process::Command;

use erank_core::testing::conformance::{Options, check};

#[path = "backend.rs"]
#[expect(dead_code, reason = "its main function")]
mod backend;

/// What an example prints; it must succeed.
fn output_of(example: &str, features: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "--package", "erank-examples", "--example", example])
        .args(features.iter().flat_map(|feature| ["--features", feature]))
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
