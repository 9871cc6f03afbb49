//! Slow, greedy and vanishing clients.

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{A_MINUTE, Echo, Server, gate, one_at_a_time, read_to_end};
use erank_serve::{ServerSettings, Settings};
use serde_json::json;

const QUESTION: &str = r#"{"query": "q", "documents": ["7 a"]}"#;
const SHORT: Duration = Duration::from_millis(200);

fn head(length: usize) -> String {
    format!(
        "POST /v1/rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[test]
fn slow_headers_end_the_connection() {
    let mut limits = ServerSettings::default();
    limits.header_time = SHORT;
    let server = Server::with_limits(Echo, Settings::default(), limits);
    let mut slow = server.raw("POST /v1/rerank HTTP/1.1\r\n");
    let begin = Instant::now();
    // A byte now and then does not keep the connection.
    while slow.write_all(b"x").is_ok() && begin.elapsed() < A_MINUTE {
        thread::sleep(Duration::from_millis(20));
    }
    assert!(begin.elapsed() < A_MINUTE);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn slow_bodies_get_408() {
    let mut settings = Settings::default();
    settings.body_time = SHORT;
    let server = Server::start(Echo, settings);
    let slow = server.raw(&format!("{}{{", head(1000)));
    let reply = read_to_end(&slow);
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
}

#[test]
fn bodies_in_flight_are_bounded() {
    let mut settings = Settings::default();
    (settings.max_body_bytes, settings.max_total_body_bytes) = (1000, 2500);
    let server = Server::start(Echo, settings);
    let part = "x".repeat(900);
    let greedy: Vec<_> = (0..4).map(|_| server.raw(&format!("{}{part}", head(1000)))).collect();
    // The first two bodies take the memory; each further one is refused while it arrives.
    let mut refused = 0;
    let begin = Instant::now();
    while refused < 2 && begin.elapsed() < A_MINUTE {
        refused = greedy
            .iter()
            .filter(|stream| {
                stream.set_nonblocking(true).expect("a socket");
                let mut start = [0; 12];
                let is_whole = stream.peek(&mut start).is_ok_and(|count| count == start.len());
                is_whole && &start == b"HTTP/1.1 503"
            })
            .count();
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(refused, 2);
    drop(greedy);
    // The memory is free again once the clients have left.
    while server.post("/v1/rerank", QUESTION).status != 200 {
        assert!(begin.elapsed() < A_MINUTE);
    }
}

#[test]
fn replies_beyond_the_memory_get_503() {
    let long = "a".repeat(40_000);
    let question = |text: &str, stream: bool| json!({"query": "q", "documents": [format!("7 {text}")], "return_documents": true, "stream": stream});
    // The reply is longer than the body, and the event of a document has a thousand bytes.
    for (bytes, text) in [(question(&long, false).to_string().len(), long.as_str()), (300, "")] {
        let mut settings = Settings::default();
        (settings.max_total_body_bytes, settings.body_time) = (bytes, SHORT);
        let server = Server::start(Echo, settings);
        let reply = server.post("/v1/rerank", question(text, false));
        let is_refused = (reply.status, reply.header("retry-after")) == (503, Some("1"));
        assert_eq!(is_refused, !text.is_empty(), "{reply:?}");
        let events = server.post("/v1/rerank", question(text, true)).body;
        let events = crate::common::events(events.as_str().expect("text"));
        let (name, data) = events.last().expect("one");
        assert_eq!((name.as_str(), &data["error"]["code"]), ("error", &json!(503)));
        // The memory is free again, and a short reply needs none.
        assert_eq!(server.post("/v1/rerank", QUESTION).status, 200);
    }
}

#[test]
fn connections_are_bounded() {
    let mut limits = ServerSettings::default();
    limits.max_connections = 2;
    let server = Server::with_limits(Echo, Settings::default(), limits);
    let first = server.raw("GET /health HTTP/1.1\r\n");
    let _second = server.raw("GET /health HTTP/1.1\r\n");
    let third = server.raw("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    third.set_read_timeout(Some(SHORT)).expect("a time limit");
    assert_eq!(read_to_end(&third), "");
    drop(first);
    third.set_read_timeout(Some(A_MINUTE)).expect("a time limit");
    assert!(read_to_end(&third).starts_with("HTTP/1.1 200 "));
}

#[test]
fn full_queue_is_told_before_the_body() {
    let (gate, keeper) = gate();
    let server = Server::start(gate, one_at_a_time());
    let running = server.raw(&format!("{}{QUESTION}", head(QUESTION.len())));
    keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
    let waiting = server.raw(&format!("{}{QUESTION}", head(QUESTION.len())));
    // The body of this request never comes. Until the second request waits, its reply is not there.
    let begin = Instant::now();
    loop {
        let third = server.raw(&head(1_000_000));
        third.set_read_timeout(Some(SHORT)).expect("a time limit");
        let mut start = [0; 12];
        if third.peek(&mut start).is_ok_and(|count| count == 12) {
            assert_eq!(&start, b"HTTP/1.1 429");
            break;
        }
        assert!(begin.elapsed() < A_MINUTE);
    }
    keeper.open();
    drop((running, waiting));
}

#[test]
fn client_that_leaves_cancels_its_request() {
    for extra in ["", "G"] {
        let (gate, keeper) = gate();
        let server = Server::start(gate, one_at_a_time());
        let client = server.raw(&format!("{}{QUESTION}{extra}", head(QUESTION.len())));
        keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
        assert!(keeper.cancelled.try_recv().is_err());
        drop(client);
        // The gate stays closed, so only cancellation ends the request.
        keeper.cancelled.recv_timeout(A_MINUTE).expect("the request is cancelled");
    }
}

#[test]
fn client_that_leaves_cancels_its_stream() {
    let (gate, keeper) = gate();
    let server = Server::start(gate, one_at_a_time());
    let question = r#"{"query": "q", "documents": ["7 a"], "stream": true}"#;
    let client = server.raw(&format!("{}{question}", head(question.len())));
    keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
    drop(client);
    keeper.cancelled.recv_timeout(A_MINUTE).expect("the request is cancelled");
}

#[test]
fn client_that_closes_its_side_gets_the_reply() {
    let (gate, keeper) = gate();
    let server = Server::start(gate, one_at_a_time());
    let client = server.raw(&format!("{}{QUESTION}", head(QUESTION.len())));
    keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
    client.shutdown(Shutdown::Write).expect("a socket");
    thread::sleep(SHORT);
    keeper.open();
    let reply = read_to_end(&client);
    assert!(
        reply.starts_with("HTTP/1.1 200 ") && reply.contains("\"relevance_score\":0.7"),
        "{reply}"
    );
}

#[test]
fn client_that_closes_its_side_gets_the_status_of_an_error() {
    let server = Server::start(Echo, Settings::default());
    let question = r#"{"query": "q", "documents": ["7 a", ""], "unscored": "error"}"#;
    let client = server.raw(&format!("{}{question}", head(question.len())));
    client.shutdown(Shutdown::Write).expect("a socket");
    let reply = read_to_end(&client);
    assert!(reply.starts_with("HTTP/1.1 422 "), "{reply}");
}

#[test]
fn client_that_leaves_is_counted_as_499() {
    let (gate, keeper) = gate();
    let server = Server::start(gate, one_at_a_time());
    let client = server.raw(&format!("{}{QUESTION}", head(QUESTION.len())));
    keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
    drop(client);
    let begin = Instant::now();
    loop {
        let metrics = server.get("/metrics").body;
        let metrics = metrics.as_str().expect("text");
        assert!(!metrics.contains("route=\"/v1/rerank\",status=\"200\""), "{metrics}");
        if metrics.contains("route=\"/v1/rerank\",status=\"499\"} 1") {
            break;
        }
        assert!(begin.elapsed() < A_MINUTE, "{metrics}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Some clients read nothing before they have sent the whole body.
#[test]
fn refusals_reach_clients_that_send_their_body_first() {
    let (gate, keeper) = gate();
    let mut settings = one_at_a_time();
    settings.allowed_hosts = vec!["x".into()];
    let server = Server::start(gate, settings);
    let post = |path: &str, more: &str, length: usize| {
        let head = format!("POST {path} HTTP/1.1\r\n{more}\r\ncontent-length: {length}\r\n\r\n");
        let mut stream = server.raw(&head);
        let part = [b' '; 1 << 16];
        for _ in 0..length.div_ceil(part.len()) {
            stream.write_all(&part).expect("the service reads");
        }
        let mut reply = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut reply).expect("a reply");
        String::from_utf8_lossy(&reply).into_owned()
    };
    let json = "host: x\r\ncontent-type: application/json";
    let size = 6 << 20;
    for (path, headers, length, status) in [
        ("/v3/rerank", json, size, "404"),
        ("/health", json, size, "405"),
        ("/rerank", "host: y", size, "403"),
        ("/rerank", "host: x", size, "415"),
        ("/rerank", json, 3 * size, "413"),
        ("/rerank", json, size, "400"),
    ] {
        assert_eq!(post(path, headers, length), format!("HTTP/1.1 {status}"));
    }
    let _running = server.raw(&format!("{}{QUESTION}", head(QUESTION.len())));
    keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
    let _waiting = server.raw(&format!("{}{QUESTION}", head(QUESTION.len())));
    while !server
        .request("GET", "/metrics", &[("host", "x")], "")
        .body
        .to_string()
        .contains("waiting 1")
    {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(post("/rerank", json, size), "HTTP/1.1 429");
    keeper.open();
}

#[test]
fn clock_begins_with_the_first_byte() {
    let server = Server::start(Echo, Settings::default());
    let question = r#"{"query": "q", "documents": ["7 a"], "timeout": 0.2}"#;
    let mut slow = server.raw("POST /v1/rerank HTTP/1.1\r\nconnection: close\r\n");
    thread::sleep(Duration::from_millis(400));
    let rest = format!(
        "host: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{question}",
        question.len()
    );
    slow.write_all(rest.as_bytes()).expect("the service reads");
    let reply = read_to_end(&slow);
    assert!(reply.contains("\"code\":\"cancelled\""), "{reply}");
}
