//! Changes of conversations and connections that a webhook causes.
//!
//! The transaction of the commit applies them after the fence, so that each happens once. Guards
//! are inside the statements: a change without anything to change reports that, and its reply is
//! chosen from the report.

use crate::store::StoreError;
use crate::types::{AgentId, ChannelId, ConnectionId, OrgId, Outgoing, TeamId, UserId};
use sqlx::{PgConnection, Row};

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
