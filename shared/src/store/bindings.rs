//! Bindings and sessions: this conversation of this connection belongs to that agent, and is in its n-th session.
//!
//! They are written where a webhook's effects are (see [`super::changes`] and [`super::claims`]), and read here.

use super::{Chat, Store, StoreError, nullable};
use crate::types::{AgentId, OrgId, UserId};
use sqlx::Row;

/// Whose a conversation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The agent's organization, which need not be the connection's.
    pub org: OrgId,
    /// The agent.
    pub agent: AgentId,
    /// Who linked it.
    pub by: UserId,
}

/// What is known of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatState {
    /// Whose it is, if it was linked.
    pub bound: Option<Bound>,
    /// Which session it is in. The first is 1.
    pub session: i64,
}

impl Store {
    /// What is known of a conversation; a conversation nobody heard of is in its first session.
    pub async fn chat(&self, chat: &Chat) -> Result<ChatState, StoreError> {
        let row = sqlx::query(
            "-- bindings.chat
             select b.org_id, b.agent_id, b.bound_by, coalesce(s.number, 1) as session
               from (values ($1, $2, $3)) as here (connection_id, team_id, channel_id)
               left join channel_bindings b using (connection_id, team_id, channel_id)
               left join chat_sessions s using (connection_id, team_id, channel_id)",
        )
        .bind(chat.connection.to_string())
        .bind(chat.team.as_str())
        .bind(chat.channel.as_str())
        .fetch_one(&self.pool)
        .await?;
        let key = format!("{}/{}/{}", chat.connection, chat.team, chat.channel);
        let org = nullable(&row, "channel_bindings", &key, "org_id")?;
        let agent = nullable(&row, "channel_bindings", &key, "agent_id")?;
        let by = nullable(&row, "channel_bindings", &key, "bound_by")?;
        let bound = match (org, agent, by) {
            (Some(org), Some(agent), Some(by)) => Some(Bound { org, agent, by }),
            _ => None,
        };
        Ok(ChatState { bound, session: row.try_get("session")? })
    }
}
