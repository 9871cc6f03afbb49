//! `erank serve` in a process of its own, with the bundled model. The crate erank-serve tests the routes.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::ERANK;

const NECTAR: &str = "Nectar becomes honey when bees fan it dry with their wings.";
const CAKES: &str = "The town of Beeston is known for its cakes.";

struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(ERANK)
            .arg("serve")
            .args(if arguments.contains(&"--listen") {
                &[][..]
            } else {
                &["--listen", "127.0.0.1:0"]
            })
            .args(arguments)
            .env_remove("ERANK_API_KEYS")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut line = String::new();
        let output = BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line);
        output.expect("the address");
        let url = line.trim().rsplit(' ').next().expect("an address").to_owned();
        assert!(url.starts_with("http://127.0.0."), "{line}");
        Self { child, url }
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let request = agent.post(format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json");
        let mut response = request.send(body.to_string()).expect("a reply");
        let text = response.body_mut().read_to_string().expect("text");
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn get(&self, path: &str) -> String {
        let mut response = ureq::get(format!("{}{path}", self.url)).call().expect("a reply");
        response.body_mut().read_to_string().expect("text")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn indices(body: &Value) -> Vec<u64> {
    let results = body["results"].as_array().expect("results").iter();
    results.map(|result| result["index"].as_u64().expect("an index")).collect()
}

#[test]
fn serve_ranks_with_the_bundled_model() {
    let process = Process::start(&["--alias", "erank-4b", "--log", "error"]);
    let question = json!({"model": "erank-4b", "query": "how do bees make honey",
        "documents": [CAKES, NECTAR, ""], "return_reasoning": true});
    let (status, body) = process.post("/v1/rerank", &question);
    assert_eq!((status, indices(&body)), (200, vec![1, 0, 2]), "{body}");
    assert!(!body["results"][0]["reasoning"].as_str().expect("a text").is_empty());
    assert_eq!(body["results"][0]["distribution"].as_array().map(Vec::len), Some(11));

    // Fewer tokens of a document are another document.
    let cut = json!({"query": "honey", "documents": [NECTAR], "max_tokens_per_doc": 2});
    assert_eq!(process.post("/v1/rerank", &cut).1["results"][0]["truncated"], true);

    let metrics = process.get("/metrics");
    assert!(metrics.contains("erank_engine_generated_tokens_total"), "{metrics}");
    assert!(process.get("/").contains("<!doctype html>"));
}

#[test]
fn serve_streams_thoughts_that_join_to_the_reasoning() {
    let process = Process::start(&["--log", "error"]);
    let question = json!({"query": "honey", "documents": [CAKES, NECTAR], "stream": true});
    let (_, body) = process.post("/v1/rerank", &question);
    let text = body.as_str().expect("a stream");
    let data: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).expect("JSON"))
        .collect();
    let result = data.last().expect("a result");
    for document in result["results"].as_array().expect("results") {
        let pieces = data.iter().filter(|event| event["index"] == document["index"]);
        let thought: String = pieces.filter_map(|event| event["text"].as_str()).collect();
        let reasoning = document["reasoning"].as_str().expect("a text");
        assert!(!reasoning.is_empty());
        assert_eq!(thought.trim(), reasoning);
    }
}

#[test]
fn serve_scores_long_documents_by_windows() {
    let process = Process::start(&["--log", "error", "--windows", "64"]);
    let filler = "The town council met on Tuesday to discuss the budget. ".repeat(30);
    let text = format!("{filler}Leaves change colour in autumn. {filler}");
    let mut question = json!({"query": "why do leaves change colour", "documents": [text, CAKES]});
    let (status, whole) = process.post("/v1/rerank", &question);
    assert_eq!((status, indices(&whole)), (200, vec![0, 1]), "{whole}");
    let windows = whole["results"][0]["windows"].as_array().expect("windows");
    let place = |name: &str| windows[0][name].as_u64().expect("a number") as usize;
    assert!(text[place("start")..place("end")].contains("Leaves change colour"), "{whole}");
    assert_eq!(windows[0]["relevance_score"], whole["results"][0]["relevance_score"]);

    question["stream"] = true.into();
    let (_, stream) = process.post("/v1/rerank", &question);
    let stream = stream.as_str().expect("a stream");
    let names: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!((names.first(), names.last()), (Some(&"started"), Some(&"result")), "{stream}");
    // The short document has events of its own.
    assert_eq!(names.iter().filter(|name| **name == "document").count(), 1, "{stream}");

    // A client that limits the tokens of a document gets truncated documents.
    question["stream"] = false.into();
    question["max_tokens_per_doc"] = 64.into();
    let (_, cut) = process.post("/v1/rerank", &question);
    let of_text = |result: &&Value| result["index"] == 0;
    let cut = cut["results"].as_array().expect("results").iter().find(of_text).expect("scored");
    assert_eq!((&cut["truncated"], cut.get("windows")), (&true.into(), None));
}

