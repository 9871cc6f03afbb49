//! A proxy between the backend and a real server. It records every exchange, and can replace responses.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::server::{Reaction, Request, Server};

/// A request with its response.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    pub(crate) request: Request,
    pub(crate) response: Value,
}

/// A running proxy.
pub(crate) struct Proxy {
    server: Server,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

impl Proxy {
    /// Starts a proxy for the server at this port. `react` maps the number of the exchange, and the status
    /// and body of the server's response, to the proxy's reaction.
    pub(crate) fn start(
        port: u16,
        react: impl Fn(usize, u16, String) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        let exchanges = Arc::<Mutex<Vec<Exchange>>>::default();
        let kept = Arc::clone(&exchanges);
        let server = Server::start(move |request| {
            let Some((status, body)) = forward(port, request) else {
                return Reaction::Raw(String::new());
            };
            let response = serde_json::from_str(&body).unwrap_or_default();
            let mut kept = kept.lock().expect("no panic");
            let number = kept.len();
            kept.push(Exchange { request: request.clone(), response });
            drop(kept);
            react(number, status, body)
        });
        Self { server, exchanges }
    }

    /// Starts a proxy that forwards every response unchanged.
    pub(crate) fn recording(port: u16) -> Self {
        Self::start(port, |_, status, body| Reaction::Reply { status, retry_after: None, body })
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Returns all exchanges so far.
    pub(crate) fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().expect("no panic").clone()
    }
}

/// Forwards a request. Returns the status and the body of the response, or `None` if the server is down.
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
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
