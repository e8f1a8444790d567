//! Client of agents: HTTP endpoints that answer. `worker/docs/agents.md` describes the protocol.
//!
//! Called by dispatch. An agent gets a request (mode `reply`) or a webhook as Slack sent it (mode
//! `forward`). A call has the same id in every attempt, since a crash before the commit repeats it.
//! A failure is classified by its meaning for agent and delivery. Redirects are not followed, and
//! addresses are checked by [`ssrf_guard`].

mod forward;
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

/// Maximum bytes of a response. Slack's limit for a message is 40,000 characters.
const RESPONSE_BYTES_MAX: usize = 256 * 1024;
/// Maximum characters of an agent's error that are kept.
const ERROR_CHARS: usize = 200;

/// Client of agents. Cheap to clone.
#[derive(Clone)]
pub struct AgentClient {
    networks: Networks,
    /// Client for all allowed addresses.
    https: reqwest::Client,
    /// Client for networks of TIDEGATE_AGENT_NETWORKS.
    plain_http: reqwest::Client,
    pub metrics: AgentMetrics,
}

/// Request to an agent in mode `reply`.
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

/// Reply of an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentReply {
    /// Message with `text` and `blocks`.
    pub message: Value,
    /// True if only the author of the message sees the reply.
    pub ephemeral: bool,
    /// True for a reply in a thread; by default that depends on the conversation.
    pub thread: Option<bool>,
}

/// Failure of a call to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentError {
    pub kind: FailureKind,
    /// Agent, status and the agent's error, for operators.
    pub message: String,
    pub retry_after: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The agent or a proxy before it is unavailable or overloaded: counts for the circuit breaker.
    Unavailable,
    /// The agent timed out or answered 500: counts for the circuit breaker, and against the
    /// delivery if other deliveries succeed.
    Failing,
    /// The answer is invalid: counts against the delivery.
    Unusable,
    /// The agent refused the delivery in the protocol: it is never going to accept it.
    Refused,
}

struct Response {
    status: u16,
    body: Vec<u8>,
    retry_after: Option<Duration>,
}

impl AgentClient {
    /// Creates a client for agents at public addresses and in `networks`.
    pub fn new(networks: Networks) -> reqwest::Result<Self> {
        let client = |named_only| {
            let guard = Guard { lookup: Arc::new(System), networks: networks.clone(), named_only };
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy() // a proxy would resolve names behind the guard's back
                .dns_resolver(Arc::new(guard))
                .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        };
        let https = client(false).https_only(true).build()?;
        let plain_http = client(true).build()?;
        Ok(Self { networks, https, plain_http, metrics: AgentMetrics::default() })
    }

    /// Sends a request. `id` is the same in every attempt. Returns `None` if the agent has no
    /// reply.
    pub async fn ask(
        &self,
        agent: &Agent,
        id: &str,
        request: &AgentRequest<'_>,
    ) -> Result<Option<AgentReply>, AgentError> {
        let answer = self.try_ask(agent, id, request).await;
        let label =
            |answer: &Option<AgentReply>| if answer.is_some() { "answered" } else { "silent" };
        self.metrics.record(AgentMode::Reply, &answer, label);
        answer
    }

    async fn try_ask(
        &self,
        agent: &Agent,
        id: &str,
        request: &AgentRequest<'_>,
    ) -> Result<Option<AgentReply>, AgentError> {
        #[derive(Serialize)]
        struct RequestBody<'a> {
            id: &'a str,
            #[serde(flatten)]
            request: &'a AgentRequest<'a>,
        }
        let invalid = |reason: String| unusable(agent, &reason);
        let body = serde_json::to_vec(&RequestBody { id, request })
            .map_err(|error| invalid(error.to_string()))?;
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
        read(&response.body).map_err(|reason| invalid(reason.into()))
    }

    /// Returns a POST request to the agent if its address is allowed.
    fn post(&self, agent: &Agent) -> Result<RequestBuilder, AgentError> {
        let invalid = |reason: String| unusable(agent, &reason);
        let url: Url = agent.url.parse().map_err(|_| invalid("its address is no URL".into()))?;
        let plain_http =
            self.networks.check(&url).map_err(|refused| invalid(refused.to_string()))?;
        let client = if plain_http { &self.plain_http } else { &self.https };
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
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            return Err(unusable(
                agent,
                &format!("its answer has over {RESPONSE_BYTES_MAX} bytes"),
            ));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Response { status, body, retry_after })
}

fn unusable(agent: &Agent, reason: &str) -> AgentError {
    let message = format!("agent {}: {reason}", agent.id);
    AgentError { kind: FailureKind::Unusable, message, retry_after: None }
}

/// Classifies a response without a reply. Only an error in the protocol is final: other 4xx may
/// come from a proxy or a deployment.
fn refusal(agent: &Agent, response: &Response) -> AgentError {
    #[derive(Deserialize)]
    struct Body {
        error: String,
    }
    let status = response.status;
    let error = serde_json::from_slice(&response.body).ok().map(|body: Body| body.error);
    let in_protocol = error.is_some();
    let error: String =
        error.unwrap_or_default().chars().filter(|c| !c.is_control()).take(ERROR_CHARS).collect();
    let message = match error.is_empty() {
        true => format!("agent {} answered {status}", agent.id),
        false => format!("agent {} answered {status}: {error}", agent.id),
    };
    let kind = match status {
        400 | 422 if in_protocol => FailureKind::Refused,
        500 => FailureKind::Failing,
        401 | 403 | 404 | 408 | 425 | 429 | 501.. => FailureKind::Unavailable,
        _ => FailureKind::Unusable,
    };
    AgentError { kind, message, retry_after: response.retry_after }
}

/// Returns the blocked address that made a call fail, if that is the cause.
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

/// Parses a reply. Fields that an agent may not set are dropped, null means absent.
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
    fn reads_only_allowed_fields_of_a_reply() {
        let reply = read(br#"{"text":"hi","ephemeral":true,"channel":"C9","as_user":true}"#);
        let answer = AgentReply { message: json!({"text": "hi"}), ephemeral: true, thread: None };
        assert_eq!(reply, Ok(Some(answer)));
        for nothing in [&b""[..], b"\n", b"{}", br#"{"text":""}"#] {
            assert_eq!(read(nothing), Ok(None));
        }
        assert!(read(b"hi").is_err() && read(br#"{"blocks":"x"}"#).is_err());
        let null = read(br#"{"text":"hi","blocks":null,"thread":null}"#).expect("an answer");
        assert_eq!(null.map(|answer| answer.message), Some(json!({"text": "hi"})));
    }
}
