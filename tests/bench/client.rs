//! A fast HTTP client that signs webhooks with unique ids and sends them over keep-alive
//! connections.
//!
//! In a closed loop a webhook is sent when the previous one is answered. In an open loop each
//! webhook has a due time, from which its latency is measured, so that a stalled server is charged
//! for every webhook that had to wait.
//!
//! It has its own HTTP code, with one write per request, because the client shares the cores with
//! the server.

use crate::tenants::{Tenants, Way};
use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
};

/// Next number. Webhooks of a run have different numbers.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Returns the next number.
pub fn number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Address and keep-alive connections of a server.
pub struct Client {
    address: SocketAddr,
    tenants: Arc<Tenants>,
    way: Way,
    lines: Vec<Line>,
}

/// Results of a load.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Requests answered 200.
    pub accepted: u64,
    /// Other requests.
    pub refused: u64,
    /// Duration of the load.
    pub took: Duration,
    /// Microseconds from due time (open) or sending (closed) to the answer.
    pub latency: Histogram<u64>,
}

impl Sent {
    /// Returns the accepted requests per second.
    pub fn rate(&self) -> f64 {
        self.accepted as f64 / self.took.as_secs_f64()
    }
}

/// Returns an empty histogram of microseconds with three digits, up to ten minutes.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(600_000_000, 3).expect("a valid range and precision")
}

impl Client {
    /// Returns a client with a number of connections, opened when first needed.
    pub fn new(address: SocketAddr, tenants: &Arc<Tenants>, way: Way, lines: usize) -> Self {
        let lines = (0..lines).map(|_| Line::new(address)).collect();
        Self { address, tenants: Arc::clone(tenants), way, lines }
    }

    /// Sends in a closed loop for a time, one webhook at a time per connection.
    pub async fn closed(&mut self, lasting: Duration) -> anyhow::Result<Sent> {
        let now = Instant::now();
        self.drive(Next::AtOnce { until: now + lasting }, now).await
    }

    /// Sends in an open loop at a rate per second. Latencies during `settling` are not counted.
    /// Also returns the schedule.
    pub async fn open(
        &mut self,
        rate: f64,
        settling: Duration,
        lasting: Duration,
    ) -> anyhow::Result<(Sent, Schedule)> {
        let pace = Pace::start(rate, settling + lasting);
        let counted = pace.schedule.start + settling;
        let sent = self.drive(Next::WhenDue(Arc::clone(&pace)), counted).await?;
        Ok((sent, pace.schedule))
    }

    async fn drive(&mut self, next: Next, counted: Instant) -> anyhow::Result<Sent> {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for mut line in self.lines.drain(..) {
            let (tenants, way, next) = (Arc::clone(&self.tenants), self.way, next.clone());
            tasks.spawn(async move {
                let mut sent =
                    Sent { accepted: 0, refused: 0, took: Duration::ZERO, latency: histogram() };
                while let Some((due, number)) = next.next().await {
                    tenants.write(way, number, &mut line.out);
                    match line.ask().await {
                        Ok(200) => sent.accepted += 1,
                        Ok(_) | Err(_) => sent.refused += 1,
                    }
                    if due >= counted {
                        sent.latency.saturating_record(due.elapsed().as_micros() as u64);
                    }
                }
                anyhow::Ok((line, sent))
            });
        }
        let mut all = Sent { accepted: 0, refused: 0, took: Duration::ZERO, latency: histogram() };
        while let Some(ended) = tasks.join_next().await {
            let (line, sent) = ended??;
            self.lines.push(line);
            all.accepted += sent.accepted;
            all.refused += sent.refused;
            all.latency.add(&sent.latency)?;
        }
        all.took = began.elapsed();
        ensure!(
            all.accepted > 0 && all.refused * 100 <= all.accepted,
            "the server at {} accepted {} webhooks and refused {}",
            self.address,
            all.accepted,
            all.refused
        );
        Ok(all)
    }
}

#[derive(Clone)]
enum Next {
    AtOnce { until: Instant },
    WhenDue(Arc<Pace>),
}

impl Next {
    async fn next(&self) -> Option<(Instant, u64)> {
        match self {
            Next::AtOnce { until } => {
                let now = Instant::now();
                (now < *until).then(|| (now, number()))
            }
            Next::WhenDue(pace) => pace.next().await,
        }
    }
}

