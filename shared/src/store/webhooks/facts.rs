//! Facts for the decisions on a batch, read in one query without a cache.

use super::effects::AgentRef;
use crate::store::{Store, StoreError, column, connections::settings, nullable};
use crate::{
    codec::envelope::DedupeKey,
    partition::{Lane, Partition},
    types::{ConnectionId, EnterpriseId, OrgId, Settings, Status, TeamId, UserId},
};
use sha2::{Digest, Sha256};
use sqlx::{Row, postgres::PgRow};

/// Keys of the facts for one webhook.
#[derive(Debug, Clone)]
pub struct FactsQuery {
    /// Connection.
    pub connection: ConnectionId,
    /// Workspace in the body. The connection's own takes precedence.
    pub team: Option<String>,
    /// Channel, if any.
    pub channel: Option<String>,
    /// Lane.
    pub lane: Lane,
    /// Dedup key.
    pub key: ProcessedKey,
    /// Key of the trigger, if any. Has the same day.
    pub trigger: Option<ProcessedKey>,
}

/// Key of a row in `processed_keys`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessedKey {
    /// Day of the webhook's own time, counted from 1970.
    pub day: i32,
    /// First 16 bytes of the SHA-256 of the dedup key.
    pub key: [u8; 16],
}

impl ProcessedKey {
    /// Returns the row key of a dedup key.
    pub fn new(day: i32, dedup_key: &DedupeKey) -> Self {
        let hash: [u8; 32] = Sha256::digest(dedup_key.as_str().as_bytes()).into();
        Self { day, key: *hash.first_chunk().expect("SHA-256 has 32 bytes") }
    }
}

/// Facts for one webhook.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Connection.
    pub connection: ConnectionState,
    /// Conversation. An unknown one is unbound and in its first session.
    pub conversation: ConversationState,
    /// Default agent of the connection.
    pub own_agent: Option<AgentRef>,
    /// True if the dedup key is processed.
    pub processed: bool,
    /// True if the trigger is processed.
    pub trigger_processed: bool,
    /// True if the agent's circuit breaker is open and the conversation got no notice within the
    /// hour.
    pub tell_waiting: bool,
}

/// Connection for a decision.
#[derive(Debug, Clone)]
pub enum ConnectionState {
    /// Existing row.
    Known(Box<ConnectionFacts>),
    /// Deleted.
    Deleted,
    /// No connection has this id.
    Unknown,
    /// The row, or one that it references, has a value that this release can't read. Contains the
    /// failure.
    Unreadable(String),
}

/// Row of a connection without secrets.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct ConnectionFacts {
    pub id: ConnectionId,
    pub org: OrgId,
    pub enterprise: Option<EnterpriseId>,
    pub team: Option<TeamId>,
    pub preview_mode: bool,
    pub status: Status,
    pub bot_user: Option<String>,
    pub settings: Settings,
}

/// Conversation for a decision.
#[derive(Debug, Clone, Default)]
pub struct ConversationState {
    /// Agent: of the binding, else the connection's default, which a preview connection does not
    /// use.
    pub agent: Option<AgentRef>,
    /// Person who created the binding.
    pub linked_by: Option<UserId>,
    /// Session. The first is 1. 0 means unknown.
    pub session: i64,
}

