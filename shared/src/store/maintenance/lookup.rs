//! Search for all records of a webhook, for `tidegate webhook show`.
//!
//! A search has a dedup key, the last part of one (Slack's event id, or the reference in a failure
//! notice), or channel and ts. Without a connection the search visits all connections in steps. By
//! the last part of a key it then misses webhooks whose only record is in `processed_keys`.

use super::json;
use crate::store::{Store, StoreError, webhooks::ProcessedAs};
use crate::{domain::ConnectionId, store::ProcessedKey, stream::DedupKey};
use serde::Serialize;
use serde_json::Value;
use sqlx::Row;

/// Connections per statement.
const STEP_CONNECTIONS: i64 = 100;
/// Maximum number of found keys.
const FOUND_MAX: usize = 20;
/// Second parts of dedup keys whose last part is a hash. The last part of an event's key is its id.
const HASHED_KINDS: [&str; 6] =
    ["event-hash", "trigger", "action", "body", "options", "rate-limited"];

/// Search for a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookQuery {
    /// Dedup key.
    DedupKey(String),
    /// Last part of the dedup key: Slack's event id, or a hash.
    Reference(String),
    /// Message that the webhook is about.
    Message {
        /// Channel.
        channel: String,
        /// Timestamp.
        ts: String,
    },
}

impl From<&str> for WebhookQuery {
    fn from(text: &str) -> Self {
        let connection = text.split(':').next().unwrap_or_default();
        if text.contains(':') && connection.parse::<ConnectionId>().is_ok() {
            return Self::DedupKey(text.to_owned());
        }
        match text.split_once('/') {
            Some((channel, ts)) => Self::Message { channel: channel.into(), ts: ts.into() },
            None => Self::Reference(text.to_owned()),
        }
    }
}

/// Records of a webhook.
#[derive(Debug, Serialize)]
pub struct WebhookRecord {
    /// Dedup key.
    pub dedup_key: String,
    /// Rows by section.
    #[serde(flatten)]
    pub rows: serde_json::Map<String, Value>,
}

