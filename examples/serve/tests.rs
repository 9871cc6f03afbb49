//! Tests the service through HTTP clients. Where requests must overlap, the backend waits until its test
//! releases it, so no test depends on timing.

#[path = "../built.rs"]
mod built;
mod service;
mod wire;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use erank_candle::CandleBackend;
use erank_core::testing::answered;
use erank_core::{AsyncReranker, AsyncSettings, Reranker};
use erank_core::{BackendError, DocumentError, Job, ScoringBackend, Sink};
use serde_json::{Value, json};
use service::{Limits, Service};

const A_MINUTE: Duration = Duration::from_secs(60);

/// A service on a thread of this process.
struct Server {
    address: SocketAddr,
    shutdown: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(
        backend: impl ScoringBackend + 'static,
        workers: AsyncSettings,
        limits: Limits,
    ) -> Self {
        let model = backend.name().to_owned();
        let reranker = Reranker::builder(backend).build().expect("valid");
        let reranker = AsyncReranker::with_settings(reranker, workers).expect("threads");
        let router = Service { reranker, model, limits }.router();
        let (address, addresses) = channel();
        let (shutdown, requested) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let thread = thread::spawn(move || {
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
                address.send(listener.local_addr().expect("one")).expect("the test waits");
                let requested = async { requested.await.unwrap_or(()) };
                let service = axum::serve(listener, router).with_graceful_shutdown(requested);
                service.await.expect("the service runs");
            });
        });
        let address = addresses.recv_timeout(A_MINUTE).expect("the service listens");
        Self { address, shutdown: Some(shutdown), thread: Some(thread) }
    }

    fn post(&self, path: &str, body: impl ToString) -> Reply {
        post(&format!("http://{}{path}", self.address), &body.to_string())
    }

    /// Starts a graceful shutdown, which ends when all requests are answered.
    fn shut_down(&mut self) {
        let _ = self.shutdown.take().map(|shutdown| shutdown.send(()));
    }

    fn join(&mut self) {
        self.thread.take().expect("not yet joined").join().expect("no panic");
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    retry_after: Option<String>,
    body: Value,
}

fn post(url: &str, body: &str) -> Reply {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let request = agent.post(url).header("content-type", "application/json");
    let mut response = request.send(body).expect("a reply");
    let retry_after = response.headers().get("retry-after");
    let retry_after = retry_after.map(|value| value.to_str().expect("text").to_owned());
    let body = response.body_mut().read_to_string().expect("text");
    Reply {
        status: response.status().as_u16(),
        retry_after,
        body: serde_json::from_str(&body).unwrap_or(Value::String(body)),
    }
}

