//! Facts for the decisions on a batch, read in one query without a cache.

use super::{
    agent_ref::{display_name, policies},
    effects::AgentRef,
};
use crate::store::{Store, StoreError, column, connections::settings, nullable};
use crate::{
    domain::{
        AgentMode, ConnectionId, ConnectionSettings, ConnectionStatus, EnterpriseId, OrgId, TeamId,
        UserId,
    },
    stream::{DedupKey, Lane, Partition},
};
use sha2::{Digest, Sha256};
use sqlx::{Row, postgres::PgRow};
use std::{collections::HashMap, sync::Arc};

/// Keys of the facts for one webhook.
#[derive(Debug, Clone)]
pub struct FactsQuery {
    /// Connection.
    pub connection: ConnectionId,
    /// Workspace in the body. The connection's own takes precedence.
    pub team: Option<String>,
    /// Channel, if any.
    pub channel: Option<String>,
    /// Person, if any.
    pub user: Option<String>,
    /// Minute since 1970 in which the stream stored the webhook.
    pub minute: i32,
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
    pub fn new(day: i32, dedup_key: &DedupKey) -> Self {
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
    pub conversation: ConversationFacts,
    /// Default agent of the connection.
    pub own_agent: Option<AgentRef>,
    /// Agent of the clicked message, if another one has the conversation. The caller of
    /// [`Store::load_facts`] sets it.
    pub author: Option<AgentRef>,
    /// True if the dedup key is processed.
    pub processed: bool,
    /// True if the trigger is processed.
    pub trigger_processed: bool,
    /// True if the bot is known to be in the channel, from an event or a message sent there.
    pub channel_known: bool,
    /// True if the person is a declared member of the connection's organization. Only read if a
    /// setting needs it.
    pub is_admin: bool,
    /// True if the agent's circuit breaker is open and the conversation got no notice within the
    /// hour.
    pub is_notice_due: bool,
    /// Questions of the person within the webhook's minute.
    pub questions: QuestionFacts,
    /// Limits that the connection has reached.
    pub backlog: BacklogFacts,
}

/// Limits that a connection has reached at the last count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BacklogFacts {
    /// A new delivery becomes a dead letter without bytes.
    pub is_full: bool,
    /// No message is enqueued.
    pub has_max_messages: bool,
    /// A webhook that would become a dead letter is ignored.
    pub ignores: bool,
}

/// Questions of one person on a connection that were committed for the same minute of the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuestionFacts {
    /// Minute since 1970.
    pub minute: i32,
    /// Number of questions that agents received.
    pub asked: i64,
    /// True if the person was notified that the limit is reached.
    pub is_told: bool,
}

/// Connection for a decision.
#[derive(Debug, Clone)]
pub enum ConnectionState {
    /// Existing row.
    Known(Arc<ConnectionFacts>),
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
    pub status: ConnectionStatus,
    pub bot_user: Option<String>,
    pub settings: ConnectionSettings,
}