/// Due times of an open loop.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Due time of the first webhook.
    pub start: Instant,
    /// Number of the first webhook.
    pub first: u64,
    /// Webhooks per second.
    pub rate: f64,
    /// Number of webhooks.
    pub count: u64,
}

impl Schedule {
    /// Returns the due time of a webhook, or `None` if the webhook is not in the schedule.
    pub fn due(&self, number: u64) -> Option<Instant> {
        let place = number.checked_sub(self.first).filter(|place| *place < self.count)?;
        Some(self.start + Duration::from_secs_f64(place as f64 / self.rate))
    }
}

/// Releases webhooks when they are due. A thread measures the time, because timers of the runtime
/// have a resolution of a millisecond.
pub struct Pace {
    /// Due times.
    pub schedule: Schedule,
    due: Semaphore,
    given: AtomicU64,
}

impl Pace {
    /// Starts a schedule now.
    pub fn start(rate: f64, lasting: Duration) -> Arc<Self> {
        let count = (rate * lasting.as_secs_f64()) as u64;
        let first = NEXT.fetch_add(count, Ordering::Relaxed);
        let schedule = Schedule { start: Instant::now(), first, rate, count };
        let pace = Arc::new(Self { schedule, due: Semaphore::new(0), given: AtomicU64::new(0) });
        let keeper = Arc::clone(&pace);
        std::thread::spawn(move || keeper.keep());
        pace
    }

    fn keep(&self) {
        let mut released = 0;
        while released < self.schedule.count {
            let passed = self.schedule.start.elapsed().as_secs_f64() * self.schedule.rate;
            let due = (passed as u64 + 1).min(self.schedule.count);
            self.due.add_permits((due - released) as usize);
            released = due;
            let next = Duration::from_secs_f64(released as f64 / self.schedule.rate);
            std::thread::sleep(next.saturating_sub(self.schedule.start.elapsed()));
        }
        self.due.close();
    }

    /// Waits for the next due webhook. Returns `None` after the last.
    pub async fn next(&self) -> Option<(Instant, u64)> {
        // An error means that all webhooks were released. Those not taken are still due.
        if let Ok(permit) = self.due.acquire().await {
            permit.forget();
        }
        let place = self.given.fetch_add(1, Ordering::Relaxed);
        let number = self.schedule.first + place;
        Some((self.schedule.due(number)?, number))
    }
}

/// A keep-alive connection.
struct Line {
    address: SocketAddr,
    stream: Option<TcpStream>,
    out: Vec<u8>,
    answer: Vec<u8>,
}

impl Line {
    fn new(address: SocketAddr) -> Self {
        let (out, answer) = (Vec::with_capacity(4096), Vec::with_capacity(1024));
        Self { address, stream: None, out, answer }
    }

    /// Sends the request and reads the status. Opens a connection that was closed while it was idle
    /// again, as HTTP clients do.
    async fn ask(&mut self) -> anyhow::Result<u16> {
        if let Some(stream) = self.stream.take()
            && let Ok(status) = self.ask_over(stream).await
        {
            return Ok(status);
        }
        let stream = TcpStream::connect(self.address)
            .await
            .context("failed to connect to the server under load")?;
        stream.set_nodelay(true)?;
        self.ask_over(stream).await
    }

    async fn ask_over(&mut self, mut stream: TcpStream) -> anyhow::Result<u16> {
        stream.write_all(&self.out).await?;
        self.answer.clear();
        loop {
            ensure!(stream.read_buf(&mut self.answer).await? > 0, "the connection was closed");
            let Some(end) = self.answer.windows(4).position(|four| four == b"\r\n\r\n") else {
                continue;
            };
            let head = std::str::from_utf8(&self.answer[..end])?;
            let length: usize = head
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(Ok(0), |(_, value)| value.trim().parse())?;
            let status = head.get(9..12).context("the answer has no status")?.parse()?;
            while self.answer.len() < end + 4 + length {
                ensure!(stream.read_buf(&mut self.answer).await? > 0, "the connection was closed");
            }
            self.stream = Some(stream);
            return Ok(status);
        }
    }
}
