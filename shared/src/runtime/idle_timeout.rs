//! Idle timeouts of an HTTP connection, for reads and for writes.
//!
//! hyper has one timer for slow headers and idle connections, which need different limits. The
//! headers of a request must arrive within 3 s of its first byte, those of the first request within
//! 3 s of the accept. Between requests a connection may be idle for longer than any load balancer
//! keeps it open; otherwise the balancer would send a webhook into a connection that ingest is
//! closing. The connection of a peer that does not read its responses is closed when a write has
//! made no progress for 5 s.

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

/// Maximum time for which a write may make no progress.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Phase of a connection: even while it waits for a request, odd while a request is answered.
#[derive(Debug, Clone, Default)]
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

impl RequestPhase {
    /// Returns the phase of a connection whose reads are limited elsewhere.
    pub fn without_read_timeout() -> Self {
        let phase = Self::default();
        phase.advance();
        phase
    }
}

/// Socket whose reads and writes fail after an idle timeout.
#[derive(Debug)]
pub struct IdleTimeoutStream {
    socket: TcpStream,
    phase: RequestPhase,
    last_phase: u64,
    idle: bool,
    timer: Pin<Box<Sleep>>,
    /// Set while a write makes no progress, which is rare.
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl IdleTimeoutStream {
    /// Wraps a socket that was just accepted.
    pub fn new(socket: TcpStream, phase: RequestPhase) -> Self {
        let timer = Box::pin(sleep(HEADER_TIMEOUT));
        Self { socket, phase, last_phase: 0, idle: false, timer, write_timer: None }
    }

    fn restart_timer(&mut self, idle: bool) {
        self.idle = idle;
        let timeout = if idle { IDLE_TIMEOUT } else { HEADER_TIMEOUT };
        self.timer.as_mut().reset(Instant::now() + timeout);
    }

    /// Returns the result of a write, or a failure when writes have made no progress for too long.
    fn limit_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
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
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.limit_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.limit_write(cx, written)
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
    use std::future::poll_fn;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::advance,
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
    async fn keeps_idle_connection() {
        let (_client, mut server) = pair_after_request().await;
        assert_eq!(seconds_to_timeout(&mut server).await, IDLE_TIMEOUT.as_secs());
    }

    #[tokio::test]
    async fn closes_peer_that_does_not_read() {
        let (_client, mut server, _) = connected_pair().await;
        let (started, responses) = (Instant::now(), vec![0; 64 << 20]);
        let written = server.write_all(&responses).await;
        assert_eq!(written.expect_err("timeout").kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), WRITE_TIMEOUT.as_secs());
    }

    #[tokio::test]
    async fn allows_slow_progress() {
        let (_client, mut server, _) = connected_pair().await;
        let mut write = async |written: Option<usize>| {
            poll_fn(|cx| {
                let written = written.map_or(Poll::Pending, |count| Poll::Ready(Ok(count)));
                Poll::Ready(server.limit_write(cx, written))
            })
            .await
        };
        for _ in 0..3 {
            assert!(write(None).await.is_pending());
            advance(WRITE_TIMEOUT - Duration::from_secs(1)).await;
            assert!(write(None).await.is_pending(), "a little later");
            assert!(matches!(write(Some(1)).await, Poll::Ready(Ok(1))));
        }
        assert!(write(None).await.is_pending());
        advance(WRITE_TIMEOUT + Duration::from_secs(1)).await;
        assert!(matches!(write(None).await, Poll::Ready(Err(_))));
    }

    #[tokio::test]
    async fn closes_on_partial_headers() {
        let (mut client, mut server) = pair_after_request().await;
        client.write_all(b"b").await.expect("written");
        server.read_u8().await.expect("read");
        assert_eq!(seconds_to_timeout(&mut server).await, HEADER_TIMEOUT.as_secs());
    }
}
