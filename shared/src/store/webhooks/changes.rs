//! Changes of conversations and connections that a webhook causes.
//!
//! The transaction of the commit applies them after the fence, so that each happens once. Guards
//! are inside the statements: a change without anything to change reports that, and its reply is
//! chosen from the report.

use crate::domain::{
    Actor, AgentId, ChannelId, ConnectionId, OrgId, OutgoingMessage, TeamId, UserId,
};
use crate::store::{AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries};
use serde_json::json;
use sqlx::{PgConnection, Row};

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

/// Returns author and entry of a change. `None` for a change that only keeps records of Slack's.
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
                    set number = conversation_sessions.number + 1",
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
        ConversationChange::Welcome { connection, team, user } => {
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

/// Binds a conversation to an agent, by a person or the app itself. Returns false without such an
/// agent, or if the connection takes no apps of other organizations.
async fn bind(
    tx: &mut PgConnection,
    conversation: &ConversationKey,
    (org, agent): (&OrgId, &AgentId),
    by: Option<&str>,
) -> Result<bool, StoreError> {
    let bound = sqlx::query(
        "-- bindings.bind
         insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id,
                                       bound_by)
         select $1, $2, $3, a.org_id, a.id, coalesce($6, n.bot_user_id, 'tidegate')
           from agents a join connections n on n.id = $1
          where a.org_id = $4 and a.id = $5
            and (a.mode <> 'forward' or a.org_id = n.org_id
                 or coalesce((n.settings ->> 'foreign_apps')::boolean, false))
         on conflict (connection_id, team_id, channel_id)
         do update set org_id = excluded.org_id, agent_id = excluded.agent_id,
                       bound_by = excluded.bound_by, bound_at = now()",
    )
    .bind(conversation.connection.to_string())
    .bind(conversation.team.as_str())
    .bind(conversation.channel.as_str())
    .bind(org.as_str())
    .bind(agent.as_str())
    .bind(by)
    .execute(tx)
    .await?;
    Ok(bound.rows_affected() > 0)
}

/// Removes a binding. Returns whether there was one.
async fn unbind(
    tx: &mut PgConnection,
    conversation: &ConversationKey,
    by: &str,
) -> Result<bool, StoreError> {
    sqlx::query("-- bindings.changed_by\n select set_config('tidegate.changed_by', $1, true)")
        .bind(by)
        .execute(&mut *tx)
        .await?;
    let unbound = sqlx::query(
        "-- bindings.unbind
         delete from channel_bindings where connection_id = $1 and team_id = $2 and channel_id = $3",
    )
    .bind(conversation.connection.to_string())
    .bind(conversation.team.as_str())
    .bind(conversation.channel.as_str())
    .execute(tx)
    .await?;
    Ok(unbound.rows_affected() > 0)
}

impl Store {
    /// Binds a conversation to an agent for an operator, in the name of a person in Slack or of the
    /// app. Returns false without such an agent. The channel is not told.
    pub async fn save_binding(
        &self,
        by: &Actor,
        conversation: &ConversationKey,
        (org, agent): (&OrgId, &AgentId),
        bound_by: Option<&UserId>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        if !bind(&mut tx, conversation, (org, agent), bound_by.map(UserId::as_str)).await? {
            return Ok(false);
        }
        let ConversationKey { connection, team, channel } = conversation;
        let object = format!("{connection}/{team}/{channel}");
        let of_connection = AuditOrg::OfConnection(*connection);
        let entry = NewAuditEntry::new(AuditAction::BindingCreate, object, of_connection);
        let entry = entry.after(json!({ "agent": format!("{org}/{agent}") }));
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Removes the binding of a conversation for an operator. Returns false without one. The
    /// channel is not told.
    pub async fn delete_binding(
        &self,
        by: &Actor,
        conversation: &ConversationKey,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        if !unbind(&mut tx, conversation, &by.to_string()).await? {
            return Ok(false);
        }
        let ConversationKey { connection, team, channel } = conversation;
        let (action, org) = (AuditAction::BindingDelete, AuditOrg::OfConnection(*connection));
        let object = format!("{connection}/{team}/{channel}");
        add_audit_entries(&mut tx, by, &[NewAuditEntry::new(action, object, org)]).await?;
        tx.commit().await?;
        Ok(true)
    }
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
