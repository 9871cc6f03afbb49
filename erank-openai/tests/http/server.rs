//! A scriptable HTTP server. It responds, hangs, closes the connection, or sends raw bytes.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// A request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    /// The body as JSON, or null.
    pub(crate) body: Value,
}

impl Request {
    /// Returns the prompt of a completion.
    pub(crate) fn prompt(&self) -> &str {
        self.body["prompt"].as_str().unwrap_or_default()
    }
}

/// The server's reaction to a request.
#[derive(Debug, Clone)]
pub(crate) enum Reaction {
    /// Sends a response with this status, `Retry-After`, and body.
    Reply { status: u16, retry_after: Option<String>, body: String },
    /// Sends these bytes, and closes the connection.
    Raw(String),
    /// Waits before another reaction.
    After(Duration, Box<Reaction>),
    /// Sends nothing until the client closes the connection or the server is dropped.
    Hang,
}

impl Reaction {
    /// Returns a response with status 200.
    pub(crate) fn ok(body: Value) -> Self {
        Self::status(200, body)
    }

    /// Returns a response with this status.
    pub(crate) fn status(status: u16, body: Value) -> Self {
        Self::Reply { status, retry_after: None, body: body.to_string() }
    }
}

type Handler = dyn Fn(&Request) -> Reaction + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    requests: Mutex<Vec<Request>>,
    open: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    stopped: AtomicBool,
}

/// A server on its own port. Dropping it closes all connections.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    /// Starts a server on a free port.
    pub(crate) fn start(handler: impl Fn(&Request) -> Reaction + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), handler)
    }

    /// Starts a server at this address.
    pub(crate) fn start_at(
        address: SocketAddr,
        handler: impl Fn(&Request) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            requests: Mutex::default(),
            open: Mutex::default(),
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            max_in_flight: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                if let Ok(clone) = stream.try_clone() {
                    accepting.open.lock().expect("open").push(clone);
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || serve(&shared, stream));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns all requests so far, in order of arrival.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().expect("requests").clone()
    }

    /// Returns all requests for completions so far.
    pub(crate) fn completions(&self) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.path == "/v1/completions");
        requests
    }

    /// Returns the number of connections that clients have opened.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Returns the maximum number of concurrent requests so far.
    pub(crate) fn max_in_flight(&self) -> usize {
        self.shared.max_in_flight.load(Ordering::SeqCst)
    }

    /// Returns whether no request is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.in_flight.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().expect("open").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        // Wakes the listener, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

/// Handles the requests of one connection.
fn serve(shared: &Shared, mut stream: TcpStream) {
    let Ok(clone) = stream.try_clone() else { return };
    let mut reader = BufReader::new(clone);
    while let Some(request) = read(&mut reader) {
        shared.requests.lock().expect("requests").push(request.clone());
        let now = shared.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        shared.max_in_flight.fetch_max(now, Ordering::SeqCst);
        let reaction = (shared.handler)(&request);
        let is_open = react(shared, &mut stream, reaction);
        if !is_open {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

/// Carries out a reaction. Returns whether the connection stays open.
///
/// The request counts as ended before the client receives the response, so that it is never counted
/// together with the client's next request.
fn react(shared: &Shared, stream: &mut TcpStream, reaction: Reaction) -> bool {
    match reaction {
        Reaction::Reply { status, retry_after, body } => {
            let retry_after =
                retry_after.map_or(String::new(), |s| format!("Retry-After: {s}\r\n"));
            let head = format!(
                "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\n{retry_after}Content-Length: {}\r\n\r\n",
                body.len()
            );
            shared.in_flight.fetch_sub(1, Ordering::SeqCst);
            stream.write_all((head + &body).as_bytes()).is_ok()
        }
        Reaction::Raw(bytes) => {
            shared.in_flight.fetch_sub(1, Ordering::SeqCst);
            let _ = stream.write_all(bytes.as_bytes());
            false
        }
        Reaction::After(pause, reaction) => {
            thread::sleep(pause);
            react(shared, stream, *reaction)
        }
        Reaction::Hang => {
            // A read ends when the client closes the connection.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(10)));
            let is_waiting =
                |error: &Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            let mut reads = std::iter::repeat_with(|| stream.read(&mut [0]));
            reads.find(|read| {
                shared.stopped.load(Ordering::SeqCst) || !read.as_ref().is_err_and(is_waiting)
            });
            shared.in_flight.fetch_sub(1, Ordering::SeqCst);
            false
        }
    }
}

/// Reads one request. Returns `None` at the end of the stream, or for anything but HTTP.
pub(crate) fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        path,
        authorization,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    })
}