#[test]
fn serve_explains_what_it_cannot_use() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let empty = folder.path().join("keys");
    std::fs::write(&empty, " \n\n# a comment\n").expect("a file");
    let empty = empty.to_str().expect("UTF-8");
    for (arguments, message) in [
        (["--api-keys", empty], "it holds no API key"),
        (["--prompts", "chat"], "need --backend openai"),
        (["--api-keys", "/nowhere/keys"], "cannot read /nowhere/keys"),
        (["--windows", "9999"], "more than max_document_tokens"),
        (["--model", "/nowhere"], "neither a folder nor a name"),
        (["--listen", "192.0.2.1:1"], "cannot serve at 192.0.2.1:1"),
    ] {
        let output = Command::new(ERANK).arg("serve").args(arguments).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn serve_refuses_variable_without_key() {
    for value in ["", " ", ",", ", \t,"] {
        let output = Command::new(ERANK)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("ERANK_API_KEYS", value)
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{value:?}");
        let error = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(error.contains("ERANK_API_KEYS") && error.contains("no API key"), "{error}");
    }
    let output = Command::new(ERANK).args(["serve", "--listen", "localhost:8080"]).output();
    let error = String::from_utf8(output.expect("it runs").stderr).expect("UTF-8");
    assert!(error.contains("such as 127.0.0.1:8080"), "{error}");
}

#[test]
fn serve_reads_keys_of_files_with_comments_and_byte_order_mark() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "\u{feff}first\r\n # a comment\nsecond\n").expect("a file");
    let process = Process::start(&["--log", "error", "--api-keys", keys.to_str().expect("UTF-8")]);
    for (key, status) in [("first", 200), ("second", 200), ("# a comment", 401), ("other", 401)] {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let request = agent.get(format!("{}/v1/models", process.url)).header("x-api-key", key);
        assert_eq!(request.call().expect("a reply").status(), status, "{key}");
    }
}

/// The program that reads the log can end, or stop reading.
#[test]
#[cfg(unix)]
fn serve_replies_without_a_reader_of_its_output() {
    for ends in [true, false] {
        let mut process = Process::start(&[]);
        let pipes = (process.child.stdout.take(), process.child.stderr.take());
        let unread = (!ends).then_some(pipes);
        // These requests write more than the 64 KiB that a pipe holds.
        for _ in 0..600 {
            assert!(process.get("/health").contains("ok"));
        }
        let kill = Command::new("kill").arg(process.child.id().to_string()).status();
        assert!(kill.expect("kill runs").success());
        assert!(process.child.wait().expect("the process exits").success());
        drop(unread);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn serve_accepts_requests_for_its_own_loopback_address() {
    let process = Process::start(&["--log", "error", "--listen", "127.0.0.2:0"]);
    assert!(process.get("/v1/models").contains("erank-tiny"));
}

#[test]
#[cfg(unix)]
fn serve_exits_successfully_on_sigterm() {
    let mut process = Process::start(&[]);
    let question = json!({"query": "honey", "documents": [CAKES, NECTAR]});
    assert_eq!(indices(&process.post("/v1/rerank", &question).1), [1, 0]);
    let kill = Command::new("kill").arg(process.child.id().to_string()).status();
    assert!(kill.expect("kill runs").success());
    assert!(process.child.wait().expect("the process exits").success());
    let mut log = String::new();
    process.child.stderr.take().expect("a pipe").read_to_string(&mut log).expect("text");
    assert!(log.contains("path=\"/v1/rerank\" status=200"), "{log}");
    assert!(log.ends_with("Stopped. All requests are answered.\n"), "{log}");
}

/// Returns the Python interpreter that has Cohere's client. Without it, prints that the test is skipped and returns
/// `None`, or panics if `ERANK_REQUIRE_COHERE` is set.
fn python() -> Option<PathBuf> {
    let python =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/.cache/clients/cohere/bin/python");
    if python.exists() {
        return Some(python);
    }
    let missing = "Cohere's client is missing; `erank-serve/clients/fetch.sh cohere` installs it";
    assert!(std::env::var_os("ERANK_REQUIRE_COHERE").is_none(), "{missing}");
    eprintln!("\n*** SKIPPED: {missing} ***\n");
    None
}

#[test]
fn serve_satisfies_the_client_of_cohere() {
    let Some(python) = python() else { return };
    let process = Process::start(&["--log", "error"]);
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../erank-serve/clients/cohere_client.py");
    let output = Command::new(python).arg(script).arg(&process.url).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen = String::from_utf8_lossy(&output.stdout);
    assert!(seen.ends_with(": v1, v2, asynchronous, errors\n"), "{seen}");
}