/// A backend that waits until its [`Keeper`] opens it, and then answers 7 for every document.
struct Gate {
    started: Sender<()>,
    cancelled: Sender<()>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

/// Controls and watches a [`Gate`].
struct Keeper {
    started: Receiver<()>,
    cancelled: Receiver<()>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

fn gate() -> (Gate, Keeper) {
    let ((send_started, started), (send_cancelled, cancelled)) = (channel(), channel());
    let open = Arc::new((Mutex::new(false), Condvar::new()));
    let gate = Gate { started: send_started, cancelled: send_cancelled, open: Arc::clone(&open) };
    (gate, Keeper { started, cancelled, open })
}

impl Keeper {
    fn open(&self) {
        *self.open.0.lock().expect("no panic") = true;
        self.open.1.notify_all();
    }
}

impl ScoringBackend for Gate {
    fn name(&self) -> &str {
        "gate"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        match job.documents[0] {
            "panic" => panic!("on purpose"),
            "unavailable" => return Err(BackendError::Unavailable("secret".into())),
            _ => self.started.send(()).expect("a keeper"),
        }
        let mut open = self.open.0.lock().expect("no panic");
        while !*open && !job.cancellation.is_cancelled() {
            // Cancellation is a flag, which does not wake this thread. So poll the flag.
            open = self.open.1.wait_timeout(open, Duration::from_millis(1)).expect("no panic").0;
        }
        for index in 0..job.documents.len() {
            let cancelled = job.cancellation.is_cancelled();
            let outcome =
                if cancelled { Err(DocumentError::Cancelled) } else { Ok(answered(7, 1.0)) };
            sink.completed(index, outcome);
        }
        if job.cancellation.is_cancelled() {
            self.cancelled.send(()).expect("a keeper");
        }
        Ok(())
    }
}

fn one_at_a_time() -> AsyncSettings {
    let mut workers = AsyncSettings::default();
    workers.threads = 1.try_into().expect("not 0");
    workers.queue_capacity = 1.try_into().expect("not 0");
    workers
}

fn tiny() -> Server {
    let backend = CandleBackend::tiny().expect("the bundled model");
    Server::start(backend, AsyncSettings::default(), Limits::default())
}

const NECTAR: &str = "Nectar becomes honey when bees fan it dry with their wings.";
const CAKES: &str = "The town of Beeston is known for its cakes.";

fn indices(body: &Value) -> Vec<u64> {
    let results = body["results"].as_array().expect("results").iter();
    results.map(|result| result["index"].as_u64().expect("an index")).collect()
}

#[test]
fn rerank_replies_in_the_format_of_jina_and_cohere() {
    let server = tiny();
    let documents = json!([CAKES, {"text": NECTAR}, "", "Do bears like honey?"]);
    let question = json!({"query": "how do bees make honey", "documents": documents, "top_n": 2,
        "return_documents": true, "model": "erank-tiny", "user": "me"});
    let reply = server.post("/v1/rerank", &question);
    assert_eq!(reply.status, 200, "{reply:?}");
    let body = reply.body;
    assert_eq!(indices(&body)[0], 1);
    assert_eq!(indices(&body).len(), 2);
    assert_eq!(body["results"][0]["document"], json!({"text": NECTAR}));
    let scores = body["results"].as_array().expect("results").iter();
    let scores: Vec<f64> = scores.map(|r| r["relevance_score"].as_f64().expect("one")).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|s| (0.0..=1.0).contains(s)));
    assert_eq!(body["model"], "erank-tiny");
    // The blank document has an error, and is not among the results.
    assert_eq!(
        (&body["unscored"][0]["index"], &body["unscored"][0]["error"]["code"]),
        (&json!(2), &json!("empty"))
    );
    let warnings = body["meta"]["warnings"].to_string();
    assert!(
        warnings.contains("user") && warnings.contains("document 2 has no score"),
        "{warnings}"
    );
    assert!(body["usage"]["total_tokens"].as_u64() > body["usage"]["prompt_tokens"].as_u64());
    assert_eq!(body["meta"]["billed_units"]["search_units"], 1);

    let question = json!({"query": "how do bees make honey", "documents": [CAKES, NECTAR]});
    let body = server.post("/v2/rerank", &question).body;
    assert_eq!(indices(&body), [1, 0]);
    assert_eq!(body["results"][0].get("document"), None);
    assert_eq!(body["meta"]["warnings"], json!([]));

    let health = ureq::get(format!("http://{}/health", server.address)).call().expect("a reply");
    assert_eq!(health.status(), 200);
}

/// Answers 9 if the instruction of the job asks for it, and else 1.
struct Instructed;

impl ScoringBackend for Instructed {
    fn name(&self) -> &str {
        "instructed"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let answer = if job.prompt.instruction() == "say nine" { 9 } else { 1 };
        sink.completed(0, Ok(answered(answer, 1.0)));
        Ok(())
    }
}

#[test]
fn instruction_of_a_request_reaches_the_prompt() {
    let server = Server::start(Instructed, AsyncSettings::default(), Limits::default());
    for (instruction, score) in [(json!("say nine"), 0.9), (json!(null), 0.1)] {
        let question = json!({"query": "q", "documents": ["a"], "instruction": instruction});
        let body = server.post("/v1/rerank", &question).body;
        let found = body["results"][0]["relevance_score"].as_f64().expect("a score");
        assert!((found - score).abs() < 1e-6, "{body}");
        assert_eq!(body["meta"]["warnings"], json!([]));
    }
}

