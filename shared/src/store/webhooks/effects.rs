//! Decisions on webhooks and their effects: the interface between `routing`, which decides, and the
//! commit of intake.
//!
//! A pure function derives a [`Decision`] from a webhook and the facts in Postgres. The transaction
//! of the commit applies its changes together with the fence, so that each happens once.

use super::Change;
use crate::store::{ApprovalUse, EditedMessage, LinkCodeUse};
use crate::{
    domain::{AgentId, AgentMode, AgentPolicies, OrgId, OutgoingMessage},
    stream::{DedupKey, Envelope},
};
use time::OffsetDateTime;

/// Webhook of the stream with its decision.
pub struct DecidedWebhook {
    /// Sequence in the stream.
    pub sequence: u64,
    /// Time at which the stream stored the webhook, by the server's clock.
    pub stored_at: OffsetDateTime,
    /// Webhook.
    pub envelope: Envelope,
    /// Ids for searches.
    pub ids: WebhookIds,
    /// Decision.
    pub decision: Decision,
}

impl DecidedWebhook {
    /// Returns the minute since 1970 in which the stream stored the webhook.
    pub fn minute(&self) -> i32 {
        minute_of(self.stored_at)
    }
}

/// Returns the minute since 1970 of a time of the stream.
pub fn minute_of(stored_at: OffsetDateTime) -> i32 {
    stored_at.unix_timestamp().div_euclid(60) as i32
}

/// Ids in a webhook's body, for logs and searches. Never text of people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // Slack's names
pub struct WebhookIds {
    pub event_id: Option<String>,
    pub team: Option<String>,
    pub channel: Option<String>,
    pub thread_ts: Option<String>,
    pub ts: Option<String>,
    pub user: Option<String>,
    /// `event_time`, or the second of a message's `ts`: the time of the webhook, equal in every
    /// copy.
    pub own_time: Option<i64>,
    /// Private channel or direct message that the bot was not known to be in.
    pub new_channel: Option<String>,
}

/// Decision on a webhook.
pub enum Decision {
    /// No effect and no dedup key.
    Ignore {
        /// Reason.
        reason: IgnoreReason,
        /// True if the webhook addressed the app. Such webhooks are recorded, because people ask
        /// about them.
        addressed: bool,
    },
    /// Can never be processed. An operator decides.
    DeadLetter {
        /// Reason, without details.
        reason: &'static str,
        /// Details.
        error: String,
    },
    /// Dead letter without bytes and other effects: the connection has too many open deliveries.
    Overflow,
    /// Effects, and at most one delivery.
    Apply(Box<Effects>),
}

impl Decision {
    /// Reason of dead letters by [`Decision::Overflow`].
    pub const OVERFLOW: &'static str = "the connection has too many open deliveries";
}

/// Reason to ignore a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IgnoreReason {
    /// Processed before.
    Duplicate,
    /// Another webhook about the same message was processed before.
    SameTrigger,
    /// The connection is stopped.
    ConnectionStopped,
    /// The connection is revoked.
    ConnectionRevoked,
    /// The connection was deleted.
    ConnectionDeleted,
    /// The conversation has no agent.
    NoAgent,
    /// Written by the bot itself, another bot, or a system user.
    FromBot,
    /// An edit, a join or another event without a request to an agent.
    NotAMessage,
    /// The app is disabled on this surface.
    SurfaceDisabled,
    /// Too late for a reply.
    TooLate,
    /// Nothing to change.
    NothingToChange,
    /// The person sent more questions than the agent accepts in a minute.
    TooManyQuestions,
    /// The connection has too many dead letters.
    TooManyDeadLetters,
    /// The webhook had its effects, but no message was enqueued: too many of the connection wait or
    /// were rejected.
    TooManyMessages,
}

impl IgnoreReason {
    /// Returns the reason for tables, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            IgnoreReason::Duplicate => "duplicate",
            IgnoreReason::SameTrigger => "same_trigger",
            IgnoreReason::ConnectionStopped => "connection_stopped",
            IgnoreReason::ConnectionRevoked => "connection_revoked",
            IgnoreReason::ConnectionDeleted => "connection_deleted",
            IgnoreReason::NoAgent => "no_agent",
            IgnoreReason::FromBot => "from_bot",
            IgnoreReason::NotAMessage => "not_a_message",
            IgnoreReason::SurfaceDisabled => "surface_disabled",
            IgnoreReason::TooLate => "too_late",
            IgnoreReason::NothingToChange => "nothing_to_change",
            IgnoreReason::TooManyQuestions => "too_many_questions",
            IgnoreReason::TooManyDeadLetters => "too_many_dead_letters",
            IgnoreReason::TooManyMessages => "too_many_messages",
        }
    }
}

/// Effects of a webhook.
pub struct Effects {
    /// Use of a link code, with the reply for each result.
    pub consume: Option<LinkCodeUse>,
    /// Click on a button of an approval, with the reply for each result. The click that decides is
    /// delivered to the agent that asked.
    pub decide: Option<ApprovalUse>,
    /// Edit of a message. The delivery is enqueued only if the answer to the earlier text has not
    /// begun, which is then dropped.
    pub edit: Option<EditedMessage>,
    /// Other changes, each with the replies for its results.
    pub changes: Vec<Change>,
    /// Unconditional messages to Slack.
    pub messages: Vec<OutgoingMessage>,
    /// True if no message or reply is enqueued, since the connection has too many messages that
    /// wait or were rejected. A webhook that has one is recorded as ignored.
    pub drops_messages: bool,
    /// Delivery to an agent.
    pub delivery: Option<NewDelivery>,
    /// Effect on the person's questions of the minute, if the webhook is a question.
    pub question: Option<QuestionEffect>,
    /// Key of the trigger. A second webhook with the same trigger has no effect.
    pub trigger: Option<DedupKey>,
    /// Outcome stored with the dedup key.
    pub processed_as: ProcessedAs,
}

