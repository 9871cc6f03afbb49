//! Runs the examples as their users do, and looks at what they print.

use std::process::Command;

/// What an example prints; it must succeed.
fn output_of(example: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "--package", "erank-examples", "--example", example])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("examples print UTF-8")
}

#[test]
fn rerank_puts_honey_first() {
    let output = output_of("rerank");
    assert_eq!(output.lines().count(), 10, "{output}");
    let first = output.lines().next().expect("a line");
    assert!(first.contains("Nectar becomes honey") || first.contains("Honey is made"), "{output}");
}
