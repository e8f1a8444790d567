//! An agent that counts its requests without storing them, for tests whose requests do not fit into
//! memory.
//!
//! The text of a message ends in `<conversation>/<position>`; positions start at 0. The agent
//! counts the messages in order, skipped and repeated, and the concurrent requests. Its answer is
//! 204.

use anyhow::Context;
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use serde_json::Value;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::net::TcpListener;

/// A counting agent on a loopback port. Cheap to clone.
#[derive(Clone)]
pub struct CountingAgent {
    address: SocketAddr,
    state: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    away: AtomicBool,
    takes_ms: AtomicU64,
    running: AtomicUsize,
    most: AtomicUsize,
    conversations: Mutex<HashMap<u32, Conversation>>,
}

#[derive(Default, Clone, Copy)]
struct Conversation {
    next: u32,
    skipped: u32,
    repeated: u32,
}

/// Counts of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Messages answered for the first time, each after its predecessor.
    pub in_order: usize,
    /// Messages that arrived before their predecessor.
    pub skipped: usize,
    /// Repeated messages.
    pub repeated: usize,
    /// Maximum number of concurrent requests.
    pub most: usize,
}

/// A request that is being answered.
struct OpenRequest<'a>(&'a Counts);

impl<'a> OpenRequest<'a> {
    fn new(counts: &'a Counts) -> Self {
        let running = counts.running.fetch_add(1, Relaxed) + 1;
        counts.most.fetch_max(running, Relaxed);
        Self(counts)
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

impl CountingAgent {
    /// Starts the agent. It ends with the runtime.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("failed to bind a port for the counting agent")?;
        let agent = Self { address: listener.local_addr()?, state: Arc::default() };
        // A body of 1 MiB gets longer when encoded as JSON.
        let limit = axum::extract::DefaultBodyLimit::max(8 << 20);
        let routes = Router::new().route("/", post(answer)).layer(limit);
        let routes = routes.with_state(Arc::clone(&agent.state));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(agent)
    }

    /// Returns the URL of the agent.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Sets whether every request is answered 503 and not counted.
    pub fn set_unavailable(&self, away: bool) {
        self.state.away.store(away, Relaxed);
    }

    /// Sets the delay of each answer.
    pub fn set_answer_time(&self, time: Duration) {
        self.state.takes_ms.store(time.as_millis() as u64, Relaxed);
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> RequestCounts {
        let most = self.state.most.load(Relaxed);
        let all = self.state.conversations.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().fold(RequestCounts { most, ..RequestCounts::default() }, |counted, one| {
            RequestCounts {
                in_order: counted.in_order + one.next as usize,
                skipped: counted.skipped + one.skipped as usize,
                repeated: counted.repeated + one.repeated as usize,
                most,
            }
        })
    }
}

async fn answer(State(counts): State<Arc<Counts>>, body: Bytes) -> StatusCode {
    let _open = OpenRequest::new(&counts);
    let takes = Duration::from_millis(counts.takes_ms.load(Relaxed));
    if !takes.is_zero() {
        tokio::time::sleep(takes).await;
    }
    if counts.away.load(Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let question: Value = serde_json::from_slice(&body).unwrap_or_default();
    let place = question["text"].as_str().and_then(|text| {
        let (conversation, place) = text.split_whitespace().last()?.split_once('/')?;
        Some((conversation.parse::<u32>().ok()?, place.parse::<u32>().ok()?))
    });
    let Some((conversation, place)) = place else { return StatusCode::NO_CONTENT };
    let mut all = counts.conversations.lock().unwrap_or_else(PoisonError::into_inner);
    let of = all.entry(conversation).or_default();
    match place.cmp(&of.next) {
        std::cmp::Ordering::Equal => of.next += 1,
        std::cmp::Ordering::Less => of.repeated += 1,
        std::cmp::Ordering::Greater => of.skipped += 1,
    }
    StatusCode::NO_CONTENT
}