impl Store {
    /// Reads the facts for the webhooks of a batch, in their order.
    pub async fn load_facts(
        &self,
        partition: Partition,
        queries: &[FactsQuery],
    ) -> Result<Vec<Facts>, StoreError> {
        let rows = sqlx::query(
            "-- intake.facts
             select c.id is not null as known, d.id is not null as deleted, c.org_id,
                    c.enterprise_id, c.team_id, c.preview_mode, c.status, c.bot_user_id, c.settings,
                    b.bound_by, coalesce(s.number, 1) as session,
                    a.org_id as bound_org, a.id as bound_id, a.name as bound_name,
                    a.mode as bound_mode, o.id as own_id, o.name as own_name, o.mode as own_mode,
                    exists (select from processed_keys p
                             where p.slot = u.day % 8 and p.partition = $1 and p.day = u.day
                               and p.key = u.key) as processed,
                    exists (select from processed_keys p
                             where p.slot = u.day % 8 and p.partition = $1 and p.day = u.day
                               and p.key = u.trigger)
                        as trigger_processed,
                    h.agent_id is not null
                    and not exists (select from delivery_lanes l
                                     where l.lane = u.lane and l.connection_id = u.connection
                                       and l.told_at > now() - interval '1 hour') as tell_waiting
               from unnest($2::text[], $3::text[], $4::text[], $5::integer[], $6::bytea[],
                           $7::bytea[], $8::bigint[])
                        with ordinality as u (connection, team, channel, day, key, trigger, lane, n)
               left join connections c on c.id = u.connection
               left join deleted_connections d on d.id = u.connection and c.id is null
               left join channel_bindings b on b.connection_id = u.connection
                                           and b.team_id = coalesce(c.team_id, u.team)
                                           and b.channel_id = u.channel
               left join conversation_sessions s on s.connection_id = u.connection
                                                and s.team_id = coalesce(c.team_id, u.team)
                                                and s.channel_id = u.channel
               left join agents a on a.org_id = b.org_id and a.id = b.agent_id
               left join agents o on o.org_id = c.org_id and o.id = c.agent_id
               left join agent_health h on h.org_id = coalesce(a.org_id, o.org_id)
                and h.agent_id = coalesce(a.id, o.id)
              order by u.n",
        )
        .bind(partition.number() as i16)
        .bind(queries.iter().map(|q| q.connection.to_string()).collect::<Vec<_>>())
        .bind(queries.iter().map(|q| q.team.as_deref()).collect::<Vec<_>>())
        .bind(queries.iter().map(|q| q.channel.as_deref()).collect::<Vec<_>>())
        .bind(queries.iter().map(|q| q.key.day).collect::<Vec<_>>())
        .bind(queries.iter().map(|q| &q.key.key[..]).collect::<Vec<_>>())
        .bind(queries.iter().map(|q| q.trigger.as_ref().map(|t| &t.key[..])).collect::<Vec<_>>())
        .bind(queries.iter().map(|q| q.lane.to_bits()).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().zip(queries).map(|(row, query)| facts(row, query)).collect()
    }
}

fn facts(row: &PgRow, query: &FactsQuery) -> Result<Facts, StoreError> {
    let without = |connection| -> Result<Facts, StoreError> {
        Ok(Facts {
            connection,
            conversation: ConversationState::default(),
            own_agent: None,
            processed: row.try_get("processed")?,
            trigger_processed: row.try_get("trigger_processed")?,
            tell_waiting: false,
        })
    };
    if row.try_get("deleted")? {
        return without(ConnectionState::Deleted);
    }
    if !row.try_get::<bool, _>("known")? {
        return without(ConnectionState::Unknown);
    }
    match known_facts(row, query.connection) {
        // The failure affects no other webhook of the batch.
        Err(error @ StoreError::Inconsistent { .. }) => {
            without(ConnectionState::Unreadable(error.to_string()))
        }
        facts => facts,
    }
}

fn known_facts(row: &PgRow, id: ConnectionId) -> Result<Facts, StoreError> {
    let key = id.to_string();
    let known = ConnectionFacts {
        id,
        org: column(row, "connections", &key, "org_id")?,
        enterprise: nullable(row, "connections", &key, "enterprise_id")?,
        team: nullable(row, "connections", &key, "team_id")?,
        preview_mode: row.try_get("preview_mode")?,
        status: column(row, "connections", &key, "status")?,
        bot_user: row.try_get("bot_user_id")?,
        settings: settings(row, &key)?,
    };
    let own_agent = match nullable(row, "agents", &key, "own_id")? {
        Some(id) => Some(AgentRef {
            name: display_name(row, "own_name", &id)?,
            mode: column(row, "agents", &key, "own_mode")?,
            org: known.org.clone(),
            id,
        }),
        None => None,
    };
    let bound = match nullable(row, "agents", &key, "bound_id")? {
        Some(id) => Some(AgentRef {
            name: display_name(row, "bound_name", &id)?,
            mode: column(row, "agents", &key, "bound_mode")?,
            org: column(row, "agents", &key, "bound_org")?,
            id,
        }),
        None => None,
    };
    let conversation = ConversationState {
        agent: bound.or_else(|| own_agent.clone().filter(|_| !known.preview_mode)),
        linked_by: nullable(row, "channel_bindings", &key, "bound_by")?,
        session: row.try_get("session")?,
    };
    Ok(Facts {
        connection: ConnectionState::Known(Box::new(known)),
        conversation,
        own_agent,
        processed: row.try_get("processed")?,
        trigger_processed: row.try_get("trigger_processed")?,
        tell_waiting: row.try_get("tell_waiting")?,
    })
}

fn display_name(
    row: &PgRow,
    column: &str,
    id: &crate::types::AgentId,
) -> Result<String, StoreError> {
    let name: String = row.try_get(column)?;
    Ok(if name.is_empty() { id.to_string() } else { name })
}
