//! The loop over connections, with limits of time and number.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower_service::Service as _;

use crate::body::DiscardedBody;
use crate::connection::{Connection, ConnectionIo};

/// The limits of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerSettings {
    /// The number of open connections. Further ones wait until one is closed.
    pub max_connections: usize,
    /// The time in which the headers of a request must arrive. It ends idle connections, too.
    pub header_time: Duration,
    /// The time after which a connection ends whose client reads nothing of a reply. A client that reads on needs
    /// this time at most besides one second for each 64 KiB.
    pub write_time: Duration,
    /// The time that requests have to finish once the service stops.
    pub shutdown_time: Duration,
}

impl Default for ServerSettings {
    /// Returns 1,024 connections, 30 s for headers and for a client to read, and 30 s after the shutdown.
    fn default() -> Self {
        let time = Duration::from_secs(30);
        Self { max_connections: 1024, header_time: time, write_time: time, shutdown_time: time }
    }
}

/// Serves `router` until `shutdown` resolves, and then for at most [`ServerSettings::shutdown_time`].
///
/// Returns the number of connections that were closed amid a request because that time was over. The computations of
/// their requests are cancelled.
///
/// # Errors
/// Returns an error if the listener fails for good. An error of a single connection ends only this connection.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: ServerSettings,
    shutdown: impl Future<Output = ()>,
) -> io::Result<usize> {
    let places =
        Arc::new(Semaphore::new(settings.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            (place, accepted) = accepted => match accepted {
                Ok((stream, _)) => {
                    let (router, stopped) = (router.clone(), stopped.clone());
                    connections.spawn(async move {
                        // Replies are short, and the events of a stream must be sent at once.
                        let _ = stream.set_nodelay(true);
                        let connection = Arc::new(Connection::new(stream));
                        run(connection, router, settings, stopped).await;
                        drop(place);
                    });
                }
                // The client has left already, or the process has no more descriptors for the moment.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            // Frees the results of ended connections.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let _ = stop.send(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(settings.shutdown_time, all).await.is_err() {
        let left = connections.len();
        connections.shutdown().await;
        return Ok(left);
    }
    Ok(0)
}

/// Serves the requests of a connection.
async fn run(
    connection: Arc<Connection>,
    router: Router,
    settings: ServerSettings,
    mut stopped: watch::Receiver<bool>,
) {
    let shared = Arc::clone(&connection);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&shared));
        let (mut router, shared) = (router.clone(), Arc::clone(&shared));
        async move {
            let response =
                router.call(request.map(|body| Body::new(DiscardedBody::new(body)))).await;
            shared.end_request();
            response
        }
    });
    let io = TokioIo::new(ConnectionIo::new(connection, settings.write_time));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_time)
        .max_buf_size(64 << 10)
        // A client may close its side after the request. `Connection::client_closed` finds those that have left.
        .half_close(true)
        .serve_connection(io, service);
    let mut served = std::pin::pin!(served);
    let result = tokio::select! {
        result = &mut served => result,
        () = async { stopped.wait_for(|stopped| *stopped).await.map(drop).unwrap_or(()) } => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}
