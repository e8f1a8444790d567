//! What deciding a webhook leads to: the words between `routing`, which decides, and the commit, which puts it into force.
//!
//! A [`Decision`] is made by a pure function from a webhook and what Postgres knows. Its changes are applied inside the
//! transaction of the commit, after the fence, so each happens once. Guards stand in the statements: a change that finds
//! nothing to change reports that, and the reply for that result is chosen there.

use crate::store::{ConsumeClaim, StoreError};
use crate::{
    codec::envelope::{DedupeKey, Envelope},
    types::{AgentId, AgentMode, ChannelId, ConnectionId, OrgId, Outgoing, TeamId, UserId},
};
use sqlx::{PgConnection, Row};
use time::OffsetDateTime;

/// A webhook of the stream with its decision.
pub struct DecidedWebhook {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the stream got it, by the server's clock.
    pub stored_at: OffsetDateTime,
    /// The webhook.
    pub envelope: Envelope,
    /// What people look it up by.
    pub ids: WebhookIds,
    /// What it leads to.
    pub decision: Decision,
}

/// Ids out of a webhook's body, for logs and look-ups. Text of people is never among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // Slack's names
pub struct WebhookIds {
    pub event_id: Option<String>,
    pub team: Option<String>,
    pub channel: Option<String>,
    pub thread_ts: Option<String>,
    pub ts: Option<String>,
    pub user: Option<String>,
    /// `event_time`, or the second of a message's `ts`: the webhook's own time, the same in every copy.
    pub own_time: Option<i64>,
}

/// What a webhook leads to. A closed set: there is no other end of intake.
pub enum Decision {
    /// Nothing: no effect, no dedup key.
    Ignore {
        /// Why.
        reason: IgnoreReason,
        /// Whether it was addressed to the app, so that people may ask why nothing happened.
        addressed: bool,
    },
    /// It can never be processed; an operator decides.
    DeadLetter {
        /// Why, the same words for all of its sort.
        reason: &'static str,
        /// What is particular about this one.
        error: String,
    },
    /// Effects, and at most one delivery.
    Apply(Box<Effects>),
}

/// Why a webhook leads to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IgnoreReason {
    /// It was processed before.
    Duplicate,
    /// Another webhook about the same message was processed before.
    SameTrigger,
    /// The connection is stopped.
    ConnectionStopped,
    /// The connection is revoked.
    ConnectionRevoked,
    /// The connection was deleted.
    ConnectionDeleted,
    /// Its conversation has no agent.
    NoAgent,
    /// The bot itself, another bot, or a system user wrote it.
    FromBot,
    /// An edit, a join or another event that asks nothing of an agent.
    NotAMessage,
    /// The connection does not work in this type of conversation.
    SurfaceDisabled,
    /// It came too late to be answered.
    TooLate,
    /// There was nothing to change.
    NothingToChange,
}

impl IgnoreReason {
    /// The word for tables, logs and metrics.
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

/// What changes because of a webhook.
pub struct Effects {
    /// A link code to consume, with the reply for each result.
    pub consume: Option<ConsumeClaim>,
    /// What else is to change, each with the reply for either result.
    pub changes: Vec<Change>,
    /// Messages to Slack, whatever else.
    pub messages: Vec<Outgoing>,
    /// The delivery to an agent.
    pub delivery: Option<NewDelivery>,
    /// What triggered all of this: a second webhook for the same trigger has no effect.
    pub trigger: Option<DedupeKey>,
    /// What is noted with the dedup key.
    pub processed_as: ProcessedAs,
}

impl Effects {
    /// No effect but the dedup key.
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

    /// Whether other webhooks may share its batch: nothing that it changes is read by a decision.
    pub fn may_share_batch(&self) -> bool {
        // Named one by one, so that a new kind of effect is decided about.
        let Self { consume, changes, messages: _, delivery: _, trigger: _, processed_as: _ } = self;
        consume.is_none() && changes.is_empty()
    }
}

/// What was done with a webhook, noted with its dedup key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProcessedAs {
    /// Handed to dispatch.
    Delivery,
    /// One of Tidegate's own commands.
    Command,
    /// An event about the installation.
    InstallationEvent,
    /// A hint to a person: the conversation has no agent.
    Notice,
    /// Given up.
    DeadLetter,
    /// The second key of a webhook: what triggered it.
    Trigger,
}

impl ProcessedAs {
    /// Every one, with the number of its column.
    const ALL: [(ProcessedAs, i16, &'static str); 6] = [
        (ProcessedAs::Delivery, 1, "delivery"),
        (ProcessedAs::Command, 2, "command"),
        (ProcessedAs::InstallationEvent, 3, "installation_event"),
        (ProcessedAs::Notice, 4, "notice"),
        (ProcessedAs::DeadLetter, 5, "dead_letter"),
        (ProcessedAs::Trigger, 6, "trigger"),
    ];

    /// The number in `processed_keys.outcome`.
    pub fn number(self) -> i16 {
        Self::ALL.iter().find(|row| row.0 == self).map_or(0, |row| row.1)
    }

    /// The word for people.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|row| row.0 == self).map_or("unknown", |row| row.2)
    }