/// Queries by dedup key (`$1`), connection (`$2`) and key in `processed_keys` (`$3`).
const SECTIONS: [(&str, &str); 10] = [
    (
        "processed",
        "-- webhook.processed
         select to_jsonb(t) as row from (
             select k.partition, k.generation, k.sequence, k.outcome as outcome_number
               from generate_series(
                        floor(extract(epoch from now()) / 86400)::integer - 10,
                        floor(extract(epoch from now()) / 86400)::integer + 3) as d (day),
                    generate_series(0, 63) as p (n), processed_keys k
              where k.slot = d.day % 8 and k.partition = p.n and k.day = d.day and k.key = $3
                and $1::text is not null and $2::text is not null) t",
    ),
    (
        "ignored",
        "-- webhook.ignored
         select to_jsonb(t) as row from (
             select at, reason, partition, generation, sequence, event_id, channel_id, ts, user_id
               from ignored_webhooks where dedup_key = $1 and $2::text is not null
                and $3::bytea is not null order by at) t",
    ),
    (
        "delivery",
        "-- webhook.delivery
         select to_jsonb(t) as row from (
             select lpad(to_hex(d.lane), 16, '0') as lane, d.position, l.head, l.tail, d.org_id,
                    d.agent_id, d.kind, d.session, d.event_id, d.channel_id, d.thread_ts, d.ts,
                    d.user_id, d.received_at, d.stored_at, d.inserted_at, d.partition, d.generation,
                    d.sequence, d.replay,
                    case when d.position > l.head then 'waits for its turn'
                         when l.worker is not null then 'runs'
                         else 'waits' end as state,
                    case when d.position = l.head then l.attempts end as attempts,
                    case when d.position = l.head then l.first_attempt_at end as first_attempt_at,
                    case when d.position = l.head then nullif(l.next_at, 'infinity') end as next_at,
                    case when d.position = l.head then l.worker end as worker,
                    case when d.position = l.head then l.last_error end as last_error
               from deliveries d left join delivery_lanes l using (connection_id, lane)
              where d.dedup_key = $1 and $2::text is not null and $3::bytea is not null) t",
    ),
    (
        "run",
        "-- webhook.run
         select to_jsonb(t) as row from (
             select r.started_at, r.parts, r.sent, r.segment, r.text_bytes, r.ended
               from deliveries d join runs r using (connection_id, lane, position)
              where d.dedup_key = $1 and $2::text is not null and $3::bytea is not null) t",
    ),
    (
        "delivery_log",
        "-- webhook.delivery_log
         select to_jsonb(t) as row from (
             select at, outcome, error, attempts, org_id, agent_id, kind, worker,
                    lpad(to_hex(lane), 16, '0') as lane, event_id, channel_id, thread_ts, ts,
                    user_id, received_at, stored_at, inserted_at, first_attempt_at, partition,
                    generation, sequence
               from delivery_log where dedup_key = $1 and $2::text is not null
                and $3::bytea is not null order by at) t",
    ),
    (
        "dead_letter",
        "-- webhook.dead_letters
         select to_jsonb(t) as row from (
             select id, at, stage, reason, last_error, attempts, redrive_at, kind, org_id, agent_id,
                    event_id, channel_id, ts, user_id, partition, generation, sequence,
                    payload is not null as has_payload
               from dead_letters where dedup_key = $1 and $2::text is not null
                and $3::bytea is not null order by id) t",
    ),
    (
        "outbox",
        "-- webhook.outbox
         select to_jsonb(t) as row from (
             select o.id, lpad(to_hex(o.lane), 16, '0') as lane, o.position, l.head, l.tail,
                    o.channel_key, o.method, o.created_at,
                    case when o.position = l.head then l.attempts end as attempts,
                    case when o.position = l.head then nullif(l.next_at, 'infinity') end as next_at,
                    case when o.position = l.head then l.worker end as worker,
                    case when o.position = l.head then l.ambiguous end as ambiguous,
                    case when o.position = l.head then l.last_error end as last_error
               from outbox o left join outbox_lanes l using (connection_id, lane)
              where o.connection_id = $2 and o.dedup_key = $1 and $3::bytea is not null
              order by o.id) t",
    ),
    (
        "outbox_log",
        "-- webhook.outbox_log
         select to_jsonb(t) as row from (
             select at, outbox_id, channel_key, method, attempts, resend_count, created_at
               from outbox_log where dedup_key = $1 and $2::text is not null
                and $3::bytea is not null order by at) t",
    ),
    (
        "outbox_failure",
        "-- webhook.outbox_failures
         select to_jsonb(t) as row from (
             select id, at, channel_key, method, error, attempts, resend_count, created_at
               from outbox_failures where dedup_key = $1 and $2::text is not null
                and $3::bytea is not null order by id) t",
    ),
    (
        "response_url",
        "-- webhook.response_url
         select to_jsonb(t) as row from (
             select uses, at from response_url_uses
              where dedup_key = $1 and $2::text is not null and $3::bytea is not null) t",
    ),
];

/// Query of dedup keys with a record, among candidates. `$1` and `$2`: connections and second parts
/// of keys. `$3`: last part. `$4`: whether to search `processed_keys`, which costs hundreds of
/// probes per key.
const BY_REFERENCE: &str = "-- webhook.find_reference
    with k as materialized (
        select c || ':' || s || ':' || $3 as dedup_key
          from unnest($1::text[]) c, unnest($2::text[]) s)
    select k.dedup_key as key from k
     where exists (select from deliveries d where d.dedup_key = k.dedup_key)
        or exists (select from dead_letters d where d.dedup_key = k.dedup_key)
        or exists (select from delivery_log d where d.dedup_key = k.dedup_key)
        or exists (select from ignored_webhooks i where i.dedup_key = k.dedup_key)
        or exists (select from outbox_log o where o.dedup_key = k.dedup_key)
        or exists (select from outbox_failures o where o.dedup_key = k.dedup_key)
        or $4 and exists (
                  select from generate_series(
                                  floor(extract(epoch from now()) / 86400)::integer - 10,
                                  floor(extract(epoch from now()) / 86400)::integer + 3) as d (day),
                              generate_series(0, 63) as p (n), processed_keys x
                   where x.slot = d.day % 8 and x.partition = p.n and x.day = d.day
                     and x.key = substring(sha256(convert_to(k.dedup_key, 'UTF8')) for 16))";

/// Query of dedup keys of webhooks about a message. `$1`: connections. `$2`: channel. `$3`: ts.
const BY_MESSAGE: &str = "-- webhook.find_message
    select distinct dedup_key as key from (
        select dedup_key from deliveries where connection_id = any ($1) and channel_id = $2
           and ts = $3
        union all
        select dedup_key from delivery_log where connection_id = any ($1) and channel_id = $2
           and ts = $3
        union all
        select dedup_key from dead_letters where connection_id = any ($1) and channel_id = $2
           and ts = $3
        union all
        select dedup_key from ignored_webhooks where connection_id = any ($1) and channel_id = $2
           and ts = $3) t
     where dedup_key is not null";

