//! Changes of conversations and connections that a webhook causes.
//!
//! The transaction of the commit applies them together with the fence, so that each happens once.
//! Guards are inside the statements. A change reports whether it changed anything, which determines
//! its reply.

use super::bindings::{bind, move_channel, unbind};
use crate::domain::{
    Actor, AgentId, ChannelId, ConnectionId, OrgId, OutgoingMessage, TeamId, UserId,
};
use crate::store::{
    AuditAction, AuditOrg, NewApproval, NewAuditEntry, StoreError, add_audit_entries,
    approvals::add_approval,
};
use crate::stream::Lane;
use serde_json::json;
use sqlx::PgConnection;

/// Conversation that can be bound: a channel or direct message of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct ConversationKey {
    pub connection: ConnectionId,
    pub team: TeamId,
    pub channel: ChannelId,
}

/// Change with its reply.
pub struct Change {
    /// Change.
    pub action: ConversationChange,
    /// Reply for each result. Called inside the transaction.
    pub reply: ReplyForChange,
}

/// Reply for a change. The argument states whether anything changed.
pub type ReplyForChange = Box<dyn Fn(bool) -> Vec<OutgoingMessage> + Send + Sync>;

/// Change of a conversation or connection.
#[derive(Debug, Clone)]
pub enum ConversationChange {
    /// Binds the conversation to an agent. Changes nothing without such an agent.
    Bind {
        /// Conversation.
        conversation: ConversationKey,
        /// Organization of the agent.
        org: OrgId,
        /// Agent.
        agent: AgentId,
        /// Requester.
        by: UserId,
    },
    /// Removes the binding of the conversation.
    Unbind {
        /// Conversation.
        conversation: ConversationKey,
        /// Requester.
        by: UserId,
    },
    /// Starts a new session of the conversation.
    NewSession {
        /// Conversation.
        conversation: ConversationKey,
        /// Requester.
        by: UserId,
    },
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
    /// Records that a message was deleted, so that its answer is dropped.
    DropAnswer {
        /// Connection.
        connection: ConnectionId,
        /// Channel.
        channel: ChannelId,
        /// Message.
        ts: String,
    },
    /// Stops the runs of a conversation that answer messages before a time.
    StopRuns {
        /// Connection.
        connection: ConnectionId,
        /// Channel.
        channel: ChannelId,
        /// Thread. `None`: all of the channel.
        thread_ts: Option<String>,
        /// Time by Slack's clock.
        before: String,
    },
    /// Cancels the run of the conversation, which answers an earlier message.
    InterruptRun {
        /// Connection.
        connection: ConnectionId,
        /// Lane of the conversation.
        lane: Lane,
        /// Channel.
        channel: ChannelId,
        /// Time of the later message by Slack's clock.
        before: String,
    },
    /// Adds an approval. Changes nothing if its agent has too many.
    Ask(Box<NewApproval>),
    /// Records a person's feedback on an answer.
    AddFeedback {
        /// Connection.
        connection: ConnectionId,
        /// Channel.
        channel: ChannelId,
        /// Message with the buttons.
        ts: String,
        /// Person.
        user: UserId,
        /// Organization of the agent.
        org: OrgId,
        /// Agent.
        agent: AgentId,
        /// Value that the agent gave the button.
        value: String,
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

impl ConversationChange {
    /// Returns the description for replay results, without ids.
    pub fn as_str(&self) -> &'static str {
        match self {
            ConversationChange::Bind { .. } => "bind a conversation",
            ConversationChange::Unbind { .. } => "unbind a conversation",
            ConversationChange::NewSession { .. } => "begin a new session",
            ConversationChange::MoveChannel { .. } => "move a channel",
            ConversationChange::Revoke { .. } => "revoke the connection",
            ConversationChange::Welcome { .. } => "welcome a person",
            ConversationChange::DropAnswer { .. } => "drop the answer to a deleted message",
            ConversationChange::StopRuns { .. } => "stop runs",
            ConversationChange::InterruptRun { .. } => "interrupt a run",
            ConversationChange::Ask(_) => "ask for an approval",
            ConversationChange::AddFeedback { .. } => "record feedback",
        }
    }
}

/// Applies a change, and adds its entry to the audit log if a person or Slack asked for it. Returns
/// whether anything changed.
pub(in crate::store) async fn apply_change(
    tx: &mut PgConnection,
    action: &ConversationChange,
) -> Result<bool, StoreError> {
    let changed = write_change(tx, action).await?;
    if let Some((by, entry)) = audit_entry(action).filter(|_| changed) {
        add_audit_entries(tx, &by, &[entry]).await?;
    }
    Ok(changed)
}

/// Returns author and entry of a change. `None` for a change that is not audited.
fn audit_entry(action: &ConversationChange) -> Option<(Actor, NewAuditEntry)> {
    let of = |action, conversation: &ConversationKey, by: &UserId| {
        let ConversationKey { connection, team, channel } = conversation;
        let org = AuditOrg::OfConnection(*connection);
        let entry = NewAuditEntry::new(action, format!("{connection}/{team}/{channel}"), org);
        (Actor::SlackUser { team: team.clone(), user: by.clone() }, entry)
    };
    Some(match action {
        ConversationChange::Bind { conversation, org, agent, by } => {
            let (by, entry) = of(AuditAction::BindingCreate, conversation, by);
            (by, entry.after(json!({ "agent": format!("{org}/{agent}") })))
        }
        ConversationChange::Unbind { conversation, by } => {
            of(AuditAction::BindingDelete, conversation, by)
        }
        ConversationChange::NewSession { conversation, by } => {
            of(AuditAction::SessionCreate, conversation, by)
        }
        ConversationChange::Revoke { connection, why, .. } => {
            let org = AuditOrg::OfConnection(*connection);
            let entry = NewAuditEntry::new(AuditAction::ConnectionRevoke, connection, org);
            (Actor::Slack, entry.after(json!({ "status": "revoked", "reason": why })))
        }
        ConversationChange::MoveChannel { .. }
        | ConversationChange::DropAnswer { .. }
        | ConversationChange::StopRuns { .. }
        | ConversationChange::InterruptRun { .. }
        | ConversationChange::Ask(_)
        | ConversationChange::AddFeedback { .. }
        | ConversationChange::Welcome { .. } => return None,
    })
}

async fn write_change(
    tx: &mut PgConnection,
    action: &ConversationChange,
) -> Result<bool, StoreError> {
    let changed = match action {
        ConversationChange::Bind { conversation, org, agent, by } => {
            return bind(tx, conversation, (org, agent), Some(by.as_str())).await;
        }
        ConversationChange::Unbind { conversation, by } => {
            return unbind(tx, conversation, by.as_str()).await;
        }
        ConversationChange::NewSession { conversation, .. } => {
            sqlx::query(
                "-- sessions.renew
                 insert into conversation_sessions (connection_id, team_id, channel_id, number)
                 values ($1, $2, $3, 2)
                 on conflict (connection_id, team_id, channel_id) do update
                    set number = conversation_sessions.number + 1, id = default",
            )
            .bind(conversation.connection.to_string())
            .bind(conversation.team.as_str())
            .bind(conversation.channel.as_str())
            .execute(tx)
            .await?
        }
        ConversationChange::MoveChannel { connection, from, to } => {
            return move_channel(tx, *connection, from, to).await;
        }
        ConversationChange::Revoke { connection, at, why } => {
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
        ConversationChange::DropAnswer { connection, channel, ts } => {
            sqlx::query(
                "-- deleted_messages.add
                 insert into deleted_messages (connection_id, channel_id, ts) values ($1, $2, $3)
                     on conflict do nothing",
            )
            .bind(connection.to_string())
            .bind(channel.as_str())
            .bind(ts)
            .execute(tx)
            .await?
        }
        ConversationChange::StopRuns { connection, channel, thread_ts, before } => {
            sqlx::query(
                "-- run_controls.add
                 insert into run_controls (connection_id, channel_id, thread_ts, ts)
                 values ($1, $2, $3, $4)",
            )
            .bind(connection.to_string())
            .bind(channel.as_str())
            .bind(thread_ts.as_deref())
            .bind(before)
            .execute(tx)
            .await?
        }
        ConversationChange::InterruptRun { connection, lane, channel, before } => {
            sqlx::query(
                "-- run_controls.interrupt (the head, if it runs)
                 insert into run_controls (connection_id, channel_id, ts, reason, message_ts)
                 select $1, $3, $4, 'interrupt', d.ts
                   from delivery_lanes l
                   join deliveries d on d.connection_id = l.connection_id and d.lane = l.lane
                                    and d.position = l.head and d.part = 0
                  where l.lane = $2 and l.connection_id = $1 and l.worker is not null
                    and d.ts is not null and d.ts <> $4",
            )
            .bind(connection.to_string())
            .bind(lane.to_bits())
            .bind(channel.as_str())
            .bind(before)
            .execute(tx)
            .await?
        }
        ConversationChange::Ask(new) => return add_approval(tx, new).await,
        ConversationChange::AddFeedback { connection, channel, ts, user, org, agent, value } => {
            sqlx::query(
                "-- feedback.add
                 insert into feedback (connection_id, channel_id, ts, user_id, org_id, agent_id,
                                       value)
                 values ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(connection.to_string())
            .bind(channel.as_str())
            .bind(ts)
            .bind(user.as_str())
            .bind(org.as_str())
            .bind(agent.as_str())
            .bind(value)
            .execute(tx)
            .await?
        }
        ConversationChange::Welcome { connection, team, user } => {
            sqlx::query(
                "-- welcomed_users.add
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
