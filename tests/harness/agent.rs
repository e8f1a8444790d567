//! A sample agent: says back what it heard, and remembers what it was asked.
//!
//! What it is asked may tell it to behave: `slow:<ms> …` takes that long, `fail:<n> …` answers 503 so many times first,
//! `poison …` is answered 422, always; `whisper …` is answered for one person only, `blocks …` in Block Kit, `loose …`
//! beside the thread, `silent …` not at all. And it can be broken as a whole, as by a bad deploy.

use anyhow::Context;
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpListener;

/// An agent on a loopback port.
#[derive(Clone)]
pub struct Agent {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    broken: Arc<AtomicBool>,
    running: Arc<Mutex<Running>>,
}

/// Questions that are being answered.
#[derive(Debug, Default)]
struct Running {
    ids: HashSet<String>,
    /// Came while they were being answered.
    overlapped: Vec<String>,
}

/// Ends with the answer, or when nobody waits for it any more.
struct RunningQuestion(Arc<Mutex<Running>>, String);

impl RunningQuestion {
    fn new(running: &Arc<Mutex<Running>>, id: &str) -> Self {
        let mut now = running.lock().unwrap_or_else(PoisonError::into_inner);
        if !now.ids.insert(id.to_owned()) {
            now.overlapped.push(id.to_owned());
        }
        Self(Arc::clone(running), id.to_owned())
    }
}

impl Drop for RunningQuestion {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ids.remove(&self.1);
    }
}

/// A question it was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The idempotency key: the same however often the question comes.
    pub id: String,
    /// The question; null if it was no JSON.
    pub question: Value,
    /// All headers it came with.
    pub headers: HeaderMap,
    /// Its bytes.
    pub body: Bytes,
}

impl Agent {
    /// Starts it; it ends with the runtime.
    pub async fn start() -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind("127.0.0.1:0").await.context("a port for the sample agent")?;
        let agent = Self {
            address: listener.local_addr()?,
            asked: Arc::default(),
            broken: Arc::default(),
            running: Arc::default(),
        };
        let routes = Router::new().route("/", post(answer)).with_state(agent.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(agent)
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// From now on every question is answered 404, as by a bad deploy, or no longer.
    pub fn break_down(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }

    /// Idempotency keys of questions that came again while they were being answered.
    pub fn overlapped(&self) -> Vec<String> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).overlapped.clone()
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(State(agent): State<Agent>, headers: HeaderMap, body: Bytes) -> Response {
    let id =
        headers.get("idempotency-key").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let _running = RunningQuestion::new(&agent.running, &id);
    let question: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = question["text"].as_str().unwrap_or_default().to_owned();
    let before = {
        let mut asked = agent.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = asked.iter().filter(|asked| asked.id == id).count();
        asked.push(Asked { id, question, headers, body });
        before
    };
    let told = |word: &str| text.strip_prefix(word)?.split_whitespace().next()?.parse::<u64>().ok();
    if let Some(ms) = told("slow:") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let no = |status: StatusCode, why: &str| {
        (status, json!({ "error": why }).to_string()).into_response()
    };
    if agent.broken.load(Ordering::Relaxed) {
        return no(StatusCode::NOT_FOUND, "no such page");
    }
    if text.starts_with("poison") {
        return no(StatusCode::UNPROCESSABLE_ENTITY, "I can't digest this");
    }
    if told("fail:").is_some_and(|times| before < times as usize) {
        return no(StatusCode::SERVICE_UNAVAILABLE, "not now");
    }
    let mut answer = json!({ "text": format!("I heard: {text}") });
    match text.split_whitespace().next() {
        Some("silent") => return StatusCode::NO_CONTENT.into_response(),
        Some("whisper") => answer["ephemeral"] = true.into(),
        Some("loose") => answer["thread"] = false.into(),
        Some("blocks") => {
            let text = json!({ "type": "mrkdwn", "text": "*I heard*" });
            answer["blocks"] = json!([{ "type": "section", "text": text }]);
        }
        _ => {}
    }
    answer.to_string().into_response()
}
