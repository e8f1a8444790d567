//! Bindings: this conversation of this connection belongs to that agent.

use super::{Store, StoreError, column};
use crate::types::{AgentId, ChannelId, ConnectionId, OrgId, TeamId};

/// Whose a conversation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The agent's organization, which need not be the connection's.
    pub org: OrgId,
    /// The agent.
    pub agent: AgentId,
}

impl Store {
    /// The binding of a conversation, if it has one.
    pub async fn binding(
        &self,
        connection: ConnectionId,
        team: &TeamId,
        channel: &ChannelId,
    ) -> Result<Option<Bound>, StoreError> {
        let row = sqlx::query(
            "-- bindings.get
             select org_id, agent_id from channel_bindings
              where connection_id = $1 and team_id = $2 and channel_id = $3",
        )
        .bind(connection.to_string())
        .bind(team.as_str())
        .bind(channel.as_str())
        .fetch_optional(&self.pool)
        .await?;
        let key = || format!("{connection}/{team}/{channel}");
        row.map(|row| {
            let org = column(&row, "channel_bindings", &key(), "org_id")?;
            let agent = column(&row, "channel_bindings", &key(), "agent_id")?;
            Ok(Bound { org, agent })
        })
        .transpose()
    }
}
