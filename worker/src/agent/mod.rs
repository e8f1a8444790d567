//! Agents: HTTP endpoints that answer. The protocol is told in `worker/docs/agents.md`.
//!
//! In: an agent, and a question (mode `reply`) or a webhook as Slack sent it (mode `forward`, see [`forward`]). Out: its
//! answer, or why there is none: *away*, so that it is asked again for as long as a webhook is kept, or *wrong*, which uses
//! up one of the webhook's attempts. Every call has an id that is the same however often it is made: a crash between the
//! answer and the commit repeats it. Redirects are not followed, and addresses are checked ([`address`]).

pub mod address;
mod counted;
pub mod forward;
mod record;
mod sign;

pub use counted::AgentCalls;
pub use record::Record;

use address::{Guard, Networks, Refused, System};
use reqwest::{RequestBuilder, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{
    store::Agent,
    telemetry::Chain,
    types::{AgentMode, ChannelId, ConnectionId, TeamId},
};
use std::{
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// An agent has this long.
const TIMEOUT: Duration = Duration::from_secs(20);
/// An answer may be this long, in bytes; Slack's own limit for a message is 40,000 characters.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// So much of what an agent says is wrong is kept.
const ERROR_CHARS: usize = 200;

/// Calls agents. Cheap to clone.
#[derive(Clone)]
pub struct Agents {
    networks: Networks,
    /// For anywhere that an agent may be.
    by_tls: reqwest::Client,
    /// For networks that the deployment names.
    in_clear: reqwest::Client,
    /// Where calls are recorded instead of being made.
    record: Option<Record>,
    /// How calls went.
    pub counted: AgentCalls,
}

/// What an agent is asked.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the JSON's names: worker/docs/agents.md
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

/// What an agent answers: something to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `text` and `blocks`.
    pub message: Value,
    /// Only who asked sees it.
    pub ephemeral: bool,
    /// In the thread of what was asked, or not; else as fits the conversation.
    pub thread: Option<bool>,
}

/// Why an agent gave no answer.
#[derive(Debug)]
pub enum AgentError {
    /// Away, slow or overloaded: it may answer later.
    Away(String),
    /// It answered, but nothing we can use; or it is where no agent may be.
    Wrong(String),
}

/// What came back over HTTP.
struct Response {
    status: u16,
    body: Vec<u8>,
}

impl Agents {
    /// Agents may be at public addresses, and in these networks.
    pub fn new(networks: Networks) -> reqwest::Result<Self> {
        let client = |named_only| {
            let guard = Guard { lookup: Arc::new(System), networks: networks.clone(), named_only };
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy() // a proxy would resolve names behind the guard's back
                .dns_resolver(Arc::new(guard))
                .timeout(TIMEOUT)
                .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        };
        let by_tls = client(false).https_only(true).build()?;
        let in_clear = client(true).build()?;
        Ok(Self { networks, by_tls, in_clear, record: None, counted: AgentCalls::default() })
    }

    /// The same, but nobody is called: every agent says nothing, and what it would have been asked is recorded.
    pub fn recording(&self) -> (Self, Record) {
        let record = Record::default();
        (Self { record: Some(record.clone()), ..self.clone() }, record)
    }

    /// Whether calls are only recorded.
    pub fn is_recording(&self) -> bool {
        self.record.is_some()
    }

    /// Asks. `id` is the same for every try of this question. `None`: the agent says nothing.
    pub async fn ask(
        &self,
        agent: &Agent,
        id: &str,
        question: &Question<'_>,
    ) -> Result<Option<Answer>, AgentError> {
        if let Some(record) = &self.record {
            record.note(format!("ask agent {}", agent.id));
            return Ok(None);
        }
        let answer = self.try_to_ask(agent, id, question).await;
        let word = |answer: &Option<Answer>| if answer.is_some() { "answered" } else { "silent" };
        self.counted.called(AgentMode::Reply, &answer, word);
        answer
    }

    async fn try_to_ask(
        &self,
        agent: &Agent,
        id: &str,
        question: &Question<'_>,
    ) -> Result<Option<Answer>, AgentError> {
        #[derive(Serialize)]
        struct Asked<'a> {
            id: &'a str,
            #[serde(flatten)]
            question: &'a Question<'a>,
        }
        let wrong = |why: String| AgentError::Wrong(format!("agent {}: {why}", agent.id));
        let body = serde_json::to_vec(&Asked { id, question })
            .map_err(|error| wrong(error.to_string()))?;
        let now = unix_now();
        let request = self
            .post(agent)?
            .header("content-type", "application/json")
            .header("idempotency-key", id)
            .header("webhook-id", id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", sign::standard_webhooks(&agent.secret, id, now, &body))
            .body(body);
        let response = send(agent, request).await?;
        if !(200..300).contains(&response.status) {
            return Err(refusal(agent, &response));
        }
        read(&response.body).map_err(|why| wrong(why.into()))
    }

    /// The beginning of a call, if the agent is where one may be.
    fn post(&self, agent: &Agent) -> Result<RequestBuilder, AgentError> {
        let wrong = |why: String| AgentError::Wrong(format!("agent {}: {why}", agent.id));
        let url: Url = agent.url.parse().map_err(|_| wrong("its address is no URL".into()))?;
        let in_clear = self.networks.check(&url).map_err(|refused| wrong(refused.to_string()))?;
        Ok(if in_clear { self.in_clear.post(url) } else { self.by_tls.post(url) })
    }
}

async fn send(agent: &Agent, request: RequestBuilder) -> Result<Response, AgentError> {
    let failed = |error: reqwest::Error| {
        let error = error.without_url();
        if let Some(refused) = refused(&error) {
            return AgentError::Wrong(format!("agent {}: {refused}", agent.id));
        }
        AgentError::Away(format!("agent {}: {}", agent.id, Chain(&error)))
    };
    let mut response = request.send().await.map_err(failed)?;
    let (status, mut body) = (response.status().as_u16(), Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            let why = format!("agent {} answered over {ANSWER_BYTES_MAX} bytes", agent.id);
            return Err(AgentError::Wrong(why));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Response { status, body })
}

/// What an answer that is none means: overloaded or broken servers are away, all else is wrong.
fn refusal(agent: &Agent, response: &Response) -> AgentError {
    #[derive(Deserialize)]
    struct Said {
        error: String,
    }
    let status = response.status;
    let said = serde_json::from_slice(&response.body)
        .map_or_else(|_| String::new(), |said: Said| said.error);
    let said: String = said.chars().filter(|c| !c.is_control()).take(ERROR_CHARS).collect();
    let why = match said.is_empty() {
        true => format!("agent {} answered {status}", agent.id),
        false => format!("agent {} answered {status}: {said}", agent.id),
    };
    match status {
        408 | 425 | 429 | 500.. => AgentError::Away(why),
        _ => AgentError::Wrong(why),
    }
}

/// Whether a call failed because its name leads where no agent may be.
fn refused(error: &reqwest::Error) -> Option<Refused> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Some(refused.clone());
        }
        next = error.source();
    }
    None
}