impl Store {
    /// Returns the dedup keys of matching webhooks, at most 20.
    pub async fn find_webhooks(
        &self,
        query: &WebhookQuery,
        only: Option<ConnectionId>,
    ) -> Result<Vec<String>, StoreError> {
        if let WebhookQuery::DedupKey(key) = query {
            return Ok(vec![key.clone()]);
        }
        let (mut after, mut found) = (String::new(), Vec::new());
        loop {
            let connections: Vec<String> = sqlx::query_scalar(
                "-- webhook.connections
                 select id from (
                     (select id from connections where id > $1 and ($2::text is null or id = $2)
                       order by id limit $3)
                     union
                     (select id from deleted_connections where id > $1
                         and ($2::text is null or id = $2)
                       order by id limit $3)) t
                  order by id limit $3",
            )
            .bind(&after)
            .bind(only.map(|id| id.to_string()))
            .bind(STEP_CONNECTIONS)
            .fetch_all(&self.pool)
            .await?;
            let Some(last) = connections.last().cloned() else { break };
            let rows = match query {
                WebhookQuery::Message { channel, ts } => {
                    sqlx::query(BY_MESSAGE).bind(&connections).bind(channel).bind(ts)
                }
                WebhookQuery::Reference(reference) | WebhookQuery::DedupKey(reference) => {
                    sqlx::query(BY_REFERENCE)
                        .bind(&connections)
                        .bind(key_kinds(reference))
                        .bind(reference)
                        .bind(only.is_some())
                }
            };
            for row in rows.fetch_all(&self.pool).await? {
                found.push(row.try_get("key")?);
            }
            if found.len() >= FOUND_MAX {
                found.truncate(FOUND_MAX);
                break;
            }
            after = last;
        }
        Ok(found)
    }

    /// Returns all records of a webhook. `None` if there are none.
    pub async fn webhook(&self, dedup_key: &str) -> Result<Option<WebhookRecord>, StoreError> {
        let key = ProcessedKey::new(0, &DedupKey::from_stored(dedup_key.to_owned()));
        let connection = dedup_key.split(':').next().unwrap_or_default();
        let mut rows = serde_json::Map::new();
        for (name, sql) in SECTIONS {
            let query = sqlx::query(sql).bind(dedup_key).bind(connection).bind(&key.key[..]);
            let found = query.fetch_all(&self.pool).await?;
            let mut values: Vec<Value> = found.iter().map(json).collect::<Result<_, _>>()?;
            values.iter_mut().for_each(name_outcome);
            if !values.is_empty() {
                rows.insert(name.to_owned(), values.into());
            }
        }
        Ok((!rows.is_empty()).then(|| WebhookRecord { dedup_key: dedup_key.to_owned(), rows }))
    }
}

/// Returns the second parts that a dedup key with this last part may have.
fn key_kinds(reference: &str) -> Vec<&'static str> {
    let hash = reference.len() == 32 && reference.bytes().all(|b| b.is_ascii_hexdigit());
    if hash { HASHED_KINDS.into_iter().chain(["event"]).collect() } else { vec!["event"] }
}

/// Replaces the number of an outcome by its name.
fn name_outcome(row: &mut Value) {
    let Some(row) = row.as_object_mut() else { return };
    if let Some(number) = row.remove("outcome_number") {
        let number = number.as_i64().and_then(|n| i16::try_from(n).ok());
        let name = number.and_then(ProcessedAs::from_number).map_or("unknown", ProcessedAs::as_str);
        row.insert("as".into(), name.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_searches_by_form() {
        let id = format!("{:032x}", 7);
        let key = format!("{id}:event:Ev1");
        assert_eq!(WebhookQuery::from(key.as_str()), WebhookQuery::DedupKey(key.clone()));
        assert_eq!(WebhookQuery::from("Ev1"), WebhookQuery::Reference("Ev1".into()));
        assert_eq!(WebhookQuery::from(id.as_str()), WebhookQuery::Reference(id.clone()));
        let message = WebhookQuery::Message { channel: "C1".into(), ts: "1.2".into() };
        assert_eq!(WebhookQuery::from("C1/1.2"), message);
        assert_eq!(key_kinds("Ev1"), ["event"]);
        assert_eq!(key_kinds(&id).len(), HASHED_KINDS.len() + 1);
    }
}
