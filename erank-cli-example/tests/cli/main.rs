//! Tests that run the command.

mod demo;
mod documents;
mod eval;
mod inspect;
#[cfg(unix)]
mod interrupt;
#[cfg(target_os = "linux")]
mod memory;
mod quantize;
mod readme;
mod remote;
mod rerank;
#[cfg(feature = "search")]
mod search;
#[cfg(feature = "serve")]
mod serve;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const ERANK: &str = env!("CARGO_BIN_EXE_erank");

/// The exit code and the output of a command.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// Parses standard output as JSON.
    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts that the output holds no control characters.
    #[track_caller]
    fn assert_harmless(&self) {
        for text in [&self.out, &self.err] {
            let harmful = |c: &char| c.is_control() && *c != '\n' || *c == '\u{202e}';
            assert_eq!(text.chars().find(harmful), None, "{self:?}");
        }
    }
}

/// Copies the bundled model into a folder of this name. The bundled tokenizer drops "no" as a word without meaning;
/// that of the copy has a token for it.
fn tiny_with_yes_and_no(parent: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-candle/tiny-model");
    let folder = parent.join(name);
    fs::create_dir(&folder).expect("made");
    for file in ["config.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(source.join(file), folder.join(file)).expect("a copy");
    }
    let tokenizer = fs::read_to_string(source.join("tokenizer.json")).expect("the bundled model");
    let with_no = tokenizer.replace("|my|no|not|", "|my|not|");
    assert_ne!(with_no, tokenizer);
    fs::write(folder.join("tokenizer.json"), with_no).expect("written");
    folder
}

/// Runs `erank` with arguments and standard input.
fn erank<S: AsRef<OsStr>>(arguments: &[S], input: &[u8]) -> Ended {
    let mut child = Command::new(ERANK)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    std::thread::scope(|scope| {
        // An error is ignored, because the command may end without reading its input.
        scope.spawn(move || stdin.write_all(input));
        Ended::new(child.wait_with_output().expect("it ends"))
    })
}
