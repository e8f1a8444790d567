//! Retention: deletes expired rows in bounded steps and truncates slots of rotating tables.
//!
//! The maintenance of a worker calls it. Each step is independent, so that a failed one does not
//! block others.

use crate::store::{Store, StoreError};

/// Maximum rows deleted per step.
const STEP_ROWS: i64 = 5_000;

/// Tables with the statements that delete expired rows. `$1` is the maximum number of rows.
const PRUNE_STATEMENTS: [(&str, &str); 27] = [
    (
        "erasures",
        "-- retention.erasures
         delete from erasures where id in (
             select id from erasures where state = 'done' and created_at < now() - interval '400 days'
              limit $1)",
    ),
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
        "idempotency_keys",
        "-- retention.idempotency_keys
         delete from idempotency_keys where (api_key_id, key) in (
             select api_key_id, key from idempotency_keys where at < now() - interval '24 hours'
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
        "replay_results",
        "-- retention.replay_results
         delete from replay_results where ctid = any (array (
             select r.ctid from (
                 select id from replays where state <> 'open'
                    and created_at < now() - interval '30 days'
                  order by created_at limit 16) expired, lateral (
                 select r.ctid from replay_results r where r.replay = expired.id limit $1) r
              limit $1))",
    ),
    (
        "replays",
        "-- retention.replays
         delete from replays where id in (
             select p.id from replays p where p.state <> 'open'
                and p.created_at < now() - interval '30 days'
                and not exists (select from replay_results r where r.replay = p.id)
              order by p.created_at limit least($1, 16))",
    ),
    (
        "connection_status_history",
        "-- retention.connection_status_history
         delete from connection_status_history where id in (
             select id from connection_status_history where at < now() - interval '400 days'
              order by at limit $1)",
    ),
    (
        "token_rotations",
        "-- retention.token_rotations (those of inactive connections are not due for an hour)
         update token_rotations set refresh_at = now() + interval '1 hour' where connection_id in (
             select t.connection_id from token_rotations t
               join connections c on c.id = t.connection_id
              where t.refresh_at <= now() and c.status not in ('active', 'error')
              order by t.refresh_at limit $1)",
    ),
    (
        "token_rotations",
        "-- retention.erase_rotations (of connections that people uninstalled)
         delete from token_rotations where connection_id in (
             select t.connection_id from token_rotations t
               join connections c on c.id = t.connection_id
              where c.status = 'revoked' and c.installed_by is not null limit $1)",
    ),
    (
        "stream_removals",
        "-- retention.stream_removals (of earlier streams)
         delete from stream_removals where id in (
             select r.id from partition_cursors c, lateral (
                 select id from stream_removals r
                  where r.partition = c.partition and r.generation < c.generation limit $1) r
              limit $1)",
    ),
    (
        "stream_removals",
        "-- retention.merge_removals (the ledger needs their sum)
         with old as (
             delete from stream_removals where id in (
                 select r.id from partition_cursors c, lateral (
                     select id from stream_removals r
                      where r.partition = c.partition and r.generation = c.generation
                        and r.removed is not null and r.at < now() - interval '1 day'
                      limit $1) r
                  limit $1)
             returning partition, generation, up_to, removed)
         insert into stream_removals (partition, generation, subject, up_to, removed)
         select partition, generation, 'merged', max(up_to), sum(removed) from old group by 1, 2",
    ),
    (
        "user_questions",
        "-- retention.user_questions
         delete from user_questions where (connection_id, user_id, partition) in (
             select connection_id, user_id, partition from user_questions
              where at < now() - interval '10 minutes' order by at limit $1)
            and at < now() - interval '10 minutes'",
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
        "deleted_connections",
        "-- retention.deleted_connections (the stream keeps webhooks for 14 days)
         delete from deleted_connections where id in (
             select id from deleted_connections
              where emptied_at is not null and deleted_at < now() - interval '30 days'
              order by deleted_at limit $1)",
    ),
    (
        "deleted_messages",
        "-- retention.deleted_messages
         delete from deleted_messages where (connection_id, channel_id, ts) in (
             select connection_id, channel_id, ts from deleted_messages
              where at < now() - interval '14 days' order by at limit $1)",
    ),
    (
        "run_controls",
        "-- retention.run_controls
         delete from run_controls where id in (
             select id from run_controls where at < now() - interval '14 days' order by at
              limit $1)",
    ),
    (
        "agents",
        "-- retention.previous_headers
         update agents set headers_previous = null, headers_previous_until = null
          where (org_id, id) in (
                select org_id, id from agents where headers_previous_until < now()
                 order by headers_previous_until limit $1)
            and headers_previous_until < now()",
    ),
    (
        "approvals",
        "-- retention.approvals (a decision may wait, and be redriven from a dead letter)
         delete from approvals where id in (
             select id from approvals where created_at < now() - interval '60 days'
              order by created_at limit $1)",
    ),
    (
        "feedback",
        "-- retention.feedback
         delete from feedback where id in (
             select id from feedback where at < now() - interval '400 days' order by at limit $1)",
    ),
    (
        "channel_binding_history",
        "-- retention.channel_binding_history
         delete from channel_binding_history where id in (
             select id from channel_binding_history where at < now() - interval '400 days'
              order by at limit $1)",
    ),
    (
        "pauses",
        "-- retention.pauses
         delete from pauses where id in (
             select id from pauses where ended_at < now() - interval '30 days'
              order by ended_at limit $1)",
    ),
];

/// Statements that remove replaced signing secrets whose overlap ended. `$1` is the maximum number
/// of rows. The change reaches the directory of every ingest.
const EXPIRE_SECRETS: [&str; 2] = [
    "-- retention.previous_signing_secrets
     update connections
        set signing_secret_previous = null, signing_secret_previous_until = null
      where id in (select id from connections where signing_secret_previous_until < now()
                    order by signing_secret_previous_until limit $1)
        and signing_secret_previous_until < now()",
    "-- retention.app_signing_secrets
     update apps
        set signing_secret_previous = null, signing_secret_previous_until = null
      where id in (select id from apps where signing_secret_previous_until < now()
                    order by signing_secret_previous_until limit $1)
        and signing_secret_previous_until < now()",
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

impl Store {
    /// Deletes expired rows, at most one step of every table. Calls `failed` for each table that
    /// fails.
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

    /// Removes replaced signing secrets whose overlap ended. Returns the number of connections and
    /// apps.
    pub async fn expire_signing_secrets(&self) -> Result<u64, StoreError> {
        let mut expired = 0;
        for sql in EXPIRE_SECRETS {
            let done = sqlx::query(sql).bind(STEP_ROWS).execute(&self.pool).await?;
            expired += done.rows_affected();
        }
        Ok(expired)
    }

    /// Truncates slots of a rotating table that have rows and hold no day in use.
    async fn truncate_old_slots(
        &self,
        family: &'static str,
        slots: i32,
    ) -> Result<Vec<String>, StoreError> {
        // Keys are kept 48 h beyond what every partition has read, and a webhook's own day may
        // differ by two days. Logs use Postgres's day, and keep 30 days including today. At least
        // one slot must be unused, or nothing would be truncated.
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
