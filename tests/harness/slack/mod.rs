//! The only fake: a Slack that behaves like Slack. It signs webhooks and sends them, serves the Web API and `response_url`s,
//! and keeps a book of all it was asked and a receipt of all it was told.
//!
//! ```text
//! webhook        what it sends
//! socket         byte by byte, what it would never send
//! forged         what a stranger sends in its name
//! malformed      requests that are none
//! slow           connections that are held for nothing
//! signing        secrets that change meanwhile
//! api, http      what it is asked, and how it answers
//! tokens         who may call: installations, rotation
//! conversations  what stands in channels and threads
//! views, urls    modals and triggers; response_urls
//! limits         how often
//! delivery       how it delivers: retries, redirects, an app's standing
//! conformance    whether it would be satisfied with an answer
//! trouble        what goes wrong, by a test's will
//! clock          its own, which can be moved
//! ```
//!
//! In: webhooks to send, installations, trouble. Out: what the gateway answered and how fast; every call and how it ended
//! ([`Slack::calls`]); everything that was said and taken, in the order it came ([`Slack::receipts`]).

pub mod webhook;
pub mod socket;
pub mod forged;
pub mod malformed;
pub mod slow;
pub mod signing;
pub mod api;
pub mod clock;
pub mod conformance;
pub mod delivery;
pub mod limits;
pub mod tokens;
pub mod conversations;
pub mod trouble;
mod http;
mod urls;
mod views;

use crate::until::until;
use anyhow::Context;
use api::Call;
use axum::http::HeaderMap;
use clock::Clock;
use conversations::Message;
use hmac::{Hmac, KeyInit, Mac};
use limits::Limit;
use serde_json::Value;
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
use trouble::Trouble;
use webhook::Webhook;

/// A Slack on a loopback port.
#[derive(Clone)]
pub struct Slack {
    address: SocketAddr,
    http: reqwest::Client,
    state: Arc<Mutex<State>>,
    clock: Clock,
    next: Arc<AtomicU64>,
}

/// All that it knows.
#[derive(Default)]
struct State {
    tokens: tokens::Tokens,
    conversations: conversations::Conversations,
    views: views::Views,
    urls: urls::ResponseUrls,
    limits: limits::Limits,
    troubles: trouble::Troubles,
    standings: delivery::Standings,
    calls: Vec<Call>,
    receipts: Vec<Receipt>,
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
            state: Arc::default(),
            clock: Clock::default(),
            next: Arc::new(AtomicU64::new(1)),
        };
        tokio::spawn(http::serve(listener, slack.clone()));
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

    /// A `response_url` that nobody has yet: good five times within half an hour from now.
    pub fn response_url(&self) -> String {
        let path = format!("/commands/{}", self.unique());
        self.state().urls.give(&path, self.clock.now());
        format!("http://{}{path}", self.address)
    }

    /// What a webhook that we did not make ourselves names is ours from now on: its `response_url`, if that leads here, and its
    /// view.
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

    /// A `trigger_id` that nobody has yet: good once within three seconds from now.
    pub fn trigger_id(&self) -> String {
        let id = format!("{}.{}.trigger", self.unique(), self.unique());
        self.state().views.trigger(&id, self.clock.now());
        id
    }

    /// A `ts` later than all before.
    pub fn ts(&self) -> String {
        format!("{}.{:06}", self.clock.unix(), self.unique())
    }

    /// Its clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// An app is installed: from now on this token speaks for it, and never runs out.
    pub fn install(&self, token: &str, installation: Installation) {
        self.state().tokens.install(token, installation);
    }

    /// An app is installed whose tokens rotate.
    pub fn install_rotating(&self, installation: Installation) -> Pair {
        self.state().tokens.install_rotating(installation, self.clock.now())
    }

    /// An app's name and password for `oauth.v2.access`.
    pub fn register_client(&self, client_id: &str, client_secret: &str) {
        self.state().tokens.register(client_id, client_secret);
    }

    /// A person agrees to an installation: the code that the redirect carries, good once.
    pub fn authorize(&self, installation: Installation) -> String {
        self.state().tokens.authorize(installation)
    }

    /// From now on whoever comes with this token is told this word: `token_revoked`, `account_inactive`, …
    pub fn refuse_token(&self, token: &str, error: &str) {
        self.state().tokens.refuse(token, error);
    }

    /// From now on these limits hold and no others. At first there are none.
    pub fn limit(&self, limits: Vec<Limit>) {
        self.state().limits.set(limits);
    }

    /// Something goes wrong from now on.
    pub fn trouble(&self, trouble: Trouble) {
        self.state().troubles.add(trouble);
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.state().troubles.clear();
    }

    /// What stands in a conversation, in the order in which it came to stand there.
    pub fn messages(&self, team: &str, channel: &str) -> Vec<Message> {
        self.state().conversations.of(team, channel).to_vec()
    }

    /// A view as it is shown now.
    pub fn view(&self, id: &str) -> Option<Value> {
        self.state().views.find(id)
    }

    /// A person writes something. [`Webhook::said`] tells of it, too.
    pub fn write(&self, team: &str, channel: &str, user: &str, text: &str, ts: &str) {
        let message = Message {
            ts: ts.to_owned(),
            user: user.to_owned(),
            bot_id: None,
            text: text.to_owned(),
            blocks: Value::Null,
            thread_ts: None,
            metadata: Value::Null,
            edited: false,
        };
        self.state().conversations.add(team, channel, message);
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

    /// Everything it was told and took so far.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.state().receipts.clone()
    }

    /// Everything it was asked so far, and how that ended.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// The calls of one method.
    pub fn calls_of(&self, method: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.method == method);
        calls
    }

    /// The latest call that `wanted` knows. Nothing else is copied: whoever looks again and again disturbs nobody; but
    /// `wanted` must not ask us anything.
    pub fn call(&self, wanted: impl Fn(&Call) -> bool) -> Option<Call> {
        self.state().calls.iter().rev().find(|call| wanted(call)).cloned()
    }

    /// Waits until it has been told something that `wanted` knows.
    pub async fn told(&self, what: &str, wanted: impl Fn(&Receipt) -> bool) -> Receipt {
        // Of a copy: `wanted` may ask us something, too.
        until(what, Duration::from_secs(20), async || {
            self.receipts().into_iter().find(|r| wanted(r))
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