/// Conversation for a decision.
#[derive(Debug, Clone, Default)]
pub struct ConversationFacts {
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
             with u as materialized (
                 select * from unnest($2::text[], $3::text[], $4::text[], $5::integer[],
                                      $6::bytea[], $7::bytea[], $8::bigint[], $9::text[],
                                      $10::integer[])
                        with ordinality
                        as u (connection, team, channel, day, key, trigger, lane, person, minute,
                              n)),
             -- Lookups by key, a row at a time (`limit`, and `offset` below): a plan that was made
             -- when the tables were small may scan them.
             of_connection as materialized (
                 select u.connection, u.n as first, c.*, d.id is not null as deleted, o.id as own_id,
                        o.name as own_name, o.mode as own_mode,
                        o.max_per_user as own_max_per_user, o.edits as own_edits,
                        o.overlap as own_overlap, g.deliveries_full, g.messages_full,
                        g.ignores
                   from (select connection, min(n) as n from u group by 1) u
                   left join lateral (
                       select id, org_id, enterprise_id, team_id, preview_mode, status, bot_user_id,
                              settings, platform, agent_id
                         from connections where id = u.connection limit 1) c on true
                   left join lateral (
                       select id from deleted_connections
                        where id = u.connection and c.id is null limit 1) d on true
                   left join lateral (
                       select id, name, mode, max_per_user, edits, overlap from agents
                        where org_id = c.org_id and id = c.agent_id limit 1) o on true
                   left join lateral (
                       select deliveries_full, messages_full, ignores from connection_backlog
                        where connection_id = u.connection limit 1) g on true)
             -- Columns of the connection are in its first row only.
             select c.id is not null as known, c.deleted, f.id is not null as first, f.org_id,
                    f.enterprise_id, f.team_id, f.preview_mode, f.status, f.bot_user_id, f.settings,
                    f.own_id, f.own_name, f.own_mode, f.own_max_per_user, f.own_edits,
                    f.own_overlap,
                    b.bound_by, coalesce(s.number, 1) as session, a.org_id as bound_org,
                    a.id as bound_id, a.name as bound_name, a.mode as bound_mode,
                    a.max_per_user as bound_max_per_user, a.edits as bound_edits,
                    a.overlap as bound_overlap, q.asked, q.told,
                    coalesce(c.deliveries_full, false) as is_full,
                    coalesce(c.messages_full, false) as has_max_messages,
                    coalesce(c.ignores, false) as ignores,
                    exists (select from processed_keys p
                             where p.slot = u.day % 8 and p.partition = $1 and p.day = u.day
                               and p.key = u.key offset 0) as processed,
                    exists (select from processed_keys p
                             where p.slot = u.day % 8 and p.partition = $1 and p.day = u.day
                               and p.key = u.trigger offset 0) as trigger_processed,
                    exists (select from known_channels k
                             where k.connection_id = u.connection and k.channel_id = u.channel
                            offset 0) as channel_known,
                    coalesce(c.settings ->> 'link_by' <> 'anyone', false)
                    and exists (select from user_identities i
                                  join organization_members m on m.user_id = i.user_id
                                 where i.platform = c.platform
                                   and i.team_id = coalesce(c.team_id, u.team)
                                   and i.platform_user_id = u.person and m.org_id = c.org_id
                                offset 0) as is_admin,
                    h.agent_id is not null
                    and not exists (select from delivery_lanes l
                                     where l.lane = u.lane and l.connection_id = u.connection
                                       and l.told_at > now() - interval '1 hour' offset 0)
                        as tell_waiting
               from u join of_connection c using (connection)
               left join of_connection f on f.connection = u.connection and f.first = u.n
               left join lateral (
                   select * from channel_bindings b
                    where b.connection_id = u.connection and b.channel_id = u.channel
                      and b.team_id = coalesce(c.team_id, u.team) limit 1) b on true
               left join lateral (
                   select number from conversation_sessions s
                    where s.connection_id = u.connection and s.channel_id = u.channel
                      and s.team_id = coalesce(c.team_id, u.team) limit 1) s on true
               left join lateral (
                   select * from agents where org_id = b.org_id and id = b.agent_id limit 1) a
                 on true
               left join lateral (
                   select agent_id from agent_health h
                    where h.org_id = coalesce(a.org_id, c.org_id)
                      and h.agent_id = coalesce(a.id, c.own_id) limit 1) h on true
               left join lateral (
                   select sum(asked) as asked, bool_or(told) as told from user_questions q
                    where q.connection_id = u.connection and q.user_id = u.person
                      and q.minute = u.minute) q on true
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
        .bind(queries.iter().map(|q| q.user.as_deref()).collect::<Vec<_>>())
        .bind(queries.iter().map(|q| q.minute).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await?;
        let mut connections = Connections::new();
        rows.iter().zip(queries).map(|(row, query)| facts(row, query, &mut connections)).collect()
    }
}

/// Connections of a batch with their default agents. An error is the reason why one is unreadable.
type Connections = HashMap<ConnectionId, Result<(Arc<ConnectionFacts>, Option<AgentRef>), String>>;

