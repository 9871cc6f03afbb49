//! The examples as `cargo test` has just built them.

use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Returns the executable of the example `name`.
///
/// `cargo test` builds the examples of every package that it tests, with the features of that run, so
/// nothing has to be compiled for the test. It does not build them if `--test` or another filter names
/// targets.
///
/// # Panics
/// Panics if the executable is missing or older than one of its sources.
pub(crate) fn example(name: &str) -> PathBuf {
    // target/debug/deps/run-0123456789abcdef → target/debug/examples/NAME
    let test = std::env::current_exe().expect("a test knows its executable");
    let folder = test.ancestors().nth(2).expect("target/debug").join("examples");
    let executable = folder.join(format!("{name}{EXE_SUFFIX}"));
    let advice = "`cargo test -p erank-examples`, without `--test`, builds it";
    let Some(built) = modified(&executable) else {
        panic!("{} does not exist; {advice}", executable.display());
    };
    for source in sources(&folder.join(format!("{name}.d"))) {
        let is_older = modified(&source).is_none_or(|changed| changed > built);
        assert!(!is_older, "example {name} is older than {}; {advice}", source.display());
    }
    executable
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// Returns the sources that cargo lists in a dep-info file: `TARGET: SOURCE SOURCE…`, where a backslash
/// precedes a space that belongs to a path.
fn sources(dep_info: &Path) -> Vec<PathBuf> {
    let rule = fs::read_to_string(dep_info).expect("cargo writes one beside every example");
    let (_, sources) = rule.split_once(": ").expect("a rule of make");
    let sources = sources.trim().replace("\\ ", "\0");
    sources.split(' ').map(|source| source.replace('\0', " ").into()).collect()
}