#[test]
fn rerank_names_the_invalid_field() {
    let limits = Limits { body_bytes: 2000, documents: 3, text_bytes: 100, ..Limits::default() };
    let (gate, keeper) = gate();
    keeper.open();
    let server = Server::start(gate, AsyncSettings::default(), limits);
    let long = "x".repeat(101);
    for (body, status, field) in [
        ("{".into(), 400, ""),
        (r#"{"query": "q", "documents": ["a"]} x"#.into(), 400, ""),
        (json!([]).to_string(), 422, ""),
        (json!({"documents": ["a"]}).to_string(), 422, "query"),
        (json!({"query": "q"}).to_string(), 422, "documents"),
        (json!({"query": 1, "documents": ["a"]}).to_string(), 422, "query"),
        (json!({"query": " ", "documents": ["a"]}).to_string(), 422, "query"),
        (json!({"query": long, "documents": ["a"]}).to_string(), 422, "query"),
        (
            json!({"query": "q", "documents": ["a"], "instruction": long}).to_string(),
            422,
            "instruction",
        ),
        (json!({"query": "q", "documents": []}).to_string(), 422, "documents"),
        (json!({"query": "q", "documents": vec!["a"; 4]}).to_string(), 422, "documents"),
        (json!({"query": "q", "documents": ["a", 1]}).to_string(), 422, "documents[1]"),
        (
            json!({"query": "q", "documents": ["a", {"title": "b"}]}).to_string(),
            422,
            "documents[1]",
        ),
        (
            json!({"query": "q", "documents": ["a", {"text": long}]}).to_string(),
            422,
            "documents[1]",
        ),
        (json!({"query": "q", "documents": ["a"], "top_n": 0}).to_string(), 422, "top_n"),
        (json!({"query": "q", "documents": ["a"], "top_n": -1}).to_string(), 422, "top_n"),
        (json!({"query": "q", "documents": ["a"], "model": "x"}).to_string(), 404, "model"),
        (json!({"query": "q", "documents": ["a".repeat(2000)]}).to_string(), 413, ""),
    ] {
        let reply = server.post("/v1/rerank", &body);
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        let message = reply.body["message"].as_str().expect("a message");
        assert!(message.contains(field), "{body}: {message}");
        assert!(!field.starts_with("documents[") || reply.body["field"] == field, "{reply:?}");
    }
    let good = server.post("/v1/rerank", json!({"query": "q", "documents": ["a", "b", "c"]}));
    assert_eq!((good.status, indices(&good.body)), (200, vec![0, 1, 2]));
    assert_eq!(good.body["results"][0]["relevance_score"], 0.7);
}

/// One request runs, one waits in the queue, and the service rejects the others.
#[test]
fn rerank_replies_429_when_the_queue_is_full() {
    let (gate, keeper) = gate();
    let server = Server::start(gate, one_at_a_time(), Limits::default());
    let question = json!({"query": "q", "documents": ["a"]});
    thread::scope(|scope| {
        let (sender, replies) = channel();
        let ask = |sender: Sender<Reply>| {
            let (server, question) = (&server, &question);
            scope.spawn(move || {
                sender.send(server.post("/v1/rerank", question)).expect("the test waits");
            });
        };
        ask(sender.clone());
        keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
        (0..4).for_each(|_| ask(sender.clone()));
        for _ in 0..3 {
            let reply = replies.recv_timeout(A_MINUTE).expect("a reply");
            assert_eq!((reply.status, reply.retry_after.as_deref()), (429, Some("1")), "{reply:?}");
        }
        keeper.open();
        for _ in 0..2 {
            let reply = replies.recv_timeout(A_MINUTE).expect("a reply");
            assert_eq!((reply.status, indices(&reply.body)), (200, vec![0]), "{reply:?}");
        }
    });
}

#[test]
fn rerank_is_cancelled_when_the_client_disconnects() {
    let (gate, keeper) = gate();
    let server = Server::start(gate, one_at_a_time(), Limits::default());
    let body = json!({"query": "q", "documents": ["a"]}).to_string();
    let mut client = TcpStream::connect(server.address).expect("the service listens");
    write!(
        client,
        "POST /v1/rerank HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("the service reads");
    keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
    assert!(keeper.cancelled.try_recv().is_err());
    drop(client);
    // The gate stays closed, so only cancellation ends the request.
    keeper.cancelled.recv_timeout(A_MINUTE).expect("the request is cancelled");
}

#[test]
fn shutdown_finishes_running_requests() {
    let (gate, keeper) = gate();
    let mut server = Server::start(gate, one_at_a_time(), Limits::default());
    let url = format!("http://{}/v1/rerank", server.address);
    let body = json!({"query": "q", "documents": ["a"]}).to_string();
    let client = thread::spawn(move || post(&url, &body));
    keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
    server.shut_down();
    // Once the shutdown has begun, the service refuses new connections.
    while TcpStream::connect(server.address).is_ok() {
        thread::yield_now();
    }
    keeper.open();
    assert_eq!(client.join().expect("no panic").status, 200);
    server.join();
}

#[test]
fn rerank_reports_documents_cancelled_at_the_deadline() {
    let (gate, _keeper) = gate();
    let limits = Limits { time: Duration::ZERO, ..Limits::default() };
    let server = Server::start(gate, AsyncSettings::default(), limits);
    let reply = server.post("/v1/rerank", json!({"query": "q", "documents": ["a"]}));
    assert_eq!((reply.status, indices(&reply.body).len()), (200, 0));
    assert_eq!(reply.body["unscored"][0]["error"]["code"], "cancelled");
}

#[test]
fn rerank_hides_the_source_of_a_backend_error() {
    let (gate, keeper) = gate();
    keeper.open();
    let server = Server::start(gate, one_at_a_time(), Limits::default());
    for (document, status, retry_after) in
        [("unavailable", 503, Some("1")), ("panic", 500, None), ("fine", 200, None)]
    {
        let reply = server.post("/v1/rerank", json!({"query": "q", "documents": [document]}));
        assert_eq!((reply.status, reply.retry_after.as_deref()), (status, retry_after));
        assert!(!reply.body.to_string().contains("secret"), "{reply:?}");
    }
}

/// The example in a process of its own, as its users start it.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new(built::example("serve"))
            .arg("127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example starts");
        let mut line = String::new();
        let output = BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line);
        output.expect("the address");
        let url = line.trim().rsplit(' ').next().expect("an address").to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "{line}");
        Self { child, url }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[cfg(unix)]
