//! Calls of agents over HTTP: signs and sends requests, reads responses, classifies failures.

use super::{
    event_stream::AgentStream,
    metrics::AgentMetrics,
    reply::{AgentReply, parse_reply},
    request::AgentRequest,
    ssrf_guard::{BlockedAddressError, GuardedResolver, Networks, SystemResolver},
};
use reqwest::{
    RequestBuilder, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde::Serialize;
use serde_json::Value;
use shared::{
    domain::AgentMode,
    runtime::telemetry::{self, ErrorChain},
    signature,
    slack::repair,
    store::{Agent, AgentHeaders, CurrentHeaders},
};
use std::{error::Error, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Maximum bytes of a response. Slack's limit for a message is 40,000 characters.
const RESPONSE_BYTES_MAX: usize = 256 * 1024;
/// Timeout for establishing a connection. An agent that accepts none in this time is unavailable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a cancellation.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum characters of an agent's error that are kept.
pub(super) const ERROR_CHARS: usize = 200;

/// Client of agents. Cheap to clone.
#[derive(Clone)]
pub struct AgentClient {
    pub(super) networks: Networks,
    /// HTTPS client for all allowed addresses.
    pub(super) https: reqwest::Client,
    /// Client with or without TLS, only for networks in TIDEGATE_AGENT_ALLOWED_NETWORKS.
    pub(super) plain_http: reqwest::Client,
    /// Maximum silence within an event stream.
    silence: Duration,
    pub metrics: AgentMetrics,
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
    /// The agent refused the delivery by the protocol's error: it will never accept it.
    Refused,
}

/// Answer of an agent.
pub enum Answer {
    /// JSON: a reply, or `None` if the agent has none.
    Reply(Option<AgentReply>),
    /// Event stream.
    Stream(AgentStream),
}

pub(super) struct Response {
    pub(super) status: u16,
    /// Body, or the failure to read it.
    pub(super) body: Result<Vec<u8>, AgentError>,
    pub(super) retry_after: Option<Duration>,
}

impl AgentClient {
    /// Creates a client for agents at public addresses and in `networks`. A stream fails after
    /// `silence`.
    pub fn new(networks: Networks, silence: Duration) -> reqwest::Result<Self> {
        let client = |named_only| {
            let guard = GuardedResolver {
                lookup: Arc::new(SystemResolver),
                networks: networks.clone(),
                named_only,
            };
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy() // a proxy would resolve names without the guard
                .dns_resolver(Arc::new(guard))
                .connect_timeout(CONNECT_TIMEOUT)
                .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        };
        let https = client(false).https_only(true).build()?;
        let plain_http = client(true).build()?;
        Ok(Self { networks, https, plain_http, silence, metrics: AgentMetrics::default() })
    }

    /// Sends a request. `id` is the same in every attempt. `resume_after` is the id of the last
    /// event of an earlier attempt.
    pub async fn ask(
        &self,
        agent: &Agent,
        id: &str,
        request: &AgentRequest<'_>,
        resume_after: Option<&str>,
    ) -> Result<Answer, AgentError> {
        let answer = self.try_ask(agent, id, request, resume_after).await;
        let label = |answer: &Answer| match answer {
            Answer::Reply(Some(_)) => "answered",
            Answer::Reply(None) => "silent",
            Answer::Stream(_) => "streams",
        };
        self.metrics.record(AgentMode::Reply, &answer, label);
        answer
    }

    async fn try_ask(
        &self,
        agent: &Agent,
        id: &str,
        request: &AgentRequest<'_>,
        resume_after: Option<&str>,
    ) -> Result<Answer, AgentError> {
        #[derive(Serialize)]
        struct RequestBody<'a> {
            id: &'a str,
            #[serde(flatten)]
            request: &'a AgentRequest<'a>,
        }
        let invalid = |reason: String| unusable(agent, &reason);
        let body = serde_json::to_vec(&RequestBody { id, request })
            .map_err(|error| invalid(error.to_string()))?;
        let deadline = Instant::now() + agent.timeout;
        let response = self
            .begin_with_headers(agent, deadline, || {
                let request = self
                    .signed_post(agent, id, &agent.url, body.clone())?
                    .header("accept", "text/event-stream, application/json");
                Ok(match resume_after {
                    Some(last) => request.header("last-event-id", last),
                    None => request,
                })
            })
            .await?;
        let media = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_stream = media.is_some_and(is_event_stream) && response.status().as_u16() == 200;
        if is_stream {
            return Ok(Answer::Stream(AgentStream::of_response(agent, response, self.silence)));
        }
        let response = read(agent, response, deadline).await;
        if !(200..300).contains(&response.status) {
            return Err(refusal(agent, &response));
        }
        parse_reply(&response.body?).map(Answer::Reply).map_err(|reason| invalid(reason.into()))
    }

    /// Notifies an agent that a run was cancelled: POST to `cancel` below its URL.
    pub async fn cancel(&self, agent: &Agent, run: &str, reason: &str) -> Result<(), AgentError> {
        let result = self.try_cancel(agent, run, reason).await;
        self.metrics.record(AgentMode::Reply, &result, |()| "cancelled");
        result
    }

    async fn try_cancel(&self, agent: &Agent, run: &str, reason: &str) -> Result<(), AgentError> {
        let mut url: Url =
            agent.url.parse().map_err(|_| unusable(agent, "its URL is malformed"))?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("cancel");
        }
        let body = serde_json::json!({ "run": run, "reason": reason }).to_string();
        let id = format!("{run}:cancel");
        let deadline = Instant::now() + agent.timeout.min(CANCEL_TIMEOUT);
        let request = || self.signed_post(agent, &id, url.as_str(), body.clone().into());
        let response = self.begin_with_headers(agent, deadline, request).await?;
        match response.status().as_u16() {
            200..300 => Ok(()),
            _ => Err(refusal(agent, &read(agent, response, deadline).await)),
        }
    }

    /// Sends a request with the agent's current headers. If the agent answers 401 or 403, sends it
    /// again with the previous headers, as long as they are kept.
    pub(super) async fn begin_with_headers(
        &self,
        agent: &Agent,
        deadline: Instant,
        request: impl Fn() -> Result<RequestBuilder, AgentError>,
    ) -> Result<reqwest::Response, AgentError> {
        let CurrentHeaders { current, previous } = &agent.headers;
        let response = begin(agent, with_headers(request()?, current), deadline).await?;
        match (response.status().as_u16(), previous) {
            (401 | 403, Some(previous)) => {
                begin(agent, with_headers(request()?, previous), deadline).await
            }
            _ => Ok(response),
        }
    }

    /// Returns a POST request with the signature of Standard Webhooks.
    fn signed_post(
        &self,
        agent: &Agent,
        id: &str,
        url: &str,
        body: Vec<u8>,
    ) -> Result<RequestBuilder, AgentError> {
        let now = signature::unix_now();
        let signature = signature::standard_webhooks(&agent.secret, id, now, &body)
            .ok_or_else(|| unusable(agent, "its secret whsec_… is malformed"))?;
        let request = self.post(agent, url)?;
        Ok(request
            .header("content-type", "application/json")
            .header("idempotency-key", id)
            .header("webhook-id", id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", signature)
            .body(body))
    }

    /// Returns a POST request to the agent if its address is allowed.
    pub(super) fn post(&self, agent: &Agent, url: &str) -> Result<RequestBuilder, AgentError> {
        let invalid = |reason: String| unusable(agent, &reason);
        let url: Url = url.parse().map_err(|_| invalid("its URL is malformed".into()))?;
        let plain_http =
            self.networks.check(&url).map_err(|refused| invalid(refused.to_string()))?;
        let client = if plain_http { &self.plain_http } else { &self.https };
        Ok(client.post(url))
    }
}

/// Adds headers, whose values are not logged, and the trace context of the current span.
fn with_headers(request: RequestBuilder, headers: &AgentHeaders) -> RequestBuilder {
    let mut all = HeaderMap::new();
    for (name, value) in headers.iter() {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(mut value)) = (name, HeaderValue::from_str(value.expose())) {
            value.set_sensitive(true);
            all.insert(name, value);
        }
    }
    let request = request.headers(all);
    match telemetry::traceparent(&tracing::Span::current()) {
        Some(context) => request.header("traceparent", context.as_str()),
        None => request,
    }
}

