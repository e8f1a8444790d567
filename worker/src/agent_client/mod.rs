//! Agents: HTTP endpoints that answer. The protocol is described in `worker/docs/agents.md`.
//!
//! An agent is asked a question (mode `reply`), or gets a webhook as Slack sent it (mode `forward`, see [`forward`]). Every
//! call has an id that is the same however often it is made: a crash between the answer and the commit repeats it. A failure
//! is classified by what it says about the agent and about the delivery. Redirects are not followed, and addresses are checked
//! ([`ssrf_guard`]).

pub mod forward;
mod metrics;
mod signature;
mod ssrf_guard;

pub use forward::ForwardResult;
pub use metrics::AgentMetrics;
pub use ssrf_guard::Networks;

use reqwest::{RequestBuilder, Url, header::RETRY_AFTER};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{
    store::Agent,
    telemetry::Chain,
    types::{AgentMode, ChannelId, ConnectionId, TeamId},
};
use ssrf_guard::{BlockedAddressError, Guard, System};
use std::{
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// An answer may be this long, in bytes; Slack's own limit for a message is 40,000 characters.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// So much of what an agent says is wrong is kept.
const ERROR_CHARS: usize = 200;

/// Calls agents. Cheap to clone.
#[derive(Clone)]
pub struct AgentClient {
    networks: Networks,
    /// For anywhere that an agent may be.
    by_tls: reqwest::Client,
    /// For networks that the deployment names.
    in_clear: reqwest::Client,
    /// Calls by how they ended.
    pub metrics: AgentMetrics,
}

/// What an agent is asked.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the JSON's names: worker/docs/agents.md
pub struct AgentRequest<'a> {
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

/// What an agent answers: something to say.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentReply {
    /// `text` and `blocks`.
    pub message: Value,
    /// Only who asked sees it.
    pub ephemeral: bool,
    /// In the thread of what was asked, or not; else as fits the conversation.
    pub thread: Option<bool>,
}

/// Why an agent gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentError {
    /// What it means for agent and delivery.
    pub kind: FailureKind,
    /// What failed, for operators: agent, status, and its own words, bounded.
    pub message: String,
    /// The wait that the agent asked for.
    pub retry_after: Option<Duration>,
}

/// What a failure says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The agent is away or overloaded, or something before it answers in its place: counts for the circuit breaker.
    Unavailable,
    /// It took too long, or answered 500: counts for the circuit breaker, and against the delivery while it answers others.
    Failing,
    /// It answered, but not usefully: counts against the delivery.
    Unusable,
    /// It said in the protocol that it will never take this.
    Refused,
}

/// What came back over HTTP.
struct Response {
    status: u16,
    body: Vec<u8>,
    retry_after: Option<Duration>,
}

impl AgentClient {
    /// Agents may be at public addresses, and in these networks.
    pub fn new(networks: Networks) -> reqwest::Result<Self> {
        let client = |named_only| {
            let guard = Guard { lookup: Arc::new(System), networks: networks.clone(), named_only };
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy() // a proxy would resolve names behind the guard's back
                .dns_resolver(Arc::new(guard))
                .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        };
        let by_tls = client(false).https_only(true).build()?;
        let in_clear = client(true).build()?;
        Ok(Self { networks, by_tls, in_clear, metrics: AgentMetrics::default() })
    }

    /// Asks. `id` is the same for every try of this question. `None`: the agent says nothing.
    pub async fn ask(
        &self,
        agent: &Agent,
        id: &str,
        question: &AgentRequest<'_>,
    ) -> Result<Option<AgentReply>, AgentError> {
        let answer = self.try_to_ask(agent, id, question).await;
        let word =
            |answer: &Option<AgentReply>| if answer.is_some() { "answered" } else { "silent" };
        self.metrics.record(AgentMode::Reply, &answer, word);
        answer
    }

    async fn try_to_ask(
        &self,
        agent: &Agent,
        id: &str,
        question: &AgentRequest<'_>,
    ) -> Result<Option<AgentReply>, AgentError> {
        #[derive(Serialize)]
        struct Asked<'a> {
            id: &'a str,
            #[serde(flatten)]
            question: &'a AgentRequest<'a>,
        }
        let wrong = |why: String| unusable(agent, &why);
        let body = serde_json::to_vec(&Asked { id, question })
            .map_err(|error| wrong(error.to_string()))?;
        let now = unix_now();
        let request = self
            .post(agent)?
            .header("content-type", "application/json")
            .header("idempotency-key", id)
            .header("webhook-id", id)
            .header("webhook-timestamp", now)
            .header(
                "webhook-signature",
                signature::standard_webhooks(&agent.secret, id, now, &body),
            )
            .body(body);
        let response = send(agent, request).await?;
        if !(200..300).contains(&response.status) {
            return Err(refusal(agent, &response));
        }
        read(&response.body).map_err(|why| wrong(why.into()))
    }

    /// The beginning of a call, if the agent is where one may be.
    fn post(&self, agent: &Agent) -> Result<RequestBuilder, AgentError> {
        let wrong = |why: String| unusable(agent, &why);
        let url: Url = agent.url.parse().map_err(|_| wrong("its address is no URL".into()))?;
        let in_clear = self.networks.check(&url).map_err(|refused| wrong(refused.to_string()))?;
        let client = if in_clear { &self.in_clear } else { &self.by_tls };
        Ok(client.post(url).timeout(agent.timeout))
    }
}

