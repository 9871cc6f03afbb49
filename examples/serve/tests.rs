//! The service, asked by HTTP clients. What must happen at the same time is arranged by the backend,
//! which goes on when a test lets it; nothing depends on how fast anything is.

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

/// A service in this process, which ends with it.
struct Server {
    address: SocketAddr,
    end: Option<tokio::sync::oneshot::Sender<()>>,
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
        let (address, listens) = channel();
        let (end, ended) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let thread = thread::spawn(move || {
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
                address.send(listener.local_addr().expect("one")).expect("the test waits");
                let ended = async { ended.await.unwrap_or(()) };
                axum::serve(listener, router).with_graceful_shutdown(ended).await.expect("it runs");
            });
        });
        let address = listens.recv_timeout(A_MINUTE).expect("it listens");
        Self { address, end: Some(end), thread: Some(thread) }
    }

    fn post(&self, path: &str, body: impl ToString) -> Reply {
        post(&format!("http://{}{path}", self.address), &body.to_string())
    }

    /// Tells it to end, which it does when all is answered.
    fn end(&mut self) {
        let _ = self.end.take().map(|end| end.send(()));
    }

    fn wait(&mut self) {
        self.thread.take().expect("not yet awaited").join().expect("no panic");
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

/// Answers 7 to a document once its test lets it.
struct Gate {
    begun: Sender<()>,
    stopped: Sender<()>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

/// The test's end of a [`Gate`].
struct Keeper {
    begun: Receiver<()>,
    stopped: Receiver<()>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

fn gate() -> (Gate, Keeper) {
    let ((begun, begins), (stopped, stops)) = (channel(), channel());
    let open = Arc::new((Mutex::new(false), Condvar::new()));
    let gate = Gate { begun, stopped, open: Arc::clone(&open) };
    (gate, Keeper { begun: begins, stopped: stops, open })
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
            _ => self.begun.send(()).expect("a keeper"),
        }
        let mut open = self.open.0.lock().expect("no panic");
        while !*open && !job.cancellation.is_cancelled() {
            // A stop is a flag, so it is looked at now and then.
            open = self.open.1.wait_timeout(open, Duration::from_millis(1)).expect("no panic").0;
        }
        for index in 0..job.documents.len() {
            let stopped = job.cancellation.is_cancelled();
            let outcome =
                if stopped { Err(DocumentError::Cancelled) } else { Ok(answered(7, 1.0)) };
            sink.completed(index, outcome);
        }
        if job.cancellation.is_cancelled() {
            self.stopped.send(()).expect("a keeper");
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
fn it_answers_as_jina_and_cohere_do() {
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
    // No score, and so not among the results, with whatever score.
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

#[test]
fn what_is_wrong_is_named() {
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

/// One request is worked on, one waits, and all others are told to come again.
#[test]
fn a_full_queue_is_429() {
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
        keeper.begun.recv_timeout(A_MINUTE).expect("it is worked on");
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
fn a_client_that_goes_away_stops_its_work() {
    let (gate, keeper) = gate();
    let server = Server::start(gate, one_at_a_time(), Limits::default());
    let body = json!({"query": "q", "documents": ["a"]}).to_string();
    let mut client = TcpStream::connect(server.address).expect("it listens");
    write!(
        client,
        "POST /v1/rerank HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it reads");
    keeper.begun.recv_timeout(A_MINUTE).expect("it is worked on");
    assert!(keeper.stopped.try_recv().is_err());
    drop(client);
    // Nobody opened the gate.
    keeper.stopped.recv_timeout(A_MINUTE).expect("it stops");
}

#[test]
fn asked_to_end_it_finishes_what_is_under_way() {
    let (gate, keeper) = gate();
    let mut server = Server::start(gate, one_at_a_time(), Limits::default());
    let url = format!("http://{}/v1/rerank", server.address);
    let body = json!({"query": "q", "documents": ["a"]}).to_string();
    let client = thread::spawn(move || post(&url, &body));
    keeper.begun.recv_timeout(A_MINUTE).expect("it is worked on");
    server.end();
    // New clients are turned away from when it has heard of it.
    while TcpStream::connect(server.address).is_ok() {
        thread::yield_now();
    }
    keeper.open();
    assert_eq!(client.join().expect("no panic").status, 200);
    server.wait();
}

#[test]
fn what_was_not_done_in_time_is_told() {
    let (gate, _keeper) = gate();
    let limits = Limits { time: Duration::ZERO, ..Limits::default() };
    let server = Server::start(gate, AsyncSettings::default(), limits);
    let reply = server.post("/v1/rerank", json!({"query": "q", "documents": ["a"]}));
    assert_eq!((reply.status, indices(&reply.body).len()), (200, 0));
    assert_eq!(reply.body["unscored"][0]["error"]["code"], "stopped");
}

#[test]
fn a_failing_backend_is_an_error_without_its_secrets() {
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

/// The example as its users start it, in a process of its own.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO"))
            .args(["run", "--quiet", "--locked", "--package", "erank-examples"])
            .args(["--features", "serve", "--example", "serve", "--", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo runs");
        let mut line = String::new();
        let output = BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line);
        output.expect("a line");
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
fn the_process_ends_well_on_sigterm() {
    let mut process = Process::start();
    let question = json!({"query": "honey", "documents": [CAKES, NECTAR]}).to_string();
    let reply = post(&format!("{}/v1/rerank", process.url), &question);
    assert_eq!((reply.status, indices(&reply.body)), (200, vec![1, 0]));
    // On Unix, cargo becomes what it runs.
    let kill = Command::new("kill").arg(process.child.id().to_string()).status();
    assert!(kill.expect("kill runs").success());
    assert!(process.child.wait().expect("it ends").success());
    let mut rest = String::new();
    process.child.stdout.take().expect("a pipe").read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "ended; all that was asked is answered\n");
}

/// The Python that has Cohere's client, or `None`, said loudly; with `ERANK_REQUIRE_COHERE` set that
/// fails.
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
fn coheres_own_client_works() {
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