fn process_exits_successfully_on_sigterm() {
    let mut process = Process::start();
    let question = json!({"query": "honey", "documents": [CAKES, NECTAR]}).to_string();
    let reply = post(&format!("{}/v1/rerank", process.url), &question);
    assert_eq!((reply.status, indices(&reply.body)), (200, vec![1, 0]));
    let kill = Command::new("kill").arg(process.child.id().to_string()).status();
    assert!(kill.expect("kill runs").success());
    assert!(process.child.wait().expect("the process exits").success());
    let mut rest = String::new();
    process.child.stdout.take().expect("a pipe").read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "stopped; all requests are answered\n");
}

/// Returns the Python interpreter that has Cohere's client. Without it, prints that the test is skipped and
/// returns `None`, or panics if `ERANK_REQUIRE_COHERE` is set.
fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/.cache/cohere/bin/python");
    if python.exists() {
        return Some(python);
    }
    let missing = "Cohere's client is missing; examples/serve/fetch_cohere.sh installs it";
    assert!(std::env::var_os("ERANK_REQUIRE_COHERE").is_none(), "{missing}");
    eprintln!("\n*** SKIPPED: {missing} ***\n");
    None
}

#[test]
fn rerank_satisfies_the_client_of_cohere() {
    let Some(python) = python() else { return };
    let server = tiny();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("serve/cohere_client.py");
    let url = format!("http://{}", server.address);
    let output = Command::new(python).arg(script).arg(url).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "v1, v2, asynchronous, errors: as expected\n"
    );
}
