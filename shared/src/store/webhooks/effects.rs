//! Decisions on webhooks and their effects: the interface between `routing`, which decides, and the
//! commit of intake.
//!
//! A pure function makes a [`Decision`] from a webhook and the facts in Postgres. The transaction
//! of the commit applies its changes after the fence, so that each happens once. Guards are inside
//! the statements: a change without anything to change reports that, and its reply is chosen from
//! the report.

use crate::store::{ConsumeClaim, StoreError};
use crate::{
    codec::envelope::{DedupeKey, Envelope},
    types::{AgentId, AgentMode, ChannelId, ConnectionId, OrgId, Outgoing, TeamId, UserId},
};
use sqlx::{PgConnection, Row};
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
        /// Constant reason.
        reason: &'static str,
        /// Details.
        error: String,
    },
    /// Effects, and at most one delivery.
    Apply(Box<Effects>),
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
        }
    }
}

/// Effects of a webhook.
pub struct Effects {
    /// Use of a link code, with the reply for each result.
    pub consume: Option<ConsumeClaim>,
    /// Other changes, each with the replies for its results.
    pub changes: Vec<Change>,
    /// Unconditional messages to Slack.
    pub messages: Vec<Outgoing>,
    /// Delivery to an agent.
    pub delivery: Option<NewDelivery>,
    /// Key of the trigger. A second webhook with the same trigger has no effect.
    pub trigger: Option<DedupeKey>,
    /// Outcome stored with the dedup key.
    pub processed_as: ProcessedAs,
}

impl Effects {
    /// Returns effects without any but the dedup key.
    pub fn new(processed_as: ProcessedAs) -> Self {
        Self {
            consume: None,
            changes: Vec::new(),
            messages: Vec::new(),
            delivery: None,
            trigger: None,
            processed_as,
        }
    }

    /// Returns whether other webhooks may share its batch, because no decision reads what these
    /// effects change.
    pub fn may_share_batch(&self) -> bool {
        // The pattern lists all fields, so that a new effect requires a choice here.
        let Self { consume, changes, messages: _, delivery: _, trigger: _, processed_as: _ } = self;
        consume.is_none() && changes.is_empty()
    }
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
}

impl ProcessedAs {
    /// Outcomes with the numbers of the column.
    const ALL: [(ProcessedAs, i16, &'static str); 6] = [
        (ProcessedAs::Delivery, 1, "delivery"),
        (ProcessedAs::Command, 2, "command"),
        (ProcessedAs::InstallationEvent, 3, "installation_event"),
        (ProcessedAs::Notice, 4, "notice"),
        (ProcessedAs::DeadLetter, 5, "dead_letter"),
        (ProcessedAs::Trigger, 6, "trigger"),
    ];

    /// Returns the number in `processed_keys.outcome`.
    pub fn number(self) -> i16 {
        Self::ALL.iter().find(|row| row.0 == self).map_or(0, |row| row.1)
    }

    /// Returns the name of the outcome.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|row| row.0 == self).map_or("unknown", |row| row.2)
    }

    /// Converts the column.
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
    pub tells: bool,
}

impl NewDelivery {
    /// Returns a delivery to an agent.
    pub fn to_agent(agent: &AgentRef, session: i64, priority: Priority) -> Self {
        let (org, agent) = (agent.org.to_string(), agent.id.to_string());
        Self { org, agent, session, priority, hops: 0, tells: false }
    }

    /// Returns a delivery that the worker answers itself.
    pub fn to_gateway(priority: Priority) -> Self {
        let (org, agent) = (GATEWAY_ORG.to_owned(), GATEWAY_AGENT.to_owned());
        Self { org, agent, session: 1, priority, hops: 0, tells: false }
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
    /// Name, or the id without one.
    pub name: String,
    /// Mode.
    pub mode: AgentMode,
}

/// Conversation that can be bound: a channel or direct message of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct Chat {
    pub connection: ConnectionId,
    pub team: TeamId,
    pub channel: ChannelId,
}

/// Change with its reply.
pub struct Change {
    /// Change.
    pub what: What,
    /// Reply for each result. Called inside the transaction.
    pub reply: ReplyToChange,
}

/// Reply for a change. The argument states whether anything changed.
pub type ReplyToChange = Box<dyn Fn(bool) -> Vec<Outgoing> + Send + Sync>;

