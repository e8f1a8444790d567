//! A simulated Slack that signs and sends webhooks, serves the Web API and `response_url`s, and
//! records all calls.
//!
//! ```text
//! webhook          webhooks
//! socket           connections, byte by byte
//! forged           forged webhooks
//! malformed        invalid requests
//! slow_clients     clients that hold connections
//! signing          secrets during a rotation
//! api, http        Web API
//! tokens           installations and token rotation
//! oauth            page and codes of OAuth
//! conversations    messages of channels and threads
//! views, response_urls    modals and triggers; response_urls
//! limits           rate limits
//! streams          streamed messages
//! sessions         agents' sessions
//! blocks           limits of blocks
//! delivery         retries, redirects, disabled apps
//! socket_mode      connections of Socket Mode
//! conformance      checks of answers
//! fault_injection  faults of calls
//! clock            clock of this Slack
//! ```
//!
//! [`Slack::calls`] are all calls with their results. [`Slack::receipts`] are the messages that
//! took effect, in order.

pub mod webhook;
pub mod socket;
pub mod forged;
pub mod malformed;
pub mod slow_clients;
pub mod signing;
pub mod api;
pub mod clock;
pub mod conformance;
pub mod delivery;
pub mod limits;
pub mod blocks;
pub mod sessions;
pub mod streams;
pub mod tokens;
pub mod oauth;
pub mod conversations;
pub mod fault_injection;
mod http;
mod response_urls;
pub mod socket_mode;
mod views;

use crate::{eventually::eventually, test_env::App};
use anyhow::Context;
use api::Call;
use axum::http::HeaderMap;
use clock::Clock;
use conversations::Message;
use fault_injection::FaultRule;
use hmac::{Hmac, KeyInit, Mac};
use limits::Limit;
use serde_json::{Value, json};
use sha2::Sha256;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokens::{Installation, Pair};
use tokio::net::TcpListener;
use webhook::Webhook;

/// A simulated Slack on a loopback port.
#[derive(Clone)]
pub struct Slack {
    address: SocketAddr,
    http: reqwest::Client,
    state: Arc<Mutex<State>>,
    clock: Clock,
    next: Arc<AtomicU64>,
}

/// State of the simulated Slack.
#[derive(Default)]
struct State {
    tokens: tokens::Tokens,
    conversations: conversations::Conversations,
    views: views::Views,
    urls: response_urls::ResponseUrls,
    limits: limits::Limits,
    streams: streams::StreamSettings,
    sessions: sessions::Sessions,
    fault_rules: fault_injection::FaultRules,
    failure_stats: delivery::AppFailureStats,
    sockets: socket_mode::SocketMode,
    calls: Vec<Call>,
    receipts: Vec<Receipt>,
}

/// A message that took effect.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// `chat.postMessage`, …, or `response_url`.
    pub by: String,
    /// Conversation, or the path of the `response_url`.
    pub to: String,
    /// Bearer token.
    pub token: Option<String>,
    /// Body.
    pub body: Value,
}

impl Receipt {
    /// Returns the text.
    pub fn text(&self) -> &str {
        self.body["text"].as_str().unwrap_or_default()
    }
}

/// An answer of the gateway.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as text.
    pub body: String,
    /// Time from sending to the end of the body.
    pub took: Duration,
}