/// Sends a request and waits for the head of the response.
async fn begin(
    agent: &Agent,
    request: RequestBuilder,
    deadline: Instant,
) -> Result<reqwest::Response, AgentError> {
    let begun = tokio::time::timeout_at(deadline, request.send()).await;
    begun.map_err(|_| too_slow(agent))?.map_err(|error| failed(agent, error))
}

/// Reads the body of a response.
pub(super) async fn read(
    agent: &Agent,
    mut response: reqwest::Response,
    deadline: Instant,
) -> Response {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = retry_after.map(Duration::from_secs);
    let body = async {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(agent, error))? {
            if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
                let reason = format!("its answer exceeds {RESPONSE_BYTES_MAX} bytes");
                return Err(unusable(agent, &reason));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    let body = tokio::time::timeout_at(deadline, body).await;
    Response { status, body: body.unwrap_or_else(|_| Err(too_slow(agent))), retry_after }
}

fn failed(agent: &Agent, error: reqwest::Error) -> AgentError {
    let error = error.without_url();
    match blocked(&error) {
        Some(blocked) => unusable(agent, &blocked.to_string()),
        None => AgentError {
            kind: FailureKind::Unavailable,
            message: format!("agent {}: {}", agent.id, ErrorChain(&error)),
            retry_after: None,
        },
    }
}

fn too_slow(agent: &Agent) -> AgentError {
    let message = format!("agent {}: no answer within {:?}", agent.id, agent.timeout);
    AgentError { kind: FailureKind::Failing, message, retry_after: None }
}

fn is_event_stream(media: &str) -> bool {
    let kind = media.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("text/event-stream")
}

fn unusable(agent: &Agent, reason: &str) -> AgentError {
    let message = format!("agent {}: {reason}", agent.id);
    AgentError { kind: FailureKind::Unusable, message, retry_after: None }
}

/// Classifies a response without a reply. Only an error in the protocol's form is final: other 4xx
/// may come from a proxy or a deployment.
pub(super) fn refusal(agent: &Agent, response: &Response) -> AgentError {
    let status = response.status;
    let body = response.body.as_deref().unwrap_or_default();
    let body: Value = serde_json::from_str(&repair(body)).unwrap_or_default();
    let error = body["error"].as_str();
    let in_protocol = error.is_some();
    let error = error.unwrap_or_default().chars().filter(|c| !c.is_control());
    let error: String = error.take(ERROR_CHARS).collect();
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
pub(super) fn blocked(error: &reqwest::Error) -> Option<BlockedAddressError> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(blocked) = error.downcast_ref::<BlockedAddressError>() {
            return Some(blocked.clone());
        }
        next = error.source();
    }
    None
}
