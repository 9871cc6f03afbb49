//! Mixed traffic of the library and of the service in one process: rankings that are compared with those at the start,
//! cancelled and abandoned ones, unusable and long documents. The resident memory must stay flat.
//!
//! `ERANK_SOAK_SECONDS` is the duration, 4 by default. The figures of docs/security.md come from
//!
//! ```sh
//! ERANK_SOAK_SECONDS=3600 cargo test --release -p erank-tests --test soak -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use erank_candle::{CandleBackend, CandleSettings, Checkpoint};
use erank_core::{CancellationToken, Document, DocumentError, Request, Reranker, ScoringOptions};
use erank_serve::{ServerSettings, Service, Settings, serve};
use erank_tests::local::{DOCUMENTS, QUERY};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::{Value, json};

const WORKERS: u64 = 4;

/// The memory and the kinds of traffic are checked after at least this duration. Before, the allocator's arenas still
/// grow, and chance may leave a kind out.
const CHECKED_DURATION: Duration = Duration::from_secs(1200);

/// The score of each document, by index.
type Scores = BTreeMap<usize, f64>;

/// The backend's KV cache is full after a few requests.
fn backend() -> CandleBackend {
    let mut settings = CandleSettings::default();
    settings.kv_cache_memory_bytes = Some(16 << 20);
    CandleBackend::load(&Checkpoint::tiny(), &settings).expect("the bundled model")
}

/// The state that all workers share.
struct Soak {
    reranker: Reranker<CandleBackend>,
    service: SocketAddr,
    expected: Scores,
    /// The scores of the service, from 0 to 1.
    relevance_scores: Scores,
    /// The number of times that each kind of traffic ended as it should.
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Soak {
    /// Sends traffic of one kind after another until the end.
    fn work(&self, worker: u64, end: Instant) {
        let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[worker as u8; 32]);
        while Instant::now() < end {
            let kind = match random.next_u32() % 20 {
                0..6 => self.rank(),
                6..9 => self.rank_with_cancellation(Duration::from_micros(u64::from(
                    random.next_u32() % 40_000,
                ))),
                9..10 => self.rank_long_document(random.next_u32()),
                10..15 => self.send(),
                15..17 => self.send_unusable_documents(),
                17..19 => self.leave(random.next_u32() as usize % 4000),
                _ => self.send_invalid_request(),
            };
            *self.counts.lock().expect("no panic").entry(kind).or_default() += 1;
        }
    }

    fn rank(&self) -> &'static str {
        let ranking = self.reranker.rerank(&Request::new(QUERY, DOCUMENTS)).expect("a ranking");
        assert!(ranking.unscored.is_empty());
        let scores = ranking.documents.iter().map(|document| (document.index, document.score));
        assert_eq!(scores.collect::<Scores>(), self.expected);
        "library: ranked"
    }

    fn rank_with_cancellation(&self, time: Duration) -> &'static str {
        let token = CancellationToken::with_deadline(Instant::now() + time);
        let request = Request::new(QUERY, DOCUMENTS);
        let ranking = self.reranker.rerank_with_cancellation(&request, &token).expect("a ranking");
        assert_eq!(ranking.documents.len() + ranking.unscored.len(), DOCUMENTS.len());
        for document in &ranking.documents {
            assert_eq!(document.score, self.expected[&document.index]);
        }
        for failure in &ranking.unscored {
            assert!(matches!(failure.error, DocumentError::Cancelled), "{failure:?}");
        }
        "library: cancelled"
    }

    fn rank_long_document(&self, number: u32) -> &'static str {
        let long = format!("engine {number} ").repeat(2000);
        let documents = [Document::new(DOCUMENTS[0]), Document::new(&long)];
        let ranking = self.reranker.rerank(&Request::new(QUERY, documents)).expect("a ranking");
        assert!(ranking.unscored.is_empty(), "{:?}", ranking.unscored);
        let long = ranking.documents.iter().find(|document| document.index == 1).expect("scored");
        assert!(long.truncated, "{long:?}");
        let short = ranking.documents.iter().find(|document| document.index == 0).expect("scored");
        assert_eq!(short.score, self.expected[&0]);
        "library: long document"
    }

    fn send(&self) -> &'static str {
        let reply = self.post(&json!({"query": QUERY, "documents": DOCUMENTS}));
        assert_eq!(scores(&reply), self.relevance_scores);
        "service: ranked"
    }

    fn send_unusable_documents(&self) -> &'static str {
        let mut documents = DOCUMENTS.map(Value::from).to_vec();
        documents.extend([Value::Null, json!(""), json!({"title": 7})]);
        let reply = self.post(&json!({"query": QUERY, "documents": documents, "unscored": "omit"}));
        assert_eq!(scores(&reply), self.relevance_scores);
        assert_eq!(reply["unscored"].as_array().expect("a list").len(), 3, "{reply}");
        "service: unusable documents"
    }

    /// Reads some bytes of a stream, and closes the connection.
    fn leave(&self, bytes: usize) -> &'static str {
        let body = json!({"query": QUERY, "documents": DOCUMENTS, "stream": true});
        let stream = self.open(&body.to_string());
        let read = stream.take(bytes as u64).read_to_end(&mut Vec::new());
        assert!(read.is_ok_and(|count| count > 0 || bytes == 0));
        "service: left"
    }

    fn send_invalid_request(&self) -> &'static str {
        let reply = read(self.open(r#"{"query": 5, "documents": ["#));
        assert!(reply.starts_with("HTTP/1.1 4"), "{reply}");
        "service: invalid request"
    }

    /// Sends a request and returns the reply.
    fn post(&self, body: &Value) -> Value {
        let reply = read(self.open(&body.to_string()));
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{reply}");
        // The body may be in chunks, and begin with spaces that tell whether the client is still there.
        let start = body.find('{').expect("an object");
        let end = body.rfind('}').expect("an object");
        serde_json::from_str(&body[start..=end]).expect("JSON")
    }

    fn open(&self, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.service).expect("the service listens");
        let head = format!(
            "POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).expect("the service reads");
        stream
    }
}

