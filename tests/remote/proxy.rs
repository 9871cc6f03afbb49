//! What stands between the backend and a real server: it passes everything on, unless a test has it do
//! otherwise, and keeps what was said.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::server::{Reaction, Request, Server};

/// A request with its reply.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    pub(crate) request: Request,
    pub(crate) reply: Value,
}

pub(crate) struct Proxy {
    server: Server,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

impl Proxy {
    /// Before the server at this port. `meddle` makes something else of the reply's status and body, by
    /// the number of the request.
    pub(crate) fn start(
        port: u16,
        meddle: impl Fn(usize, u16, String) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        let exchanges = Arc::<Mutex<Vec<Exchange>>>::default();
        let kept = Arc::clone(&exchanges);
        let server = Server::start(move |request| {
            let Some((status, body)) = forward(port, request) else {
                return Reaction::Raw(String::new());
            };
            let reply = serde_json::from_str(&body).unwrap_or_default();
            let mut kept = kept.lock().expect("no panic");
            let number = kept.len();
            kept.push(Exchange { request: request.clone(), reply });
            drop(kept);
            meddle(number, status, body)
        });
        Self { server, exchanges }
    }

    /// Passes everything on.
    pub(crate) fn recording(port: u16) -> Self {
        Self::start(port, |_, status, body| Reaction::Reply { status, retry_after: None, body })
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// All that were passed on so far.
    pub(crate) fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().expect("no panic").clone()
    }
}

/// The reply's status and body; `None` if the server is gone.
fn forward(port: u16, request: &Request) -> Option<(u16, String)> {
    let (method, body) = match &request.body {
        Value::Null => ("GET", String::new()),
        body => ("POST", body.to_string()),
    };
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(
        stream,
        "{method} {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        request.path,
        body.len()
    )
    .ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
