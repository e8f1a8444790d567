//! Bindings and sessions of conversations: reads.
//!
//! [`crate::store::webhooks`] and [`super::link_codes`] write them with the effects of a webhook.

use crate::domain::{AgentId, ChannelId, ConnectionId, OrgId, UserId};
use crate::store::{Agent, ConversationKey, Store, StoreError, nullable, timestamp};
use serde::Serialize;
use sqlx::Row;

/// State of a conversation.
#[derive(Debug, Clone)]
pub struct ConversationState {
    /// Agent: bound, or the default. `None` if there is no such agent.
    pub agent: Option<Agent>,
    /// Person who created the binding.
    pub linked_by: Option<UserId>,
    /// Number of the session. The first is 1.
    pub session: i64,
}

/// Change of a binding.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct BindingChange {
    pub at: Option<String>,
    pub channel: String,
    /// `None` if the binding was removed.
    pub org: Option<String>,
    pub agent: Option<String>,
    pub by: String,
}

impl Store {
    /// Returns the state of a conversation. `otherwise` is the agent of a conversation without a
    /// binding. An unknown conversation is in its first session.
    pub async fn conversation_state(
        &self,
        conversation: &ConversationKey,
        otherwise: Option<(&OrgId, &AgentId)>,
    ) -> Result<ConversationState, StoreError> {
        let row = sqlx::query(
            "-- conversations.state
             select b.bound_by, coalesce(s.number, 1) as session, a.org_id, a.id, a.name, a.mode,
                    a.url, a.secret, a.timeout_ms, a.max_concurrent, a.retry_for_ms, a.keep_for_ms,
                    a.signs_as_slack, a.max_per_user, a.headers, a.edits, a.overlap,
                    null::text as headers_previous
               from (values ($1, $2, $3)) as here (connection_id, team_id, channel_id)
               left join channel_bindings b using (connection_id, team_id, channel_id)
               left join conversation_sessions s using (connection_id, team_id, channel_id)
               left join agents a on a.org_id = coalesce(b.org_id, $4)
                and a.id = coalesce(b.agent_id, $5)",
        )
        .bind(conversation.connection.to_string())
        .bind(conversation.team.as_str())
        .bind(conversation.channel.as_str())
        .bind(otherwise.map(|(org, _)| org.as_str()))
        .bind(otherwise.map(|(_, agent)| agent.as_str()))
        .fetch_one(&self.pool)
        .await?;
        let key =
            format!("{}/{}/{}", conversation.connection, conversation.team, conversation.channel);
        let linked_by = nullable(&row, "channel_bindings", &key, "bound_by")?;
        let (org, id) =
            (nullable(&row, "agents", &key, "org_id")?, nullable(&row, "agents", &key, "id")?);
        let agent = match (org, id) {
            (Some(org), Some(id)) => Some(self.agent_of(&row, org, id)?),
            _ => None,
        };
        Ok(ConversationState { agent, linked_by, session: row.try_get("session")? })
    }

    /// Records that a bot is in a direct message or channel.
    pub async fn record_known_channel(
        &self,
        connection: ConnectionId,
        channel: &ChannelId,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- known_channels.add
             insert into known_channels (connection_id, channel_id) values ($1, $2)
             on conflict do nothing",
        )
        .bind(connection.to_string())
        .bind(channel.as_str())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Returns the newest changes of a connection's bindings, at most `limit`.
    pub async fn binding_history(
        &self,
        connection: ConnectionId,
        limit: i64,
    ) -> Result<Vec<BindingChange>, StoreError> {
        let key = connection.to_string();
        let rows = sqlx::query(
            "-- bindings.history
             select at, channel_id, org_id, agent_id, changed_by from channel_binding_history
              where connection_id = $1 order by id desc limit $2",
        )
        .bind(&key)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        let change = |row| {
            Ok(BindingChange {
                at: timestamp(row, "channel_binding_history", &key, "at")?,
                channel: row.try_get("channel_id")?,
                org: row.try_get("org_id")?,
                agent: row.try_get("agent_id")?,
                by: row.try_get("changed_by")?,
            })
        };
        rows.iter().map(change).collect()
    }
}
