//! Bindings and sessions of conversations: reads.
//!
//! [`crate::store::webhooks`] and [`super::link_codes`] write them with the effects of a webhook.

use crate::store::{Agent, Chat, Store, StoreError, nullable};
use crate::types::{AgentId, OrgId, UserId};
use sqlx::Row;

/// State of a conversation.
#[derive(Debug, Clone)]
pub struct ChatState {
    /// Agent: bound, or the default. `None` if there is no such agent.
    pub agent: Option<Agent>,
    /// Person who created the binding.
    pub linked_by: Option<UserId>,
    /// Number of the session. The first is 1.
    pub session: i64,
}

impl Store {
    /// Returns the state of a conversation. `otherwise` is the default agent without a binding. An
    /// unknown conversation is in its first session.
    pub async fn chat(
        &self,
        chat: &Chat,
        otherwise: Option<(&OrgId, &AgentId)>,
    ) -> Result<ChatState, StoreError> {
        let row = sqlx::query(
            "-- bindings.chat
             select b.bound_by, coalesce(s.number, 1) as session, a.org_id, a.id, a.name, a.mode,
                    a.url, a.secret, a.timeout_ms, a.max_concurrent, a.retry_for_ms, a.keep_for_ms
               from (values ($1, $2, $3)) as here (connection_id, team_id, channel_id)
               left join channel_bindings b using (connection_id, team_id, channel_id)
               left join conversation_sessions s using (connection_id, team_id, channel_id)
               left join agents a on a.org_id = coalesce(b.org_id, $4)
                and a.id = coalesce(b.agent_id, $5)",
        )
        .bind(chat.connection.to_string())
        .bind(chat.team.as_str())
        .bind(chat.channel.as_str())
        .bind(otherwise.map(|(org, _)| org.as_str()))
        .bind(otherwise.map(|(_, agent)| agent.as_str()))
        .fetch_one(&self.pool)
        .await?;
        let key = format!("{}/{}/{}", chat.connection, chat.team, chat.channel);
        let linked_by = nullable(&row, "channel_bindings", &key, "bound_by")?;
        let (org, id) =
            (nullable(&row, "agents", &key, "org_id")?, nullable(&row, "agents", &key, "id")?);
        let agent = match (org, id) {
            (Some(org), Some(id)) => Some(self.agent_of(&row, org, id)?),
            _ => None,
        };
        Ok(ChatState { agent, linked_by, session: row.try_get("session")? })
    }
}
