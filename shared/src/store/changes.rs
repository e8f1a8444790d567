//! What handling a webhook may change beside consuming a claim: bindings, sessions, the connection's life, greetings.
//!
//! In: changes, each with what is said for either result. Applied inside the webhook's own transaction, after it is
//! known to be ours and not done, so each happens once. Guards stand in the statements: a change that finds nothing to
//! change says so, and its reply is picked here, where that is known.

use super::StoreError;
use crate::types::{AgentId, ChannelId, ConnectionId, OrgId, Outgoing, TeamId, UserId};
use sqlx::{PgConnection, Row};

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
pub(super) async fn apply(tx: &mut PgConnection, what: &What) -> Result<bool, StoreError> {
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
                 insert into chat_sessions (connection_id, team_id, channel_id, number) values ($1, $2, $3, 2)
                 on conflict (connection_id, team_id, channel_id) do update set number = chat_sessions.number + 1",
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
                "-- welcomes.note
                 insert into welcomes (connection_id, team_id, user_id) values ($1, $2, $3) on conflict do nothing",
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
             delete from chat_sessions where connection_id = $1 and channel_id = $2 returning *),
         kept as (
             insert into chat_sessions (connection_id, team_id, channel_id, number)
             select connection_id, team_id, $3, number from session
             on conflict (connection_id, team_id, channel_id)
             do update set number = greatest(chat_sessions.number, excluded.number))
         select exists (select from old) as moved",
    )
    .bind(connection.to_string())
    .bind(from.as_str())
    .bind(to.as_str())
    .fetch_one(tx)
    .await?;
    Ok(row.try_get("moved")?)
}
