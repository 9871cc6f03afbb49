//! A server on a thread of the test, its clients, and its backends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use erank_core::testing::{ScriptedBackend, answered};
use erank_core::{
    AnswerDistribution, BackendError, Completion, DocumentError, Job, ScoringBackend, Sink,
};
use erank_serve::{ServerSettings, Service, Settings, serve};
use serde_json::Value;

pub(crate) const A_MINUTE: Duration = Duration::from_secs(60);

/// A service on a thread of this process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) service: Service,
    shutdown: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<usize>>,
}

impl Server {
    pub(crate) fn start(backend: impl ScoringBackend + 'static, settings: Settings) -> Self {
        Self::with_limits(backend, settings, ServerSettings::default())
    }

    pub(crate) fn with_limits(
        backend: impl ScoringBackend + 'static,
        settings: Settings,
        limits: ServerSettings,
    ) -> Self {
        let service = Service::new(backend, settings);
        let router = service.router();
        let (address, addresses) = channel();
        let (shutdown, requested) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let thread = thread::spawn(move || {
            let runtime = runtime.expect("a runtime");
            let left = runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
                address.send(listener.local_addr().expect("one")).expect("the test waits");
                let requested = async { requested.await.unwrap_or(()) };
                serve(listener, router, limits, requested).await.expect("the service runs")
            });
            runtime.shutdown_background();
            left
        });
        let address = addresses.recv_timeout(A_MINUTE).expect("the service listens");
        Self { address, service, shutdown: Some(shutdown), thread: Some(thread) }
    }

    pub(crate) fn post(&self, path: &str, body: impl ToString) -> Reply {
        post(&format!("http://{}{path}", self.address), &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], "")
    }

    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        request(method, &format!("http://{}{path}", self.address), headers, body)
    }

    /// Opens a connection and writes these bytes.
    pub(crate) fn raw(&self, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).expect("the service listens");
        stream.set_read_timeout(Some(A_MINUTE)).expect("a time limit");
        stream.write_all(bytes.as_bytes()).expect("the service reads");
        stream
    }

    /// Begins the shutdown.
    pub(crate) fn shut_down(&mut self) {
        let _ = self.shutdown.take().map(|shutdown| shutdown.send(()));
    }

    /// Waits for the end of the service. Returns the number of connections closed amid a request.
    pub(crate) fn join(&mut self) -> usize {
        self.thread.take().expect("not yet joined").join().expect("no panic")
    }
}

/// Reads until the other side closes the connection or fails.
pub(crate) fn read_to_end(mut stream: &TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }
}

pub(crate) fn post(url: &str, body: &str) -> Reply {
    request("POST", url, &[("content-type", "application/json")], body)
}

fn request(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let agent = config.allow_non_standard_methods(true).build().new_agent();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = body.as_bytes().to_vec();
    let mut response = agent.run(request.body(body).expect("a request")).expect("a reply");
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()));
    let headers = headers.collect();
    let body = response.body_mut().read_to_string().expect("text");
    Reply {
        status: response.status().as_u16(),
        headers,
        body: serde_json::from_str(&body).unwrap_or(Value::String(body)),
    }
}

pub(crate) fn indices(body: &Value) -> Vec<u64> {
    let results = body["results"].as_array().expect("results").iter();
    results.map(|result| result["index"].as_u64().expect("an index")).collect()
}

/// Returns the names and the data of server-sent events.
pub(crate) fn events(text: &str) -> Vec<(String, Value)> {
    let events = text.split("\n\n").filter(|event| event.starts_with("event: "));
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').expect("two lines");
        let data = data.strip_prefix("data: ").expect("data");
        (name["event: ".len()..].to_owned(), serde_json::from_str(data).expect("JSON"))
    };
    events.map(event).collect()
}

/// Answers with the number at the beginning of a document. Its tokens are words.
pub(crate) struct Echo;

impl ScoringBackend for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        for (index, document) in job.documents.iter().enumerate() {
            if job.cancellation.is_cancelled() {
                sink.completed(index, Err(DocumentError::Cancelled));
                continue;
            }
            match *document {
                "panic" => panic!("on purpose"),
                "unavailable" => return Err(BackendError::Unavailable("secret".into())),
                _ => {}
            }
            if document.starts_with("broken") {
                sink.completed(index, Err(DocumentError::Backend("on purpose".into())));
                continue;
            }
            let number: String = document.chars().take_while(char::is_ascii_digit).collect();
            for piece in ["<think>", "it says ", &number, "</think>\n\n<answer>"] {
                sink.text_generated(index, 0, piece);
            }
            let mut completion =
                Completion::new(format!("<think>it says {number}</think>\n\n<answer>"));
            completion.push(&number, 0.0);
            completion.push("</answer>", 0.0);
            let value: usize = number.parse().expect("a number");
            let log_probs = (0..=10).map(|i| if i == value { 0.0 } else { f64::NEG_INFINITY });
            completion.answer_distribution =
                Some(AnswerDistribution::new(log_probs).expect("valid"));
            sink.completed(index, Ok(completion));
        }
        Ok(())
    }

    fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, BackendError> {
        ScriptedBackend::texts([""]).token_ends(text, max_tokens)
    }
}

/// Answers with "yes" or "no", as the document says, with a probability of 3/4.
pub(crate) struct YesOrNo;

impl ScoringBackend for YesOrNo {
    fn name(&self) -> &str {
        "yes-or-no"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        for (index, document) in job.documents.iter().enumerate() {
            let labels = job.prompt.answers().answers();
            let log_prob =
                |(label, _)| if label == *document { 0.75_f64.ln() } else { 0.25_f64.ln() };
            let mut completion = Completion::new(*document);
            completion.answer_distribution =
                Some(AnswerDistribution::new(labels.map(log_prob)).expect("valid"));
            sink.completed(index, Ok(completion));
        }
        Ok(())
    }
}

/// A backend that waits until its [`Keeper`] opens it, and then answers 7 for every document.
pub(crate) struct Gate {
    started: Sender<()>,
    cancelled: Sender<()>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

/// Controls and watches a [`Gate`].
pub(crate) struct Keeper {
    pub(crate) started: Receiver<()>,
    pub(crate) cancelled: Receiver<()>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

pub(crate) fn gate() -> (Gate, Keeper) {
    let ((send_started, started), (send_cancelled, cancelled)) = (channel(), channel());
    let open = Arc::new((Mutex::new(false), Condvar::new()));
    let gate = Gate { started: send_started, cancelled: send_cancelled, open: Arc::clone(&open) };
    (gate, Keeper { started, cancelled, open })
}

impl Keeper {
    pub(crate) fn open(&self) {
        *self.open.0.lock().expect("no panic") = true;
        self.open.1.notify_all();
    }
}

impl ScoringBackend for Gate {
    fn name(&self) -> &str {
        "gate"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let _ = self.started.send(());
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
            let _ = self.cancelled.send(());
        }
        Ok(())
    }
}

pub(crate) fn one_at_a_time() -> Settings {
    let mut settings = Settings::default();
    (settings.max_running, settings.max_waiting) = (1, 1);
    settings
}