fn read(mut stream: TcpStream) -> String {
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    reply
}

/// Returns the scores of a reply.
fn scores(reply: &Value) -> Scores {
    let results = reply["results"].as_array().expect("results").iter();
    let score = |result: &Value| {
        let index = result["index"].as_u64().expect("an index");
        (index as usize, result["relevance_score"].as_f64().expect("a score"))
    };
    results.map(score).collect()
}

/// Returns the resident memory in MiB, if the system tells.
fn resident_memory() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// Starts a service on a thread, and returns its address. It runs until the process ends.
fn start_service() -> SocketAddr {
    let (sender, address) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            sender.send(listener.local_addr().expect("an address")).expect("the test waits");
            let router = Service::new(backend(), Settings::default()).router();
            let limits = ServerSettings::default();
            serve(listener, router, limits, std::future::pending()).await.expect("it serves");
        });
    });
    address.recv().expect("the service listens")
}

#[test]
fn mixed_traffic_loses_nothing_and_keeps_scores_and_memory() {
    let seconds = std::env::var("ERANK_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let duration = Duration::from_secs(seconds.unwrap_or(4));
    let mut options = ScoringOptions::default();
    options.max_document_tokens = 512;
    let reranker = Reranker::builder(backend()).options(options).build().expect("valid");
    let ranking = reranker.rerank(&Request::new(QUERY, DOCUMENTS)).expect("a ranking");
    let expected = ranking.documents.iter().map(|document| (document.index, document.score));
    let expected: Scores = expected.collect();
    assert_eq!(expected.len(), DOCUMENTS.len());
    let service = start_service();
    let relevance_scores = expected.iter().map(|(index, score)| (*index, score / 10.0)).collect();
    let soak = Soak { reranker, service, expected, relevance_scores, counts: Mutex::default() };

    let begin = Instant::now();
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let soak = &soak;
            scope.spawn(move || soak.work(worker, begin + duration));
        }
        while begin.elapsed() < duration {
            std::thread::sleep(duration / 120);
            samples.extend(resident_memory());
        }
    });
    let counts = soak.counts.into_inner().expect("no panic");
    assert!(duration < CHECKED_DURATION || counts.len() == 7, "{counts:?}");
    for (kind, count) in counts {
        println!("{kind}: {count}");
    }

    // A third of the time is left for caches and arenas to fill.
    let samples = &samples[samples.len() / 3..];
    let (first, last) = samples.split_at(samples.len() / 2);
    let mean = |samples: &[f64]| samples.iter().sum::<f64>() / samples.len() as f64;
    if !first.is_empty() {
        let (first, last) = (mean(first), mean(last));
        println!("resident memory: {first:.1} MiB in the second third, {last:.1} MiB in the last");
        assert!(duration < CHECKED_DURATION || last < 1.01 * first, "the memory grows");
    }
}
