//! How long a socket may say nothing.
//!
//! In: a socket, and word of when a request is being answered. Out: the same socket, which fails when it is silent
//! for too long. Two patiences, where hyper has one timer for both: a head that has begun, and the first of a
//! connection, come within 3 s; between two requests a connection may rest for longer than any load balancer keeps one
//! idle, or the balancer would send a webhook into a connection that we are just closing.

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

/// A head has this long to come, the first one from the connection's beginning.
pub const HEAD: Duration = Duration::from_secs(3);
/// Between two requests. Load balancers keep idle connections for 60 s.
pub const REST: Duration = Duration::from_secs(75);

/// Counts requests: odd while one is being answered.
#[derive(Clone, Default)]
pub struct Turns(Arc<AtomicU64>);

impl Turns {
    /// A request's head was read, or its answer is ready.
    pub fn next(&self) {
        self.0.fetch_add(1, Ordering::Relaxed); // told and asked within one task
    }

    fn number(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A socket with patience.
pub struct Patient {
    socket: TcpStream,
    turns: Turns,
    turn: u64,
    resting: bool,
    until: Pin<Box<Sleep>>,
}

impl Patient {
    /// A connection just accepted.
    pub fn new(socket: TcpStream, turns: Turns) -> Self {
        Self { socket, turns, turn: 0, resting: false, until: Box::pin(sleep(HEAD)) }
    }

    fn wait(&mut self, resting: bool) {
        self.resting = resting;
        let patience = if resting { REST } else { HEAD };
        self.until.as_mut().reset(Instant::now() + patience);
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let turn = self.turns.number();
        if turn != self.turn && turn.is_multiple_of(2) {
            self.turn = turn;
            self.wait(true);
        }
        match Pin::new(&mut self.socket).poll_read(cx, buf) {
            Poll::Ready(read) => {
                if self.resting {
                    self.wait(false); // the next head begins
                }
                Poll::Ready(read)
            }
            // While a request is being answered, its body included, others watch the time.
            Poll::Pending if !turn.is_multiple_of(2) => Poll::Pending,
            Poll::Pending => {
                ready!(self.until.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncWrite for Patient {
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

    async fn pair() -> (TcpStream, Patient, Turns) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let turns = Turns::default();
        let patient = Patient::new(far.expect("accepted").0, turns.clone());
        tokio::time::pause();
        (near.expect("connected"), patient, turns)
    }

    async fn silent_for(patient: &mut Patient) -> Duration {
        let began = Instant::now();
        let read = patient.read_u8().await;
        assert_eq!(read.expect_err("nobody speaks").kind(), io::ErrorKind::TimedOut);
        began.elapsed()
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_left_after_three_seconds() {
        let (_near, mut patient, _) = pair().await;
        assert_eq!(silent_for(&mut patient).await.as_secs(), HEAD.as_secs());
    }

    async fn after_one_request() -> (TcpStream, Patient) {
        let (mut near, mut patient, turns) = pair().await;
        near.write_all(b"a").await.expect("written");
        patient.read_u8().await.expect("read");
        turns.next();
        turns.next();
        (near, patient)
    }

    #[tokio::test]
    async fn between_requests_a_connection_may_rest() {
        let (_near, mut patient) = after_one_request().await;
        assert_eq!(silent_for(&mut patient).await.as_secs(), REST.as_secs());
    }

    #[tokio::test]
    async fn a_head_that_begins_has_to_come() {
        let (mut near, mut patient) = after_one_request().await;
        near.write_all(b"b").await.expect("written");
        patient.read_u8().await.expect("read");
        assert_eq!(silent_for(&mut patient).await.as_secs(), HEAD.as_secs());
    }
}
