//! Retention: deletes expired rows in bounded steps and truncates slots of rotating tables.
//!
//! The maintenance of a worker calls it. Each step is independent, so that a failed one does not
//! block others.

use crate::store::{Store, StoreError};
use sqlx::Row;
use std::time::Duration;

/// Maximum rows deleted per step.
const STEP_ROWS: i64 = 5_000;

/// Tables with the statements that delete expired rows. `$1` is the maximum number of rows.
const PRUNE_STATEMENTS: [(&str, &str); 11] = [
    (
        "delivery_lanes",
        "-- retention.delivery_lanes
         delete from delivery_lanes where (connection_id, lane) in (
             select connection_id, lane from delivery_lanes where head > tail and worker is null
              limit $1
                for update skip locked) and head > tail and worker is null",
    ),
    (
        "outbox_lanes",
        "-- retention.outbox_lanes
         delete from outbox_lanes where (connection_id, lane) in (
             select connection_id, lane from outbox_lanes where head > tail and worker is null
              limit $1
                for update skip locked) and head > tail and worker is null",
    ),
    (
        "outbox_channels",
        "-- retention.outbox_channels
         delete from outbox_channels where (connection_id, channel_key) in (
             select connection_id, channel_key from outbox_channels where pending = 0 limit $1
                for update skip locked) and pending = 0 and next_at = 'infinity'
                    and paced_until < now()",
    ),
    (
        "outbox_failures",
        "-- retention.outbox_failures
         delete from outbox_failures where id in (
             select id from outbox_failures where at < now() - interval '30 days' order by at
              limit $1)",
    ),
    (
        "dead_letters",
        "-- retention.dead_letters
         delete from dead_letters where id in (
             select id from dead_letters where at < now() - interval '30 days' order by at
              limit $1)",
    ),
    (
        "response_url_uses",
        "-- retention.response_url_uses
         delete from response_url_uses where dedup_key in (
             select dedup_key from response_url_uses where at < now() - interval '1 hour'
              order by at limit $1)",
    ),
    (
        "connection_usage",
        "-- retention.connection_usage
         delete from connection_usage where (connection_id, hour) in (
             select connection_id, hour from connection_usage
              where hour < now() - interval '400 days'
              order by hour limit $1)",
    ),
    (
        "replays",
        "-- retention.replays
         delete from replays where id in (
             select id from replays where state <> 'open'
                and created_at < now() - interval '30 days'
              order by created_at limit $1)",
    ),
    (
        "link_code_attempts",
        "-- retention.link_code_attempts
         delete from link_code_attempts where who in (
             select who from link_code_attempts where until < now() order by until limit $1)",
    ),
    (
        "deleted_agents",
        "-- retention.deleted_agents
         delete from deleted_agents where (org_id, agent_id) in (
             select org_id, agent_id from deleted_agents
              where deleted_at < now() - interval '2 days'
              order by deleted_at limit $1)",
    ),
    (
        "pauses",
        "-- retention.pauses
         delete from pauses where id in (
             select id from pauses where ended_at < now() - interval '30 days' order by id
              limit $1)",
    ),
];

/// Rotating tables and their numbers of slots.
const ROTATING_TABLES: [(&str, i32); 4] =
    [("processed_keys", 8), ("ignored_webhooks", 8), ("delivery_log", 32), ("outbox_log", 32)];

/// Result of retention.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneStats {
    /// Tables with the number of deleted rows, if any.
    pub rows: Vec<(&'static str, u64)>,
    /// Truncated slots.
    pub slots: Vec<String>,
}

/// Numbers of unfinished work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BacklogStats {
    /// Waiting and running deliveries.
    pub deliveries: i64,
    /// Age of the oldest delivery.
    pub deliveries_oldest: Duration,
    /// Dead letters.
    pub dead_letters: i64,
    /// Waiting messages.
    pub outbox: i64,
    /// Age of the oldest message.
    pub outbox_oldest: Duration,
    /// Messages that Slack rejected for good.
    pub outbox_failures: i64,
}

