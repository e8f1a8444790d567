//! Hourly usage of connections.

use super::json;
use crate::domain::{ConnectionId, OrgId};
use crate::store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use time::OffsetDateTime;

/// Usage to add to an hour of a connection.
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

/// Usage of a connection in an hour.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct HourlyUsage {
    pub organization: Option<String>,
    pub connection: String,
    pub hour: String,
    pub webhooks: i64,
    pub ignored: i64,
    pub deliveries: i64,
    pub attempts: i64,
    pub agent_ms: i64,
    pub replies: i64,
    pub failures: i64,
}

/// Filter of usage. `None` matches everything.
#[derive(Debug, Clone, Default)]
pub struct UsageFilter {
    /// Organization of the connection.
    pub org: Option<OrgId>,
    /// Connection.
    pub connection: Option<ConnectionId>,
    /// First hour.
    pub from: Option<OffsetDateTime>,
    /// End of the hours, exclusive.
    pub to: Option<OffsetDateTime>,
    /// Hour and connection after which the page begins.
    pub after: Option<(String, String)>,
}

impl Store {
    /// Returns a page of usage, oldest hours first, at most `limit` rows.
    pub async fn usage(
        &self,
        filter: &UsageFilter,
        limit: i64,
    ) -> Result<Vec<HourlyUsage>, StoreError> {
        let rows = sqlx::query(
            "-- usage.page
             select to_jsonb(t) as row from (
                 select c.org_id as organization, u.connection_id as connection, u.hour, u.webhooks,
                        u.ignored, u.deliveries, u.attempts, u.agent_ms, u.replies, u.failures
                   from connection_usage u left join connections c on c.id = u.connection_id
                  where ($1::text is null or c.org_id = $1)
                    and ($2::text is null or u.connection_id = $2)
                    and ($3::timestamptz is null or u.hour >= $3)
                    and ($4::timestamptz is null or u.hour < $4)
                    and ($5::text is null or (u.hour, u.connection_id) > ($5::timestamptz, $6))
                  order by u.hour, u.connection_id limit $7) t",
        )
        .bind(filter.org.as_ref().map(OrgId::as_str))
        .bind(filter.connection.map(|id| id.to_string()))
        .bind(filter.from)
        .bind(filter.to)
        .bind(filter.after.as_ref().map(|(hour, _)| hour))
        .bind(filter.after.as_ref().map(|(_, connection)| connection))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Returns the sums of the last hours, oldest first: hour, webhooks and failures.
    pub async fn usage_by_hour(
        &self,
        org: Option<&OrgId>,
        hours: i64,
    ) -> Result<Vec<(OffsetDateTime, i64, i64)>, StoreError> {
        let rows = sqlx::query_as(
            "-- usage.by_hour
             select u.hour, sum(u.webhooks)::bigint, sum(u.failures)::bigint
               from connection_usage u
              where u.hour > now() - make_interval(hours => $2::integer)
                and ($1::text is null
                     or u.connection_id in (select c.id from connections c where c.org_id = $1))
              group by u.hour order by u.hour",
        )
        .bind(org.map(OrgId::as_str))
        .bind(i32::try_from(hours).unwrap_or(i32::MAX));
        Ok(rows.fetch_all(&self.pool).await?)
    }

    /// Adds usage to the current hour of connections.
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
