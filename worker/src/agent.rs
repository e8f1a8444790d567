//! Agents: HTTP endpoints that answer.
//!
//! In: an agent and a question. Out: a Slack message to post, or none. The request is JSON, signed by Standard Webhooks
//! (`webhook-id`, `webhook-timestamp`, `webhook-signature`), and carries an idempotency key that is the same
//! however often it is sent: a crash between the answer and the commit repeats the call.
//!
//! ```text
//! POST {"type":"message","connection":…,"team":…,"channel":…,"user":…,"text":…,"ts":…,"thread_ts":…,"session":1}
//! 200  {"text":"…"} or {"text":"…","blocks":[…]};  204, or an empty text: nothing is said
//! ```
//!
//! `session` counts how often the conversation was begun anew (`/lobu new`, `/lobu clear`): what was said in an earlier one
//! is not part of it. `"type":"forget"`, without a text, asks to delete what is kept of the conversation; any 2xx is taken
//! for a yes.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::Sha256;
use shared::{
    secrets::Secret,
    store::Agent,
    types::{ChannelId, ConnectionId, TeamId},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// An agent has this long.
const TIMEOUT: Duration = Duration::from_secs(20);
/// An answer may be this long, in bytes; Slack's own limit for a message is 40,000 characters.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Calls agents.
#[derive(Clone)]
pub struct Agents {
    http: reqwest::Client,
    /// Where calls are recorded instead of being made.
    record: Option<Record>,
}

/// Calls that were not made. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Record(Arc<Mutex<Vec<String>>>);

impl Record {
    /// What was recorded since this was asked last.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, call: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}

/// What an agent is asked.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the JSON's names, above
pub struct Question<'a> {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub connection: ConnectionId,
    pub team: &'a TeamId,
    pub channel: &'a ChannelId,
    pub user: &'a str,
    pub text: &'a str,
    pub ts: &'a str,
    pub thread_ts: Option<&'a str>,
    pub session: i64,
}

/// Why an agent gave no answer.
#[derive(Debug)]
pub enum AgentError {
    /// Away, slow or overloaded: it may answer later.
    Away(String),
    /// It answered, but nothing we can use.
    Wrong(String),
}

impl Agents {
    /// No redirects: an agent's address is what its organisation declared.
    pub fn new() -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self { http, record: None })
    }

    /// The same, but nobody is called: every agent says nothing, and what it would have been asked is recorded.
    pub fn recording(&self) -> (Self, Record) {
        let record = Record::default();
        (Self { record: Some(record.clone()), ..self.clone() }, record)
    }

    /// Asks. `id` is the same for every try of this question. `None`: the agent says nothing.
    pub async fn ask(
        &self,
        agent: &Agent,
        id: &str,
        question: &Question<'_>,
    ) -> Result<Option<serde_json::Value>, AgentError> {
        if let Some(record) = &self.record {
            record.note(format!("ask agent {}", agent.id));
            return Ok(None);
        }
        let body = serde_json::to_vec(question).map_err(|e| AgentError::Wrong(e.to_string()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let request = self
            .http
            .post(&agent.url)
            .header("content-type", "application/json")
            .header("idempotency-key", id)
            .header("webhook-id", id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", sign(&agent.secret, id, now, &body))
            .body(body);
        let away = |error: reqwest::Error| {
            AgentError::Away(format!("agent {}: {}", agent.id, error.without_url()))
        };
        let mut response = request.send().await.map_err(away)?;
        let status = response.status();
        if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
            return Err(AgentError::Away(format!("agent {} answered {status}", agent.id)));
        }
        if !status.is_success() {
            return Err(AgentError::Wrong(format!("agent {} answered {status}", agent.id)));
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(AgentError::Wrong(format!(
                    "agent {} answered over {ANSWER_BYTES_MAX} bytes",
                    agent.id
                )));
            }
            answer.extend_from_slice(&chunk);
        }
        if answer.is_empty() {
            return Ok(None);
        }
        read(&answer).map_err(|why| AgentError::Wrong(format!("agent {}: {why}", agent.id)))
    }
}

/// Takes `text` and `blocks` out of an answer; whatever else stands there goes nowhere near Slack.
fn read(answer: &[u8]) -> Result<Option<serde_json::Value>, &'static str> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default)]
        text: String,
        blocks: Option<Vec<serde_json::Value>>,
    }
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| "its answer is not {\"text\":…}")?;
    Ok(match (answer.text, answer.blocks) {
        (text, None) if text.is_empty() => None,
        (text, None) => Some(serde_json::json!({ "text": text })),
        (text, Some(blocks)) => Some(serde_json::json!({ "text": text, "blocks": blocks })),
    })
}

/// `v1,<base64>` over `<id>.<timestamp>.<body>`; a secret `whsec_<base64>` is used decoded, any other as it is.
fn sign(secret: &Secret, id: &str, timestamp: u64, body: &[u8]) -> String {
    let text = secret.expose();
    let key = text
        .strip_prefix("whsec_")
        .and_then(|key| BASE64.decode(key).ok())
        .unwrap_or_else(|| text.into());
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes a key of any length");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let secret =
            Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into()).expect("not empty");
        let signature =
            sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn only_text_and_blocks_of_an_answer_are_used() {
        let said = read(br#"{"text":"hi","channel":"C9","as_user":true}"#);
        assert_eq!(said, Ok(Some(serde_json::json!({"text": "hi"}))));
        assert_eq!(read(br#"{"text":""}"#), Ok(None));
        assert!(read(b"hi").is_err());
    }
}
