//! A sample agent that echoes each message and records each request.
//!
//! The first word of a message controls the answer. `slow:<ms>` delays it; `fail:<n>` answers the
//! first `n` attempts with 503; `poison` answers 422; `whisper` is ephemeral; `blocks` uses Block
//! Kit; `loose` is outside the thread; `silent` answers 204; `json` answers with the rest of the
//! message. `markdown:<seed>` answers with the document of the seed, `markdown:<seed>:<n>` with a
//! stream of `n` documents. `stream:<words>:<ms>:<bytes>` answers with an event stream of so many
//! words of this length, at this interval, and continues after `Last-Event-ID`; a fourth number
//! delays its start, in ms. With the word `json` or `poison` in its text, it continues with JSON or
//! with 422 instead. [`Agent::set_failing`] makes every request fail.

use crate::markdown;
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
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

/// A sample agent on a loopback port.
#[derive(Clone)]
pub struct Agent {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<AgentRequest>>>,
    broken: Arc<AtomicBool>,
    /// Value that the header `x-key` of each request must have.
    key: Arc<Mutex<Option<String>>>,
    running: Arc<Mutex<Running>>,
    streams: Arc<Mutex<HashMap<String, Instant>>>,
    cancels: Arc<Mutex<Vec<Cancel>>>,
}

/// A cancellation of a run, as received at `/cancel`.
#[derive(Debug, Clone)]
pub struct Cancel {
    /// Id of the run.
    pub run: String,
    /// Reason.
    pub reason: String,
    /// Time.
    pub at: Instant,
}

/// Requests that are being answered.
#[derive(Debug, Default)]
struct Running {
    ids: HashSet<String>,
    /// Ids of requests that arrived while the same request was being answered.
    overlapped: Vec<String>,
}

/// A request that is being answered. Ends with the answer, or when the caller disconnects.
struct RunningRequest(Arc<Mutex<Running>>, String);

impl RunningRequest {
    fn new(running: &Arc<Mutex<Running>>, id: &str) -> Self {
        let mut now = running.lock().unwrap_or_else(PoisonError::into_inner);
        if !now.ids.insert(id.to_owned()) {
            now.overlapped.push(id.to_owned());
        }
        Self(Arc::clone(running), id.to_owned())
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ids.remove(&self.1);
    }
}

/// A request to the agent.
#[derive(Debug, Clone)]
pub struct AgentRequest {
    /// Idempotency key: the same for all attempts.
    pub id: String,
    /// Body as JSON; null if it is not JSON.
    pub question: Value,
    /// All headers.
    pub headers: HeaderMap,
    /// Body as bytes.
    pub body: Bytes,
}

impl Agent {
    /// Starts the agent. It ends with the runtime.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("failed to bind a port for the sample agent")?;
        let agent = Self {
            address: listener.local_addr()?,
            asked: Arc::default(),
            broken: Arc::default(),
            key: Arc::default(),
            running: Arc::default(),
            streams: Arc::default(),
            cancels: Arc::default(),
        };
        let routes = Router::new()
            .route("/", post(answer))
            .route("/cancel", post(cancel))
            .with_state(agent.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(agent)
    }

    /// Returns the URL of the agent.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Sets whether every request is answered 404, as by a bad deployment.
    pub fn set_failing(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }

    /// Sets the value of the header `x-key` without which requests are answered 401.
    pub fn require_key(&self, key: &str) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.to_owned());
    }

    /// Returns the ids of requests that arrived while the same request was being answered.
    pub fn overlapping_ids(&self) -> Vec<String> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).overlapped.clone()
    }

    /// Returns the time at which the first event of a request's stream was sent.
    pub fn first_event(&self, id: &str) -> Option<Instant> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    /// Returns the cancellations so far.
    pub fn cancels(&self) -> Vec<Cancel> {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of requests that are being answered.
    pub fn running(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).ids.len()
    }

    /// Returns the requests so far.
    pub fn requests(&self) -> Vec<AgentRequest> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn cancel(State(agent): State<Agent>, body: Bytes) -> StatusCode {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let cancel = Cancel { run: text("run"), reason: text("reason"), at: Instant::now() };
    agent.cancels.lock().unwrap_or_else(PoisonError::into_inner).push(cancel);
    StatusCode::NO_CONTENT
}