/// Takes out of an answer what it may decide; whatever else stands there goes nowhere near Slack.
fn read(answer: &[u8]) -> Result<Option<Answer>, &'static str> {
    #[derive(Deserialize)]
    struct Read {
        #[serde(default)]
        text: String,
        #[serde(default)]
        blocks: Vec<Value>,
        #[serde(default)]
        ephemeral: bool,
        thread: Option<bool>,
    }
    if answer.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let Read { text, blocks, ephemeral, thread } =
        serde_json::from_slice(answer).map_err(|_| "its answer is not {\"text\":…}")?;
    let message = match (text.is_empty(), blocks.is_empty()) {
        (true, true) => return Ok(None),
        (false, true) => json!({ "text": text }),
        (_, false) => json!({ "text": text, "blocks": blocks }),
    };
    Ok(Some(Answer { message, ephemeral, thread }))
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
        let answer = Answer { message: json!({"text": "hi"}), ephemeral: true, thread: None };
        assert_eq!(said, Ok(Some(answer)));
        for nothing in [&b""[..], b"\n", b"{}", br#"{"text":""}"#] {
            assert_eq!(read(nothing), Ok(None));
        }
        assert!(read(b"hi").is_err() && read(br#"{"blocks":"x"}"#).is_err());
    }
}
