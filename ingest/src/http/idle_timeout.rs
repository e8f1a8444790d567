//! Idle timeouts of an HTTP connection.
//!
//! hyper has one timer for two cases. The headers of a request must arrive within 3 s of its first
//! byte, those of the first request within 3 s of the accept. Between requests a connection may be
//! idle for longer than any load balancer keeps it open; otherwise the balancer would send a
//! webhook into a connection that ingest is closing.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// Maximum time to receive the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum time between two requests. Load balancers keep idle connections for 60 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Phase of a connection: even while it waits for a request, odd while a request is answered.
#[derive(Clone, Default)]
pub struct RequestPhase(Arc<AtomicU64>);

impl RequestPhase {
    /// Advances when the headers of a request are read, and when its response is ready.
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed); // written and read by one task
    }

    fn number(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Socket whose reads fail after an idle timeout.
pub struct IdleTimeoutStream {
    socket: TcpStream,
    phase: RequestPhase,
    last_phase: u64,
    idle: bool,
    timer: Pin<Box<Sleep>>,
}

impl IdleTimeoutStream {
    /// Wraps a socket that was just accepted.
    pub fn new(socket: TcpStream, phase: RequestPhase) -> Self {
        let timer = Box::pin(sleep(HEADER_TIMEOUT));
        Self { socket, phase, last_phase: 0, idle: false, timer }
    }

    fn restart_timer(&mut self, idle: bool) {
        self.idle = idle;
        let timeout = if idle { IDLE_TIMEOUT } else { HEADER_TIMEOUT };
        self.timer.as_mut().reset(Instant::now() + timeout);
    }
}

impl AsyncRead for IdleTimeoutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let phase = self.phase.number();
        let waits_for_request = phase.is_multiple_of(2);
        if phase != self.last_phase && waits_for_request {
            self.last_phase = phase;
            self.restart_timer(true);
        }
        match Pin::new(&mut self.socket).poll_read(cx, buf) {
            Poll::Ready(read) => {
                if self.idle {
                    self.restart_timer(false); // the first bytes of the next request
                }
                Poll::Ready(read)
            }
            // The handler limits the time of a request, its body included.
            Poll::Pending if !waits_for_request => Poll::Pending,
            Poll::Pending => {
                ready!(self.timer.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncWrite for IdleTimeoutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    async fn connected_pair() -> (TcpStream, IdleTimeoutStream, RequestPhase) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
        let address = listener.local_addr().expect("local address");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let phase = RequestPhase::default();
        let server = IdleTimeoutStream::new(server.expect("accepted").0, phase.clone());
        tokio::time::pause();
        (client.expect("connected"), server, phase)
    }

    async fn seconds_to_timeout(server: &mut IdleTimeoutStream) -> u64 {
        let started = Instant::now();
        let read = server.read_u8().await;
        assert_eq!(read.expect_err("timeout").kind(), io::ErrorKind::TimedOut);
        started.elapsed().as_secs()
    }

    async fn pair_after_request() -> (TcpStream, IdleTimeoutStream) {
        let (mut client, mut server, phase) = connected_pair().await;
        client.write_all(b"a").await.expect("written");
        server.read_u8().await.expect("read");
        phase.advance();
        phase.advance();
        (client, server)
    }

    #[tokio::test]
    async fn closes_silent_connection() {
        let (_client, mut server, _) = connected_pair().await;
        assert_eq!(seconds_to_timeout(&mut server).await, HEADER_TIMEOUT.as_secs());
    }

    #[tokio::test]
    async fn keeps_idle_connection_between_requests() {
        let (_client, mut server) = pair_after_request().await;
        assert_eq!(seconds_to_timeout(&mut server).await, IDLE_TIMEOUT.as_secs());
    }

    #[tokio::test]
    async fn closes_connection_with_partial_headers() {
        let (mut client, mut server) = pair_after_request().await;
        client.write_all(b"b").await.expect("written");
        server.read_u8().await.expect("read");
        assert_eq!(seconds_to_timeout(&mut server).await, HEADER_TIMEOUT.as_secs());
    }
}
