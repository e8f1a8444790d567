//! A Slack in a hurry: signs webhooks with ids of their own and sends them over kept connections.
//!
//! In: tenants, an address, and either how many at once (closed loop: the next goes when one is answered) or how many a
//! second (open loop: each has a due time and is late if it waits). Out: how many were taken, and how long each took. In
//! the open loop time runs from when a webhook was due, so a server that stalls is charged for all that had to wait.
//!
//! HTTP is written by hand, one write a request: on few cores the client's own work is part of what is measured.

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

/// Numbers given out: no two webhooks of a run are one.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The next number.
pub fn number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where webhooks go, and how many connections are kept to it.
pub struct Client {
    address: SocketAddr,
    tenants: Arc<Tenants>,
    way: Way,
    lines: Vec<Line>,
}

/// What a stretch of load came to.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Answered 200.
    pub accepted: u64,
    /// Answered otherwise, or not.
    pub refused: u64,
    /// How long it took.
    pub took: Duration,
    /// Microseconds from due (open) or sending (closed) to the answer.
    pub latency: Histogram<u64>,
}

impl Sent {
    /// Accepted a second.
    pub fn rate(&self) -> f64 {
        self.accepted as f64 / self.took.as_secs_f64()
    }
}

/// An empty histogram of microseconds, to three digits and ten minutes.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(600_000_000, 3).expect("a range and a precision that it has")
}

impl Client {
    /// Keeps so many connections, each opened when it is first needed.
    pub fn new(address: SocketAddr, tenants: &Arc<Tenants>, way: Way, lines: usize) -> Self {
        let lines = (0..lines).map(|_| Line::new(address)).collect();
        Self { address, tenants: Arc::clone(tenants), way, lines }
    }

    /// As many as it takes, one at a time on each connection.
    pub async fn closed(&mut self, lasting: Duration) -> anyhow::Result<Sent> {
        let now = Instant::now();
        self.drive(Next::AtOnce { until: now + lasting }, now).await
    }

    /// So many a second, the latency of those that are due in the beginning not counted. Gives also when each was due.
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
            "{} took {} webhooks and refused {}",
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

/// When each of an open loop's webhooks was due.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// When the first was.
    pub start: Instant,
    /// Its number.
    pub first: u64,
    /// Those a second.
    pub rate: f64,
    /// How many.
    pub count: u64,
}

impl Schedule {
    /// When this one was due, if it is one of them.
    pub fn due(&self, number: u64) -> Option<Instant> {
        let place = number.checked_sub(self.first).filter(|place| *place < self.count)?;
        Some(self.start + Duration::from_secs_f64(place as f64 / self.rate))
    }
}

/// Hands out due webhooks. A thread keeps the time: the runtime's timers tick in whole milliseconds.
pub struct Pace {
    /// When each is due.
    pub schedule: Schedule,
    due: Semaphore,
    given: AtomicU64,
}

impl Pace {
    /// Begins now.
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

    /// The next that is due, once it is; `None` when all are given out.
    pub async fn next(&self) -> Option<(Instant, u64)> {
        // An error says that all were released: what was not taken is still due.
        if let Ok(permit) = self.due.acquire().await {
            permit.forget();
        }
        let place = self.given.fetch_add(1, Ordering::Relaxed);
        let number = self.schedule.first + place;
        Some((self.schedule.due(number)?, number))
    }
}

/// One kept connection.
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

    /// Sends what was written and reads the status. A connection that was closed while it rested is opened again, as by any
    /// client.
    async fn ask(&mut self) -> anyhow::Result<u16> {
        if let Some(stream) = self.stream.take()
            && let Ok(status) = self.ask_over(stream).await
        {
            return Ok(status);
        }
        let stream = TcpStream::connect(self.address).await.context("the server under load")?;
        stream.set_nodelay(true)?;
        self.ask_over(stream).await
    }

    async fn ask_over(&mut self, mut stream: TcpStream) -> anyhow::Result<u16> {
        stream.write_all(&self.out).await?;
        self.answer.clear();
        loop {
            ensure!(stream.read_buf(&mut self.answer).await? > 0, "closed");
            let Some(end) = self.answer.windows(4).position(|four| four == b"\r\n\r\n") else {
                continue;
            };
            let head = std::str::from_utf8(&self.answer[..end])?;
            let length: usize = head
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(Ok(0), |(_, value)| value.trim().parse())?;
            let status = head.get(9..12).context("a status line")?.parse()?;
            while self.answer.len() < end + 4 + length {
                ensure!(stream.read_buf(&mut self.answer).await? > 0, "closed");
            }
            self.stream = Some(stream);
            return Ok(status);
        }
    }
}