impl Effects {
    /// Returns effects that consist of the dedup key only.
    pub fn new(processed_as: ProcessedAs) -> Self {
        Self {
            consume: None,
            decide: None,
            edit: None,
            changes: Vec::new(),
            messages: Vec::new(),
            drops_messages: false,
            delivery: None,
            question: None,
            trigger: None,
            processed_as,
        }
    }

    /// Returns whether other webhooks may share its batch, because no decision reads what these
    /// effects change.
    pub fn may_share_batch(&self) -> bool {
        // The pattern lists all fields, so that a new effect requires a choice here. Deciders count
        // the questions of a batch in memory.
        let Self {
            consume,
            decide,
            edit,
            changes,
            messages: _,
            drops_messages: _,
            delivery: _,
            question: _,
            trigger: _,
            processed_as: _,
        } = self;
        let is_plain = consume.is_none() && decide.is_none() && edit.is_none();
        is_plain && changes.is_empty()
    }
}

/// Effect of a question on the counts of the person who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuestionEffect {
    /// An agent receives the question, which counts.
    Asked,
    /// The limit is reached, and the person is notified. The question is recorded as ignored.
    Refused,
}

/// Outcome of a webhook, stored with its dedup key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProcessedAs {
    /// Enqueued as a delivery.
    Delivery,
    /// Command of Tidegate.
    Command,
    /// Event about the installation.
    InstallationEvent,
    /// Notice to a person: the conversation has no agent.
    Notice,
    /// Dead letter.
    DeadLetter,
    /// Second key of a webhook, for its trigger.
    Trigger,
    /// Event about a deleted message.
    Deletion,
    /// Notice to a person who sent too many questions.
    Refusal,
    /// Click on a button of an approval.
    Approval,
}

impl ProcessedAs {
    /// Outcomes with the numbers of the column.
    const ALL: [(ProcessedAs, i16, &'static str); 9] = [
        (ProcessedAs::Delivery, 1, "delivery"),
        (ProcessedAs::Command, 2, "command"),
        (ProcessedAs::InstallationEvent, 3, "installation_event"),
        (ProcessedAs::Notice, 4, "notice"),
        (ProcessedAs::DeadLetter, 5, "dead_letter"),
        (ProcessedAs::Trigger, 6, "trigger"),
        (ProcessedAs::Deletion, 7, "deletion"),
        (ProcessedAs::Refusal, 8, "refusal"),
        (ProcessedAs::Approval, 9, "approval"),
    ];

    /// Returns the number in `processed_keys.outcome`.
    pub fn number(self) -> i16 {
        Self::ALL.iter().find(|row| row.0 == self).map_or(0, |row| row.1)
    }

    /// Returns the name of the outcome.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|row| row.0 == self).map_or("unknown", |row| row.2)
    }

    /// Converts the value of the column.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.iter().find(|row| row.1 == number).map(|row| row.0)
    }
}

/// Organization of the gateway's pseudo-agent. No organization can have this id.
pub const GATEWAY_ORG: &str = "*";
/// Pseudo-agent of deliveries that the worker answers itself: handlers of an embedding application,
/// views and menus without an app.
pub const GATEWAY_AGENT: &str = "gateway";

/// Delivery to enqueue in the webhook's lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    /// Organization of the agent, or [`GATEWAY_ORG`].
    pub org: String,
    /// Id of the agent, or [`GATEWAY_AGENT`].
    pub agent: String,
    /// Session of the conversation.
    pub session: i64,
    /// Priority.
    pub priority: Priority,
    /// Number of agents' replies that led to the webhook.
    pub hops: i32,
    /// True if the effects include a notice to the person that the delivery waits.
    pub has_waiting_notice: bool,
}

impl NewDelivery {
    /// Returns a delivery to an agent.
    pub fn to_agent(agent: &AgentRef, session: i64, priority: Priority) -> Self {
        let (org, agent) = (agent.org.to_string(), agent.id.to_string());
        Self { org, agent, session, priority, hops: 0, has_waiting_notice: false }
    }

    /// Returns a delivery that the worker answers itself.
    pub fn to_gateway(priority: Priority) -> Self {
        let (org, agent) = (GATEWAY_ORG.to_owned(), GATEWAY_AGENT.to_owned());
        Self { org, agent, session: 1, priority, hops: 0, has_waiting_notice: false }
    }
}

/// Priority of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// A person waits: commands, clicks, shortcuts, submissions.
    Interactive,
    /// All other deliveries.
    Background,
}

impl Priority {
    /// Returns the number of the column.
    pub fn number(self) -> i16 {
        match self {
            Priority::Interactive => 0,
            Priority::Background => 1,
        }
    }
}

/// Agent with the fields for a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRef {
    /// Organization.
    pub org: OrgId,
    /// Id.
    pub id: AgentId,
    /// Name, or the id if there is none.
    pub name: String,
    /// Mode.
    pub mode: AgentMode,
    /// Maximum questions of one person in a minute.
    pub max_per_user: i32,
    /// Policies for edits and for messages that arrive while the agent answers.
    pub policies: AgentPolicies,
}