async fn answer(State(agent): State<Agent>, headers: HeaderMap, body: Bytes) -> Response {
    let id =
        headers.get("idempotency-key").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let running = RunningRequest::new(&agent.running, &id);
    let question: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = question["text"].as_str().unwrap_or_default().to_owned();
    let before = {
        let mut asked = agent.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = asked.iter().filter(|asked| asked.id == id).count();
        let asked_for = headers.clone();
        let question = question.clone();
        asked.push(AgentRequest { id, question, headers: asked_for, body });
        before
    };
    let number_after =
        |word: &str| text.strip_prefix(word)?.split_whitespace().next()?.parse::<u64>().ok();
    if let Some(ms) = number_after("slow:") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let reject = |status: StatusCode, why: &str| {
        (status, json!({ "error": why }).to_string()).into_response()
    };
    let key = agent.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if key.is_some_and(|key| headers.get("x-key").is_none_or(|value| value != key.as_str())) {
        return reject(StatusCode::UNAUTHORIZED, "wrong or missing x-key");
    }
    if agent.broken.load(Ordering::Relaxed) {
        return reject(StatusCode::NOT_FOUND, "no such page");
    }
    if text.starts_with("poison") {
        return reject(StatusCode::UNPROCESSABLE_ENTITY, "poisoned message");
    }
    if number_after("fail:").is_some_and(|times| before < times as usize) {
        return reject(StatusCode::SERVICE_UNAVAILABLE, "not now");
    }
    if let Some(words) = StreamedWords::parse(&text) {
        let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
        match text.split_whitespace().next_back().filter(|_| last.is_some()) {
            Some("json") => {
                return json!({ "text": "I heard it again" }).to_string().into_response();
            }
            Some("poison") => return reject(StatusCode::UNPROCESSABLE_ENTITY, "poisoned message"),
            _ => {}
        }
        tokio::time::sleep(words.delay).await;
        return words.answer(agent.clone(), running, last.unwrap_or(0));
    }
    match question["type"].as_str() {
        Some("approval") => {
            let (decision, user) = (&question["approval"]["decision"], &question["user"]);
            let text = format!(
                "I heard: {} by {}",
                decision.as_str().unwrap_or_default(),
                user.as_str().unwrap_or_default()
            );
            return json!({ "text": text }).to_string().into_response();
        }
        Some("action") => {
            let action = question["actions"][0]["action_id"].as_str().unwrap_or_default();
            return json!({ "text": format!("I heard a click: {action}") })
                .to_string()
                .into_response();
        }
        Some("feedback") => return StatusCode::NO_CONTENT.into_response(),
        _ => {}
    }
    if let Some(documents) = text.strip_prefix("markdown:") {
        return markdown_answer(documents, running);
    }
    if let Some(answer) = text.strip_prefix("json ") {
        return answer.to_owned().into_response();
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

/// Returns one document as JSON for `<seed>`, or a stream of `n` documents for `<seed>:<n>`, each
/// after a `reset` event.
fn markdown_answer(documents: &str, running: RunningRequest) -> Response {
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    let Some((seed, count)) = documents.split_once(':') else {
        return json!({ "markdown": markdown::document(number(documents)) })
            .to_string()
            .into_response();
    };
    let (seed, count) = (number(seed), number(count));
    let events = futures_util::stream::unfold((0, running), move |(n, running)| async move {
        let event = |name: &str, data: Value| format!("event: {name}\ndata: {data}\n\n");
        let events = match n {
            n if n > count => return None,
            n if n == count => event("done", json!({})),
            n => {
                if n > 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let texts = markdown::pieces(seed + n);
                let texts = texts.iter().map(|delta| event("text", json!({ "delta": delta })));
                event("reset", json!({})) + &texts.collect::<String>()
            }
        };
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(events)), (n + 1, running)))
    });
    let body = axum::body::Body::from_stream(events);
    ([("content-type", "text/event-stream")], body).into_response()
}

/// Words of a streamed answer.
#[derive(Debug, Clone, Copy)]
pub struct StreamedWords {
    words: usize,
    interval: Duration,
    bytes: usize,
    delay: Duration,
    /// True if the answer ends with an approval request: the text has the word `asks`.
    asks: bool,
}

impl StreamedWords {
    /// Parses `stream:<words>:<ms>:<bytes>`, optionally with `:<ms>`, the delay of the first word.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.strip_prefix("stream:")?.split_whitespace().next()?.split(':');
        let mut number = || numbers.next()?.parse::<u64>().ok();
        let (words, ms, bytes) = (number()?, number()?, number()?);
        let interval = Duration::from_millis(ms);
        let delay = Duration::from_millis(number().unwrap_or(0));
        let asks = text.split_whitespace().any(|word| word == "asks");
        Some(Self { words: words as usize, interval, bytes: bytes as usize, delay, asks })
    }

    /// Returns the text of the whole answer.
    pub fn text(&self) -> String {
        (1..=self.words).map(|n| self.word(n)).collect()
    }

    fn word(&self, n: usize) -> String {
        format!("{:x<width$} ", format!("w{n}"), width = self.bytes.saturating_sub(1))
    }

    fn answer(self, agent: Agent, running: RunningRequest, after: usize) -> Response {
        let id = running.1.clone();
        let events = futures_util::stream::unfold((after + 1, running), move |(n, running)| {
            let (agent, id) = (agent.clone(), id.clone());
            async move {
                if n > self.words + 1 {
                    return None;
                }
                if n > 1 {
                    tokio::time::sleep(self.interval).await;
                }
                let event = match n > self.words {
                    true if self.asks => {
                        let ask = json!({ "id": "deploy-7", "prompt": "Deploy?" });
                        format!("id: {n}\nevent: ask\ndata: {ask}\n\n")
                    }
                    true => format!("id: {n}\nevent: done\ndata: {{}}\n\n"),
                    false => {
                        let data = json!({ "delta": self.word(n) });
                        format!(": keep-alive\n\nid: {n}\nevent: text\ndata: {data}\n\n")
                    }
                };
                let mut streams = agent.streams.lock().unwrap_or_else(PoisonError::into_inner);
                streams.entry(id).or_insert_with(Instant::now);
                drop(streams);
                Some((Ok::<_, std::convert::Infallible>(Bytes::from(event)), (n + 1, running)))
            }
        });
        let body = axum::body::Body::from_stream(events);
        ([("content-type", "text/event-stream")], body).into_response()
    }
}
