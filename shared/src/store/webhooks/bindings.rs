//! Bindings of conversations to agents.

use super::ConversationKey;
use crate::{
    domain::{Actor, AgentId, ChannelId, ConnectionId, OrgId, UserId},
    store::{AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries},
};
use serde_json::json;
use sqlx::{PgConnection, Row};

/// Binds a conversation to an agent, for a person or the app itself. Returns false if there is no
/// such agent, or if the connection allows no apps of other organizations.
pub(super) async fn bind(
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
pub(super) async fn unbind(
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
    /// Binds a conversation to an agent for an operator, on behalf of a person in Slack or of the
    /// app. Returns false if there is no such agent, or if the connection does not allow it. Sends
    /// no message to the channel.
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

    /// Removes the binding of a conversation for an operator. Returns false if there is none. Sends
    /// no message to the channel.
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
pub(super) async fn move_channel(
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