async fn send(agent: &Agent, request: RequestBuilder) -> Result<Response, AgentError> {
    let failed = |error: reqwest::Error| {
        let error = error.without_url();
        match blocked(&error) {
            Some(blocked) => unusable(agent, &blocked.to_string()),
            None => AgentError {
                kind: if error.is_timeout() && !error.is_connect() {
                    FailureKind::Failing
                } else {
                    FailureKind::Unavailable
                },
                message: format!("agent {}: {}", agent.id, Chain(&error)),
                retry_after: None,
            },
        }
    };
    let mut response = request.send().await.map_err(failed)?;
    let (status, mut body) = (response.status().as_u16(), Vec::new());
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = retry_after.map(Duration::from_secs);
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(unusable(agent, &format!("its answer has over {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Response { status, body, retry_after })
}

fn unusable(agent: &Agent, why: &str) -> AgentError {
    let message = format!("agent {}: {why}", agent.id);
    AgentError { kind: FailureKind::Unusable, message, retry_after: None }
}

/// Classifies an answer that is none. Only what the protocol names is final: any other 4xx may be a proxy's, or a deploy's.
fn refusal(agent: &Agent, response: &Response) -> AgentError {
    #[derive(Deserialize)]
    struct Body {
        error: String,
    }
    let status = response.status;
    let said = serde_json::from_slice(&response.body).ok().map(|body: Body| body.error);
    let in_protocol = said.is_some();
    let said: String =
        said.unwrap_or_default().chars().filter(|c| !c.is_control()).take(ERROR_CHARS).collect();
    let message = match said.is_empty() {
        true => format!("agent {} answered {status}", agent.id),
        false => format!("agent {} answered {status}: {said}", agent.id),
    };
    let kind = match status {
        400 | 422 if in_protocol => FailureKind::Refused,
        500 => FailureKind::Failing,
        401 | 403 | 404 | 408 | 425 | 429 | 501.. => FailureKind::Unavailable,
        _ => FailureKind::Unusable,
    };
    AgentError { kind, message, retry_after: response.retry_after }
}

/// Whether a call failed because its name leads where no agent may be.
fn blocked(error: &reqwest::Error) -> Option<BlockedAddressError> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(blocked) = error.downcast_ref::<BlockedAddressError>() {
            return Some(blocked.clone());
        }
        next = error.source();
    }
    None
}

/// Takes out of an answer what it may decide. Read tolerantly: null means absent, and a field of another type is left out.
fn read(answer: &[u8]) -> Result<Option<AgentReply>, &'static str> {
    if answer.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let answer = answer.strip_prefix(b"\xef\xbb\xbf").unwrap_or(answer);
    let answer: Value =
        serde_json::from_slice(answer).map_err(|_| "its answer is not {\"text\":…}")?;
    let fields = answer.as_object().ok_or("its answer is not {\"text\":…}")?;
    let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let wrong_type =
        [("text", Value::is_string as fn(&Value) -> bool), ("blocks", Value::is_array)];
    if wrong_type.iter().any(|(name, is)| field(name).is_some_and(|value| !is(value))) {
        return Err("its answer has text that is no string, or blocks that are no list");
    }
    let text = field("text").and_then(Value::as_str).unwrap_or_default();
    let blocks = field("blocks").and_then(Value::as_array).filter(|blocks| !blocks.is_empty());
    let message = match (text.is_empty(), blocks) {
        (true, None) => return Ok(None),
        (false, None) => json!({ "text": text }),
        (_, Some(blocks)) => json!({ "text": text, "blocks": blocks }),
    };
    let flag = |name: &str| field(name).and_then(Value::as_bool);
    let ephemeral = flag("ephemeral").unwrap_or_default();
    Ok(Some(AgentReply { message, ephemeral, thread: flag("thread") }))
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_agent_may_decide_is_taken_from_its_answer() {
        let said = read(br#"{"text":"hi","ephemeral":true,"channel":"C9","as_user":true}"#);
        let answer = AgentReply { message: json!({"text": "hi"}), ephemeral: true, thread: None };
        assert_eq!(said, Ok(Some(answer)));
        for nothing in [&b""[..], b"\n", b"{}", br#"{"text":""}"#] {
            assert_eq!(read(nothing), Ok(None));
        }
        assert!(read(b"hi").is_err() && read(br#"{"blocks":"x"}"#).is_err());
        let null = read(br#"{"text":"hi","blocks":null,"thread":null}"#).expect("an answer");
        assert_eq!(null.map(|answer| answer.message), Some(json!({"text": "hi"})));
    }
}
