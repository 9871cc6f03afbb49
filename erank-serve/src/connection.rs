//! A connection: its bytes with time limits, the time of a request's first byte, and whether the client has left.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// The time between two looks at whether the client has left.
const LOOK: Duration = Duration::from_millis(250);
/// The bytes a second that a client must read on average while writes wait.
const MIN_RATE: f64 = 65_536.0;

/// A connection that the loop over connections, and the request that runs on it, share.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// The time of the first byte of the request that is being read or computed.
    first_byte: Mutex<Option<Instant>>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, first_byte: Mutex::new(None) }
    }

    /// Returns the time of the first byte of the present request.
    pub(crate) fn first_byte(&self) -> Instant {
        *self.lock().get_or_insert_with(Instant::now)
    }

    /// Waits for the first byte of the next request.
    pub(crate) fn end_request(&self) {
        *self.lock() = None;
    }

    /// Resolves once the client has closed its side of the connection, or all of it.
    ///
    /// TCP does not tell the two apart. A write does, because a client that is gone refuses it. hyper alone notices
    /// neither while unread bytes wait.
    pub(crate) async fn client_closed(&self) {
        loop {
            let ready = self.stream.ready(Interest::READABLE).now_or_never();
            if ready.is_some_and(|ready| ready.map_or(true, |ready| ready.is_read_closed())) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.first_byte.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a connection. A write fails if the client reads nothing for some time, or reads slowly for long.
pub(crate) struct ConnectionIo {
    connection: Arc<Connection>,
    patience: Patience,
    /// The beginning of the write that waits, and its end.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl ConnectionIo {
    pub(crate) fn new(connection: Arc<Connection>, write_time: Duration) -> Self {
        let patience = Patience { most: write_time, left: write_time };
        Self { connection, patience, waiting: None }
    }
}

/// The time that writes may wait for the client. Waiting reduces it, and written bytes restore it.
#[derive(Debug)]
struct Patience {
    most: Duration,
    left: Duration,
}

impl Patience {
    fn written(&mut self, waited: Duration, bytes: usize) {
        let earned = Duration::from_secs_f64(bytes as f64 / MIN_RATE);
        self.left = self.left.saturating_sub(waited).saturating_add(earned).min(self.most);
    }
}

impl AsyncRead for ConnectionIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let connection = &self.connection;
        loop {
            ready!(connection.stream.poll_read_ready(cx))?;
            match connection.stream.try_read(buf.initialize_unfilled()) {
                Ok(count) => {
                    if count > 0 {
                        connection.lock().get_or_insert_with(Instant::now);
                    }
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ConnectionIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.connection.stream.poll_write_ready(cx)?.is_pending() {
                let left = self.patience.left;
                let (_, end) = self
                    .waiting
                    .get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
                ready!(end.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            match self.connection.stream.try_write(bytes) {
                Ok(count) => {
                    let waited = self.waiting.take().map(|(begin, _)| begin.elapsed());
                    self.patience.written(waited.unwrap_or_default(), count);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The socket is closed when its last owner is dropped, which is at the end of the connection.
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_for_clients_that_read_slowly() {
        let (second, rate) = (Duration::from_secs(1), MIN_RATE as usize);
        let most = Duration::from_secs(30);
        let left_after = |bytes: usize| {
            let mut patience = Patience { most, left: most };
            (0..100).for_each(|_| patience.written(second, bytes));
            patience.left
        };
        // Less time is left than the next wait of a second takes.
        assert!(left_after(1) < second && left_after(rate / 2) < second);
        assert_eq!(left_after(rate), most);
        assert_eq!(left_after(rate * 10), most);
    }
}
