//! JSON of the requests to agents.

use serde::Serialize;
use serde_json::Value;
use shared::domain::{ChannelId, ConnectionId, TeamId};

/// Request to an agent in mode `reply`.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the JSON's names: worker/docs/agents.md
pub struct AgentRequest<'a> {
    /// Version of the protocol. Both sides ignore unknown fields.
    pub protocol: u8,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Id of the run, the same in every attempt.
    pub run: &'a str,
    pub trigger: Trigger<'a>,
    pub connection: ConnectionId,
    pub team: &'a TeamId,
    pub channel: &'a ChannelId,
    pub user: &'a str,
    pub text: &'a str,
    pub ts: &'a str,
    pub thread_ts: Option<&'a str>,
    pub session: i64,
    #[serde(flatten)]
    pub content: MessageContent,
    #[serde(flatten)]
    pub subject: Subject,
}

/// Subject of a request that is not a single message.
#[derive(Debug, Default, Serialize)]
#[allow(missing_docs)] // the JSON's names
pub struct Subject {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalAnswer>,
    /// Clicked elements, as Slack sent them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<Value>,
    /// Messages that are answered together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<MessagePart>,
}

/// One of the messages that are answered together.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the JSON's names
pub struct MessagePart {
    pub user: String,
    pub ts: String,
    pub text: String,
    #[serde(flatten)]
    pub content: MessageContent,
}

/// Decision on a question of the agent to people.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the JSON's names
pub struct ApprovalAnswer {
    pub id: String,
    pub run: String,
    pub decision: String,
    /// `None` if nobody decided in time.
    pub user: Option<String>,
}

/// Cause of a request.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the JSON's names
pub struct Trigger<'a> {
    pub kind: &'static str,
    pub ts: &'a str,
    pub event_id: Option<&'a str>,
}

/// Content of a message besides its text, as Slack sent it.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)] // Slack's names
pub struct MessageContent {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Value>,
}