/// Change of a conversation or connection.
#[derive(Debug, Clone)]
pub enum What {
    /// Binds the conversation to an agent. Changes nothing without such an agent.
    Bind {
        /// Conversation.
        chat: Chat,
        /// Organization of the agent.
        org: OrgId,
        /// Agent.
        agent: AgentId,
        /// Requester.
        by: UserId,
    },
    /// Removes the binding of the conversation.
    Unbind(Chat),
    /// Starts a new session of the conversation.
    NewSession(Chat),
    /// Moves binding and session to the new id of a channel.
    MoveChannel {
        /// Connection.
        connection: ConnectionId,
        /// Old id.
        from: ChannelId,
        /// New id.
        to: ChannelId,
    },
    /// Revokes the connection after Slack removed the app or its tokens. Changes nothing if the app
    /// was installed again since.
    Revoke {
        /// Connection.
        connection: ConnectionId,
        /// Time of the event by Slack's clock, in seconds since 1970.
        at: i64,
        /// Slack's event type.
        why: &'static str,
    },
    /// Records the welcome of a person. Changes nothing if the person was welcomed before.
    Welcome {
        /// Connection.
        connection: ConnectionId,
        /// Workspace.
        team: TeamId,
        /// Person.
        user: UserId,
    },
}

impl What {
    /// Returns the description for replay results, without ids.
    pub fn as_str(&self) -> &'static str {
        match self {
            What::Bind { .. } => "bind a conversation",
            What::Unbind(_) => "unbind a conversation",
            What::NewSession(_) => "begin a new session",
            What::MoveChannel { .. } => "move a channel",
            What::Revoke { .. } => "revoke the connection",
            What::Welcome { .. } => "welcome a person",
        }
    }
}

/// Applies a change. Returns whether anything changed.
pub(in crate::store) async fn apply_change(
    tx: &mut PgConnection,
    what: &What,
) -> Result<bool, StoreError> {
    let changed = match what {
        What::Bind { chat, org, agent, by } => {
            sqlx::query(
                "-- bindings.bind
                 insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id,
                                               bound_by)
                 select $1, $2, $3, org_id, id, $6 from agents where org_id = $4 and id = $5
                 on conflict (connection_id, team_id, channel_id)
                 do update set org_id = excluded.org_id, agent_id = excluded.agent_id,
                               bound_by = excluded.bound_by, bound_at = now()",
            )
            .bind(chat.connection.to_string())
            .bind(chat.team.as_str())
            .bind(chat.channel.as_str())
            .bind(org.as_str())
            .bind(agent.as_str())
            .bind(by.as_str())
            .execute(tx)
            .await?
        }
        What::Unbind(chat) => {
            sqlx::query(
                "-- bindings.unbind
                 delete from channel_bindings where connection_id = $1 and team_id = $2
                    and channel_id = $3",
            )
            .bind(chat.connection.to_string())
            .bind(chat.team.as_str())
            .bind(chat.channel.as_str())
            .execute(tx)
            .await?
        }
        What::NewSession(chat) => {
            sqlx::query(
                "-- sessions.renew
                 insert into conversation_sessions (connection_id, team_id, channel_id, number)
                 values ($1, $2, $3, 2)
                 on conflict (connection_id, team_id, channel_id) do update
                    set number = conversation_sessions.number + 1",
            )
            .bind(chat.connection.to_string())
            .bind(chat.team.as_str())
            .bind(chat.channel.as_str())
            .execute(tx)
            .await?
        }
        What::MoveChannel { connection, from, to } => {
            return move_channel(tx, *connection, from, to).await;
        }
        What::Revoke { connection, at, why } => {
            sqlx::query(
                "-- connections.revoke
                 update connections set status = 'revoked', status_reason = $3
                  where id = $1 and status in ('pending', 'active', 'error')
                    and (installed_at is null
                         or date_trunc('second', installed_at) <= to_timestamp($2))",
            )
            .bind(connection.to_string())
            .bind(*at as f64)
            .bind(*why)
            .execute(tx)
            .await?
        }
        What::Welcome { connection, team, user } => {
            sqlx::query(
                "-- welcomed_users.note
                 insert into welcomed_users (connection_id, team_id, user_id) values ($1, $2, $3)
                     on conflict do nothing",
            )
            .bind(connection.to_string())
            .bind(team.as_str())
            .bind(user.as_str())
            .execute(tx)
            .await?
        }
    };
    Ok(changed.rows_affected() > 0)
}

/// Moves binding and session of a channel. A binding of the new id is later and stays.
async fn move_channel(
    tx: &mut PgConnection,
    connection: ConnectionId,
    from: &ChannelId,
    to: &ChannelId,
) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "-- bindings.move
         with old as (
             delete from channel_bindings where connection_id = $1 and channel_id = $2 returning *),
         moved as (
             insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id,
                                           bound_by, bound_at)
             select connection_id, team_id, $3, org_id, agent_id, bound_by, bound_at from old
             on conflict do nothing),
         session as (
             delete from conversation_sessions where connection_id = $1 and channel_id = $2
             returning *),
         kept as (
             insert into conversation_sessions (connection_id, team_id, channel_id, number)
             select connection_id, team_id, $3, number from session
             on conflict (connection_id, team_id, channel_id)
             do update set number = greatest(conversation_sessions.number, excluded.number))
         select exists (select from old) as moved",
    )
    .bind(connection.to_string())
    .bind(from.as_str())
    .bind(to.as_str())
    .fetch_one(tx)
    .await?;
    Ok(row.try_get("moved")?)
}