impl Slack {
    /// Starts the server. It ends with the runtime.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("failed to bind a port for the simulated Slack")?;
        let slack = Self {
            address: listener.local_addr()?,
            http: reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?,
            state: Arc::default(),
            clock: Clock::default(),
            next: Arc::new(AtomicU64::new(1)),
        };
        tokio::spawn(http::serve(listener, slack.clone()));
        Ok(slack)
    }

    /// Returns the URL of the Web API.
    pub fn api(&self) -> String {
        format!("http://{}/api/", self.address)
    }

    /// Returns the origin of `response_url`s.
    pub fn response_origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns a new `response_url`, valid five times within half an hour.
    pub fn response_url(&self) -> String {
        let path = format!("/commands/{}", self.unique());
        self.state().urls.give(&path, self.clock.now());
        format!("http://{}{path}", self.address)
    }

    /// Registers the `response_url` and the view of a webhook that another simulated Slack created.
    /// The `response_url` must have this Slack's origin.
    pub fn adopt(&self, body: &[u8]) {
        let field = |wanted: &str| {
            form_urlencoded::parse(body).find(|(name, _)| name == wanted).map(|(_, value)| value)
        };
        let payload = field("payload").unwrap_or_default();
        let payload: Value = serde_json::from_str(&payload).unwrap_or_default();
        let of_command = field("response_url");
        let url = of_command.as_deref().or(payload["response_url"].as_str());
        let path = url.and_then(|url| url.strip_prefix(&self.response_origin()));
        if let Some(path) = path {
            self.state().urls.give(path, self.clock.now());
        }
        if payload["view"].is_object() {
            self.state().views.known(&payload["view"]);
        }
    }

    /// Returns a new `trigger_id`, valid once within three seconds.
    pub fn trigger_id(&self) -> String {
        let id = format!("{}.{}.trigger", self.unique(), self.unique());
        self.state().views.trigger(&id, self.clock.now());
        id
    }

    /// Returns a `ts` later than all before.
    pub fn ts(&self) -> String {
        format!("{}.{:06}", self.clock.unix(), self.unique())
    }

    /// Returns the clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Installs an app with a token that does not expire.
    pub fn install(&self, token: &str, installation: Installation) {
        self.state().tokens.install(token, installation);
    }

    /// Installs an app whose tokens rotate.
    pub fn install_rotating(&self, installation: Installation) -> Pair {
        self.state().tokens.install_rotating(installation, self.clock.now())
    }

    /// Registers the client id and secret of an app for `oauth.v2.access`.
    pub fn register_client(&self, client_id: &str, client_secret: &str) {
        self.state().tokens.register(client_id, client_secret);
    }

    /// Authorizes an installation. Returns the code of the redirect, valid once.
    pub fn authorize(&self, installation: Installation) -> String {
        self.state().tokens.authorize(installation, self.clock.now())
    }

    /// Rejects a token from now on with this error: `token_revoked`, `account_inactive`, …
    pub fn refuse_token(&self, token: &str, error: &str) {
        self.state().tokens.refuse(token, error);
    }

    /// Replaces the rate limits. Initially there are none.
    pub fn limit(&self, limits: Vec<Limit>) {
        self.state().limits.set(limits);
    }

    /// Changes the settings of streamed messages.
    pub fn set_streams(&self, change: impl FnOnce(&mut streams::StreamSettings)) {
        change(&mut self.state().streams);
    }

    /// Stops an agent's session as a person does, which ends its streams. Returns the webhook.
    pub fn stop_session(&self, app: &App, channel: &str, user: &str, thread_ts: &str) -> Webhook {
        let mut state = self.state();
        let messages = state.conversations.all_of(&app.team, channel);
        let stopped = streams::stop_by_user(messages, thread_ts);
        drop(state);
        let inner = json!({
            "type": "agent_session_stopped", "channel": channel, "thread_ts": thread_ts,
            "user": user, "streaming_message_ts": stopped, "event_ts": self.ts(),
        });
        Webhook::event(self, app, "a stop", inner)
    }

    /// Adds a fault.
    pub fn inject_fault(&self, rule: FaultRule) {
        self.state().fault_rules.add(rule);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.state().fault_rules.clear();
    }

    /// Returns the messages of a conversation, in order.
    pub fn messages(&self, team: &str, channel: &str) -> Vec<Message> {
        self.state().conversations.of(team, channel).to_vec()
    }

    /// Returns the current state of a view.
    pub fn view(&self, id: &str) -> Option<Value> {
        self.state().views.find(id)
    }

    /// Adds a message of a person. [`Webhook::message_event`] adds it and returns its webhook.
    pub fn write(&self, team: &str, channel: &str, user: &str, text: &str, ts: &str) {
        self.write_in_thread(team, channel, user, text, ts, None);
    }

    /// Adds a message of a person to a thread.
    pub fn write_in_thread(
        &self,
        team: &str,
        channel: &str,
        user: &str,
        text: &str,
        ts: &str,
        thread_ts: Option<&str>,
    ) {
        let message = Message {
            ts: ts.to_owned(),
            user: user.to_owned(),
            bot_id: None,
            text: text.to_owned(),
            blocks: Value::Null,
            thread_ts: thread_ts.map(str::to_owned),
            metadata: Value::Null,
            edited: false,
            stream: None,
        };
        self.state().conversations.add(team, channel, message);
    }

    /// Deletes a message, as a person does.
    pub fn delete(&self, team: &str, channel: &str, ts: &str) {
        self.state().conversations.delete(team, channel, ts);
    }

    /// Returns an unused number.
    pub fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Signs a webhook and sends it.
    pub async fn send(&self, url: &str, secret: &str, webhook: &Webhook) -> anyhow::Result<Answer> {
        self.send_signed_at(url, secret, webhook, unix_now()).await
    }

    /// Signs a webhook with another time and sends it.
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

    /// Sends a webhook with the given headers instead of Slack's.
    pub async fn send_with(
        &self,
        url: &str,
        webhook: &Webhook,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        if let Some(view) = webhook.view() {
            self.state().views.known(&view);
        }
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

    /// Returns all messages that took effect.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.state().receipts.clone()
    }

    /// Returns all calls with their results.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Returns the calls of a method.
    pub fn calls_of(&self, method: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.method == method);
        calls
    }

    /// Returns the latest call that satisfies `wanted`. Copies no other call, so it is cheap.
    /// `wanted` must not use this Slack, whose state is locked.
    pub fn call(&self, wanted: impl Fn(&Call) -> bool) -> Option<Call> {
        self.state().calls.iter().rev().find(|call| wanted(call)).cloned()
    }

    /// Waits for a message that satisfies `wanted`.
    pub async fn wait_for_receipt(&self, what: &str, wanted: impl Fn(&Receipt) -> bool) -> Receipt {
        // Searches a copy, because `wanted` may use this Slack.
        eventually(what, Duration::from_secs(20), async || {
            self.receipts().into_iter().find(|r| wanted(r))
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns Slack's signature, as defined in docs.slack.dev
/// (authentication/verifying-requests-from-slack).
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

/// Returns the seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
