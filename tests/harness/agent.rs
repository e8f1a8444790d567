//! A sample agent: says back what it heard, and remembers what it was asked.

use anyhow::Context;
use axum::{Json, Router, extract::State, http::HeaderMap, routing::post};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::net::TcpListener;

/// An agent on a loopback port.
#[derive(Clone)]
pub struct Agent {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
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
        let agent = Self { address: listener.local_addr()?, asked: Arc::default() };
        let routes = Router::new().route("/", post(answer)).with_state(agent.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(agent)
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
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
) -> Json<Value> {
    let id =
        headers.get("idempotency-key").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let text = format!("I heard: {}", question["text"].as_str().unwrap_or_default());
    agent.asked.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { id, question });
    Json(json!({ "text": text }))
}
