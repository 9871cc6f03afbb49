//! The examples of the README.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::ERANK;

#[test]
#[cfg(unix)]
fn readme_examples_run() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(package.join("README.md")).expect("it is there");
    // Work on a copy, because some examples write files.
    let folder = tempfile::tempdir().expect("a folder");
    for data in ["data", "evaluation"] {
        fs::create_dir(folder.path().join(data)).expect("made");
        for file in fs::read_dir(package.join(data)).expect("a folder").flatten() {
            let copy = folder.path().join(data).join(file.file_name());
            fs::copy(file.path(), copy).expect("copied");
        }
    }
    let blocks: Vec<&str> =
        readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let has_search = cfg!(feature = "search");
    assert!(blocks.len() >= 4);
    let erank = Path::new(ERANK).parent().expect("a folder").display().to_string();
    let path = format!("{erank}:{}", std::env::var("PATH").unwrap_or_default());
    for block in blocks {
        if block.contains("erank search") && !has_search {
            println!("skipped: erank search needs the feature `search`");
            continue;
        }
        let script = format!("set -e\n{block}");
        let mut shell = Command::new("sh");
        let shell = shell.arg("-c").arg(script).current_dir(folder.path());
        let output = shell.env("PATH", &path).output();
        let output = output.expect("it runs");
        assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{block}");
    }
}

#[test]
fn readme_lists_the_exit_codes_of_the_help() {
    let readme = include_str!("../../README.md");
    let help = crate::erank(&["--help"], b"").out;
    for code in ["0", "1", "2", "3", "4", "130"] {
        assert!(readme.contains(&format!("| {code} | ")), "{code}");
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{code} "))),
            "{code}"
        );
    }
}