    /// From the column.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.iter().find(|row| row.1 == number).map(|row| row.0)
    }
}

/// The organization of the pseudo-agent that is the worker itself. No organization can be called so.
pub const GATEWAY_ORG: &str = "*";
/// The pseudo-agent for deliveries that the worker answers itself: a team's own handler, views and menus without an app.
pub const GATEWAY_AGENT: &str = "gateway";

/// A delivery to be enqueued in the webhook's lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    /// Who gets it: an organization's agent, or [`GATEWAY_ORG`] and [`GATEWAY_AGENT`].
    pub org: String,
    /// The agent's id.
    pub agent: String,
    /// The conversation's session.
    pub session: i64,
    /// Whether a person waits.
    pub priority: Priority,
    /// How many agents' answers led to it.
    pub hops: i32,
    /// Whether the effects tell its person that it waits.
    pub tells: bool,
}

impl NewDelivery {
    /// A delivery to an agent.
    pub fn to_agent(agent: &AgentRef, session: i64, priority: Priority) -> Self {
        let (org, agent) = (agent.org.to_string(), agent.id.to_string());
        Self { org, agent, session, priority, hops: 0, tells: false }
    }

    /// A delivery that the worker answers itself.
    pub fn to_gateway(priority: Priority) -> Self {
        let (org, agent) = (GATEWAY_ORG.to_owned(), GATEWAY_AGENT.to_owned());
        Self { org, agent, session: 1, priority, hops: 0, tells: false }
    }
}

/// Which deliveries go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// A person waits: commands, clicks, shortcuts, submissions.
    Interactive,
    /// All else.
    Background,
}

impl Priority {
    /// The number of the column.
    pub fn number(self) -> i16 {
        match self {
            Priority::Interactive => 0,
            Priority::Background => 1,
        }
    }
}

/// An agent as a decision needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRef {
    /// Its organization.
    pub org: OrgId,
    /// Its id.
    pub id: AgentId,
    /// Its name, or its id when it has none.
    pub name: String,
    /// How it is called.
    pub mode: AgentMode,
}

/// A conversation that can be bound: a channel or a direct message of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct Chat {
    pub connection: ConnectionId,
    pub team: TeamId,
    pub channel: ChannelId,
}

/// One change, and what is said when it changed something, and when there was nothing to change.
pub struct Change {
    /// What is to change.
    pub what: What,
    /// What is said for it. Runs inside the transaction.
    pub reply: ReplyToChange,
}

/// What is said, told whether something changed.
pub type ReplyToChange = Box<dyn Fn(bool) -> Vec<Outgoing> + Send + Sync>;

/// What is to change.
#[derive(Debug, Clone)]
pub enum What {
    /// The conversation belongs to this agent from now on. Nothing changes when there is no such agent any more.
    Bind {
        /// Which conversation.
        chat: Chat,
        /// Whose agent.
        org: OrgId,
        /// Which.
        agent: AgentId,
        /// Who asked for it.
        by: UserId,
    },
    /// The conversation belongs to nobody in particular any more.
    Unbind(Chat),
    /// The conversation begins anew: its next questions carry another session.
    NewSession(Chat),
    /// Slack gave a channel another id: what is known of the one is known of the other.
    MoveChannel {
        /// On which connection.
        connection: ConnectionId,
        /// The id before.
        from: ChannelId,
        /// The id since.
        to: ChannelId,
    },
    /// The app was uninstalled, or its tokens revoked. Nothing changes when it was installed anew since.
    Revoke {
        /// Which connection.
        connection: ConnectionId,
        /// When Slack says that happened, in seconds since 1970.
        at: i64,
        /// Slack's word for it.
        why: &'static str,
    },
    /// A person is greeted. Nothing changes when that was done before.
    Welcome {
        /// On which connection.
        connection: ConnectionId,
        /// Which workspace they joined.
        team: TeamId,
        /// Who.
        user: UserId,
    },
}

impl What {
    /// The words for it, which name nobody.
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

/// Makes a change; whether there was anything to change.
pub(in crate::store) async fn apply(
    tx: &mut PgConnection,
    what: &What,
) -> Result<bool, StoreError> {
    let changed = match what {
        What::Bind { chat, org, agent, by } => {
            sqlx::query(
                "-- bindings.bind
                 insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id, bound_by)
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
                 delete from channel_bindings where connection_id = $1 and team_id = $2 and channel_id = $3",
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
                 insert into conversation_sessions (connection_id, team_id, channel_id, number) values ($1, $2, $3, 2)
                 on conflict (connection_id, team_id, channel_id) do update set number = conversation_sessions.number + 1",
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
                    and (installed_at is null or date_trunc('second', installed_at) <= to_timestamp($2))",
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
                 insert into welcomed_users (connection_id, team_id, user_id) values ($1, $2, $3) on conflict do nothing",
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

/// A binding that the new id has already was made later, by a person: it stays, and the old one goes.
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
             insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id, bound_by, bound_at)
             select connection_id, team_id, $3, org_id, agent_id, bound_by, bound_at from old
             on conflict do nothing),
         session as (
             delete from conversation_sessions where connection_id = $1 and channel_id = $2 returning *),
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
