//! A sample agent: says back what it heard, and remembers what it was asked.
//!
//! What it is asked may tell it to behave: `slow:<ms> …` takes that long, `fail:<n> …` answers 503 so many times first,
//! `poison …` is answered 404, always. And it can be broken as a whole, as by a bad deploy.

use anyhow::Context;
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::{Value, json};
use std::{
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
}

/// A question it was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The idempotency key: the same however often the question comes.
    pub id: String,
    /// The question.
    pub question: Value,
}

impl Agent {
    /// Starts it; it ends with the runtime.
    pub async fn start() -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind("127.0.0.1:0").await.context("a port for the sample agent")?;
        let agent =
            Self { address: listener.local_addr()?, asked: Arc::default(), broken: Arc::default() };
        let routes = Router::new().route("/", post(answer)).with_state(agent.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(agent)
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// From now on every question is answered 404, or no longer.
    pub fn break_down(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(
    State(agent): State<Agent>,
    headers: HeaderMap,
    Json(question): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let id =
        headers.get("idempotency-key").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let text = question["text"].as_str().unwrap_or_default().to_owned();
    let before = {
        let mut asked = agent.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = asked.iter().filter(|asked| asked.id == id).count();
        asked.push(Asked { id, question });
        before
    };
    let told = |word: &str| text.strip_prefix(word)?.split_whitespace().next()?.parse::<u64>().ok();
    if let Some(ms) = told("slow:") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let status = if agent.broken.load(Ordering::Relaxed) || text.starts_with("poison") {
        StatusCode::NOT_FOUND
    } else if told("fail:").is_some_and(|times| before < times as usize) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    (status, Json(json!({ "text": format!("I heard: {text}") })))
}
