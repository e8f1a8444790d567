//! Hourly usage of connections.

use crate::store::{Store, StoreError};
use crate::types::ConnectionId;
use std::collections::HashMap;

/// Increment of a connection's hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct UsageRow {
    pub webhooks: i64,
    pub ignored: i64,
    pub deliveries: i64,
    pub attempts: i64,
    pub agent_ms: i64,
    pub replies: i64,
    pub failures: i64,
}

impl Store {
    /// Adds to the current hour of connections.
    pub async fn add_usage(
        &self,
        rows: &HashMap<ConnectionId, UsageRow>,
    ) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let values = |field: fn(&UsageRow) -> i64| rows.values().map(field).collect::<Vec<_>>();
        sqlx::query(
            "-- usage.add
             insert into connection_usage as c (connection_id, hour, webhooks, ignored, deliveries,
                                                attempts, agent_ms, replies, failures)
             select u.id, date_trunc('hour', now()), webhooks, ignored, deliveries, attempts,
                    agent_ms, replies, failures
               from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[],
                           $6::bigint[], $7::bigint[], $8::bigint[])
                    as u (id, webhooks, ignored, deliveries, attempts, agent_ms, replies, failures)
              order by u.id
             on conflict (connection_id, hour) do update
                set webhooks = c.webhooks + excluded.webhooks,
                    ignored = c.ignored + excluded.ignored,
                    deliveries = c.deliveries + excluded.deliveries,
                    attempts = c.attempts + excluded.attempts,
                    agent_ms = c.agent_ms + excluded.agent_ms,
                    replies = c.replies + excluded.replies,
                    failures = c.failures + excluded.failures",
        )
        .bind(rows.keys().map(ToString::to_string).collect::<Vec<_>>())
        .bind(values(|row| row.webhooks))
        .bind(values(|row| row.ignored))
        .bind(values(|row| row.deliveries))
        .bind(values(|row| row.attempts))
        .bind(values(|row| row.agent_ms))
        .bind(values(|row| row.replies))
        .bind(values(|row| row.failures))
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