fn facts(
    row: &PgRow,
    query: &FactsQuery,
    connections: &mut Connections,
) -> Result<Facts, StoreError> {
    let id = query.connection;
    let without = |connection| -> Result<Facts, StoreError> {
        Ok(Facts {
            connection,
            conversation: ConversationFacts::default(),
            own_agent: None,
            author: None,
            processed: row.try_get("processed")?,
            trigger_processed: row.try_get("trigger_processed")?,
            channel_known: false,
            is_admin: false,
            is_notice_due: false,
            questions: QuestionFacts { minute: query.minute, ..QuestionFacts::default() },
            backlog: backlog_facts(row)?,
        })
    };
    if row.try_get("deleted")? {
        return without(ConnectionState::Deleted);
    }
    if !row.try_get::<bool, _>("known")? {
        return without(ConnectionState::Unknown);
    }
    if row.try_get("first")? {
        connections.insert(id, readable(connection_facts(row, id))?);
    }
    let (known, own_agent) = match connections.get(&id) {
        Some(Ok(known)) => known,
        // The failure affects no webhook of another connection.
        Some(Err(error)) => return without(ConnectionState::Unreadable(error.clone())),
        None => return without(ConnectionState::Unknown),
    };
    let conversation = match readable(conversation_facts(row, known, own_agent.as_ref()))? {
        Ok(conversation) => conversation,
        Err(error) => return without(ConnectionState::Unreadable(error)),
    };
    Ok(Facts {
        connection: ConnectionState::Known(Arc::clone(known)),
        conversation,
        own_agent: own_agent.clone(),
        author: None,
        processed: row.try_get("processed")?,
        trigger_processed: row.try_get("trigger_processed")?,
        channel_known: row.try_get("channel_known")?,
        is_admin: row.try_get("is_admin")?,
        is_notice_due: row.try_get("tell_waiting")?,
        questions: QuestionFacts {
            minute: query.minute,
            asked: row.try_get::<Option<_>, _>("asked")?.unwrap_or_default(),
            is_told: row.try_get::<Option<_>, _>("told")?.unwrap_or_default(),
        },
        backlog: backlog_facts(row)?,
    })
}

/// Separates a value that this release can't read from failures of Postgres.
pub(super) fn readable<T>(result: Result<T, StoreError>) -> Result<Result<T, String>, StoreError> {
    match result {
        Err(error @ StoreError::Inconsistent { .. }) => Ok(Err(error.to_string())),
        result => result.map(Ok),
    }
}

/// Reads the columns of a connection and its default agent.
fn connection_facts(
    row: &PgRow,
    id: ConnectionId,
) -> Result<(Arc<ConnectionFacts>, Option<AgentRef>), StoreError> {
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
            max_per_user: row.try_get("own_max_per_user")?,
            policies: policies(row, &key, ["own_edits", "own_overlap"])?,
            org: known.org.clone(),
            id,
        }),
        None => None,
    };
    Ok((Arc::new(known), own_agent))
}

/// Reads the columns of a binding and a session.
fn conversation_facts(
    row: &PgRow,
    known: &ConnectionFacts,
    own_agent: Option<&AgentRef>,
) -> Result<ConversationFacts, StoreError> {
    let key = known.id.to_string();
    let bound = match nullable(row, "agents", &key, "bound_id")? {
        Some(id) => Some(AgentRef {
            name: display_name(row, "bound_name", &id)?,
            mode: column(row, "agents", &key, "bound_mode")?,
            max_per_user: row.try_get("bound_max_per_user")?,
            policies: policies(row, &key, ["bound_edits", "bound_overlap"])?,
            org: column(row, "agents", &key, "bound_org")?,
            id,
        }),
        None => None,
    };
    // The mode of a bound agent or the setting of the connection may have changed since.
    let is_allowed = |agent: &AgentRef| {
        let is_own = agent.mode == AgentMode::Reply || agent.org == known.org;
        is_own || known.settings.foreign_apps
    };
    Ok(ConversationFacts {
        agent: bound
            .filter(is_allowed)
            .or_else(|| own_agent.filter(|_| !known.preview_mode).cloned()),
        linked_by: nullable(row, "channel_bindings", &key, "bound_by")?,
        session: row.try_get("session")?,
    })
}

fn backlog_facts(row: &PgRow) -> Result<BacklogFacts, StoreError> {
    Ok(BacklogFacts {
        is_full: row.try_get("is_full")?,
        has_max_messages: row.try_get("has_max_messages")?,
        ignores: row.try_get("ignores")?,
    })
}
