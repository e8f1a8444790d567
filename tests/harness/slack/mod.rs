//! The only fake: a Slack that signs webhooks, sends them, and keeps receipts of what it is told.
//!
//! In: webhooks to send (see [`webhook`]). Out: what the gateway answered and how fast; and everything that the gateway
//! said by `chat.postMessage` and `response_url`, in the order it came.

pub mod webhook;
pub mod socket;

use crate::until::until;
use anyhow::Context;
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::net::TcpListener;
use webhook::Webhook;

/// A Slack on a loopback port.
#[derive(Clone)]
pub struct Slack {
    address: SocketAddr,
    http: reqwest::Client,
    receipts: Arc<Mutex<Vec<Receipt>>>,
    next: Arc<AtomicU64>,
}

/// Something that Slack was told.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// `chat.postMessage`, or `response_url`.
    pub by: String,
    /// The conversation, or the `response_url`'s own path.
    pub to: String,
    /// The bearer token it came with.
    pub token: Option<String>,
    /// The whole of it.
    pub body: Value,
}

impl Receipt {
    /// What a person would read.
    pub fn text(&self) -> &str {
        self.body["text"].as_str().unwrap_or_default()
    }
}

/// What the gateway answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as text.
    pub body: String,
    /// From sending to having read it.
    pub took: Duration,
}

impl Slack {
    /// Starts it; it ends with the runtime.
    pub async fn start() -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind("127.0.0.1:0").await.context("a port for the fake Slack")?;
        let slack = Self {
            address: listener.local_addr()?,
            http: reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?,
            receipts: Arc::default(),
            next: Arc::new(AtomicU64::new(1)),
        };
        let routes = Router::new()
            .route("/api/{method}", post(web_api))
            .route("/commands/{id}", post(response_url))
            .with_state(slack.clone());
        tokio::spawn(async move { axum_serve(listener, routes).await });
        Ok(slack)
    }

    /// The Web API's address.
    pub fn api(&self) -> String {
        format!("http://{}/api/", self.address)
    }

    /// Where its `response_url`s lie.
    pub fn response_origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A `response_url` that nobody has yet.
    pub fn response_url(&self) -> String {
        format!("http://{}/commands/{}", self.address, self.unique())
    }

    /// A number that nothing in this Slack has yet.
    pub fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Signs a webhook now and sends it.
    pub async fn send(&self, url: &str, secret: &str, webhook: &Webhook) -> anyhow::Result<Answer> {
        self.send_signed_at(url, secret, webhook, unix_now()).await
    }

    /// Signs a webhook at a second of one's choice and sends it.
    pub async fn send_signed_at(
        &self,
        url: &str,
        secret: &str,
        webhook: &Webhook,
        second: u64,
    ) -> anyhow::Result<Answer> {
        let signature = sign(secret, &second.to_string(), &webhook.body);
        self.send_with(
            url,
            webhook,
            &[
                ("x-slack-signature", &signature),
                ("x-slack-request-timestamp", &second.to_string()),
            ],
        )
        .await
    }

    /// Sends a webhook with these headers and no others of Slack's.
    pub async fn send_with(
        &self,
        url: &str,
        webhook: &Webhook,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        let mut request = self
            .http
            .post(url)
            .header("content-type", webhook.content_type)
            .body(webhook.body.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let started = Instant::now();
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.text().await?;
        Ok(Answer { status, headers, body, took: started.elapsed() })
    }

    /// Everything it was told so far.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has been told something that `wanted` knows.
    pub async fn told(&self, what: &str, wanted: impl Fn(&Receipt) -> bool) -> Receipt {
        until(what, Duration::from_secs(20), async || {
            self.receipts().into_iter().find(|r| wanted(r))
        })
        .await
    }

    fn receive(&self, receipt: Receipt) {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).push(receipt);
    }
}

async fn axum_serve(listener: TcpListener, routes: Router) {
    if let Err(error) = axum::serve(listener, routes).await {
        eprintln!("the fake ended: {error}");
    }
}

async fn web_api(
    State(slack): State<Slack>,
    Path(method): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Json<Value>) {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::OK, Json(json!({ "ok": false, "error": "invalid_json" })));
    };
    let token = headers
        .get("authorization")
        .and_then(|v| v.to_str().ok()?.strip_prefix("Bearer ").map(str::to_owned));
    if token.is_none() {
        return (StatusCode::OK, Json(json!({ "ok": false, "error": "not_authed" })));
    }
    let to = body["channel"].as_str().unwrap_or_default().to_owned();
    slack.receive(Receipt { by: method, to: to.clone(), token, body });
    let ts = format!("{}.{:06}", unix_now(), slack.unique());
    (StatusCode::OK, Json(json!({ "ok": true, "channel": to, "ts": ts })))
}

async fn response_url(
    State(slack): State<Slack>,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> &'static str {
    slack.receive(Receipt {
        by: "response_url".into(),
        to: format!("/commands/{id}"),
        token: None,
        body,
    });
    "ok"
}

/// Slack's signature, as docs.slack.dev (authentication/verifying-requests-from-slack) has it.
pub fn sign(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    for part in [b"v0:", timestamp.as_bytes(), b":", body] {
        mac.update(part);
    }
    mac.finalize()
        .into_bytes()
        .iter()
        .fold("v0=".to_owned(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// The present second, as Slack stamps it.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