impl Store {
    /// Counts unfinished work, by lanes: their number is that of conversations, not of webhooks.
    pub async fn backlog_stats(&self) -> Result<BacklogStats, StoreError> {
        let row = sqlx::query(
            "-- retention.backlog
             select (select coalesce(sum(tail - head + 1), 0)::bigint
                       from delivery_lanes) as deliveries,
                    (select coalesce(extract(epoch from now() - min(d.inserted_at)), 0)::float8
                       from (select connection_id, lane, head from delivery_lanes where head <= tail
                              order by next_at limit 100) l
                       join deliveries d on d.connection_id = l.connection_id and d.lane = l.lane
                                        and d.position = l.head) as deliveries_oldest,
                    (select count(*) from dead_letters) as dead_letters,
                    (select count(*) from outbox_failures) as outbox_failures,
                    (select coalesce(sum(pending), 0)::bigint from outbox_channels) as outbox,
                    (select coalesce(extract(epoch from now() - created_at), 0)::float8 from outbox
                      order by id limit 1) as outbox_oldest",
        )
        .fetch_one(&self.pool)
        .await?;
        let age = |column| -> Result<Duration, StoreError> {
            let seconds: Option<f64> = row.try_get(column)?;
            Ok(Duration::from_secs_f64(seconds.unwrap_or_default().max(0.0)))
        };
        Ok(BacklogStats {
            deliveries: row.try_get("deliveries")?,
            deliveries_oldest: age("deliveries_oldest")?,
            dead_letters: row.try_get("dead_letters")?,
            outbox: row.try_get("outbox")?,
            outbox_oldest: age("outbox_oldest")?,
            outbox_failures: row.try_get("outbox_failures")?,
        })
    }

    /// Deletes a step of every table. Calls `failed` for each table that fails.
    pub async fn prune_expired(&self, mut failed: impl FnMut(&str, StoreError)) -> PruneStats {
        let mut stats = PruneStats::default();
        for (table, sql) in PRUNE_STATEMENTS {
            match sqlx::query(sql).bind(STEP_ROWS).execute(&self.pool).await {
                Ok(done) if done.rows_affected() > 0 => {
                    stats.rows.push((table, done.rows_affected()));
                }
                Ok(_) => {}
                Err(error) => failed(table, error.into()),
            }
        }
        for (family, slots) in ROTATING_TABLES {
            match self.truncate_old_slots(family, slots).await {
                Ok(truncated) => stats.slots.extend(truncated),
                Err(error) => failed(family, error),
            }
        }
        stats
    }

    /// Truncates filled slots of a rotating table that hold no day in use.
    async fn truncate_old_slots(
        &self,
        family: &'static str,
        slots: i32,
    ) -> Result<Vec<String>, StoreError> {
        // Keys are kept 48 h beyond what every partition has read, and a webhook's own day may be
        // two days off. Logs use Postgres's day, and keep 30 days including today. At least one
        // slot must be unused, or nothing would be truncated.
        let (first, last): (i32, i32) = sqlx::query_as(
            "-- retention.days
             select case when $1 = 'processed_keys'
                         then floor(extract(epoch from least(now(), (
                                  select min(read_through) from partition_cursors
                                   where messages > 0))) / 86400)::integer - 4
                         when $1 = 'ignored_webhooks'
                         then floor(extract(epoch from now()) / 86400)::integer - 3
                         else floor(extract(epoch from now()) / 86400)::integer - 29 end,
                    floor(extract(epoch from now()) / 86400)::integer
                    + case when $1 in ('processed_keys', 'ignored_webhooks') then 2 else 1 end",
        )
        .bind(family)
        .fetch_one(&self.pool)
        .await?;
        let in_use: Vec<i32> =
            (first.max(last - slots + 1)..=last).map(|day| day % slots).collect();
        let in_use = if last - first >= slots { (0..slots).collect() } else { in_use };
        let mut truncated = Vec::new();
        for slot in (0..slots).filter(|slot| !in_use.contains(slot)) {
            let table = format!("{family}_{slot}");
            let filled: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
                "-- retention.is_filled\n select exists (select from {table})"
            )))
            .fetch_one(&self.pool)
            .await?;
            if filled {
                sqlx::query("-- retention.truncate\n select truncate_slot($1, $2)")
                    .bind(family)
                    .bind(slot)
                    .execute(&self.pool)
                    .await?;
                truncated.push(table);
            }
        }
        Ok(truncated)
    }
}
