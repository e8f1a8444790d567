//! Traffic of deleted connections: the rest of an interrupted or unfinished deletion, and rows that
//! were inserted since.

use crate::domain::ConnectionId;
use crate::store::{Store, StoreError, inconsistent};
use std::time::Duration;
use time::OffsetDateTime;

/// Deleted connections per page of [`LATE_TRAFFIC`].
const LATE_TRAFFIC_PAGE: i64 = 50;
/// Maximum steps per connection and visit.
const VISIT_STEPS: usize = 20;
/// Deleted connections that may have traffic, by time, each with a flag that it has some.
const LATE_TRAFFIC: &str = "-- deleted_connections.recent
    select d.deleted_at, d.id,
           exists (select from deliveries t where t.connection_id = d.id)
           or exists (select from outbox t where t.connection_id = d.id)
           or exists (select from outbox_channels t where t.connection_id = d.id)
           or exists (select from outbox_failures t where t.connection_id = d.id)
           or exists (select from dead_letters t where t.connection_id = d.id)
           or exists (select from runs t where t.connection_id = d.id)
           or exists (select from run_parts t where t.connection_id = d.id)
           or exists (select from run_controls t where t.connection_id = d.id)
           or exists (select from approvals t where t.connection_id = d.id)
           or exists (select from feedback t where t.connection_id = d.id)
           or exists (select from connection_usage t where t.connection_id = d.id)
           or exists (select from replays t where t.connection_id = d.id)
           or exists (select from pauses t where t.connection_id = d.id)
           or exists (select from response_url_uses t where t.connection_id = d.id)
           or exists (select from channel_binding_history t where t.connection_id = d.id)
           or exists (select from known_channels t where t.connection_id = d.id)
           or exists (select from deleted_messages t where t.connection_id = d.id)
           or exists (select from user_questions t where t.connection_id = d.id)
           or exists (select from connection_backlog t where t.connection_id = d.id)
           or exists (select from notifications t where t.connection_id = d.id)
           or exists (select from ignored_webhooks t where t.connection_id = d.id)
           or exists (select from delivery_log t where t.connection_id = d.id)
           or exists (select from outbox_log t where t.connection_id = d.id) as has_traffic
      from (select deleted_at, id from deleted_connections
             where emptied_at is null and (deleted_at, id) > (coalesce($1::timestamptz, '-infinity'), $2)
             order by deleted_at, id limit $3) d
     order by d.deleted_at, d.id";

impl Store {
    /// Returns connections that were deleted at least `after` ago, whose webhooks may be in the
    /// stream. At most a page.
    pub async fn unpurged_connections(
        &self,
        after: Duration,
    ) -> Result<Vec<ConnectionId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar(
            "-- deleted_connections.unpurged
             select id from deleted_connections
              where purged_at is null and deleted_at < now() - make_interval(secs => $1)
              order by deleted_at limit $2",
        )
        .bind(after.as_secs_f64())
        .bind(LATE_TRAFFIC_PAGE)
        .fetch_all(&self.pool)
        .await?;
        let parse = |id: &String| {
            id.parse().map_err(|error| inconsistent("deleted_connections", "id", id, error))
        };
        ids.iter().map(parse).collect()
    }

    /// Records that the webhooks of a deleted connection were purged from the stream.
    pub async fn record_purged_connection(&self, id: ConnectionId) -> Result<(), StoreError> {
        sqlx::query(
            "-- deleted_connections.record_purged
             update deleted_connections set purged_at = now() where id = $1",
        )
        .bind(id.to_string())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Deletes traffic of deleted connections, including rows that were inserted later: at most
    /// [`VISIT_STEPS`] steps per connection, for a page of them after `after`. A connection is
    /// visited until it has no traffic a day after its deletion. Calls `failed` for each connection
    /// that fails. Returns the number of rows and the next page, `None` after the last.
    pub async fn delete_late_traffic(
        &self,
        after: Option<&(OffsetDateTime, String)>,
        mut failed: impl FnMut(&str, StoreError),
    ) -> Result<(u64, Option<(OffsetDateTime, String)>), StoreError> {
        let page: Vec<(OffsetDateTime, String, bool)> = sqlx::query_as(LATE_TRAFFIC)
            .bind(after.map(|(at, _)| *at))
            .bind(after.map(|(_, id)| id.as_str()).unwrap_or_default())
            .bind(LATE_TRAFFIC_PAGE)
            .fetch_all(&self.pool)
            .await?;
        let mut rows = 0;
        for (_, id, _) in page.iter().filter(|(.., has_traffic)| *has_traffic) {
            match self.visit_deleted(id).await {
                Ok(deleted) => rows += deleted,
                Err(error) => failed(id, error),
            }
        }
        let empty = page.iter().filter(|(.., has_traffic)| !has_traffic);
        let empty: Vec<&str> = empty.map(|(_, id, _)| id.as_str()).collect();
        sqlx::query(
            "-- deleted_connections.record_emptied
             update deleted_connections set emptied_at = now()
              where id = any ($1) and emptied_at is null and purged_at is not null
                and deleted_at < now() - interval '1 day'",
        )
        .bind(empty)
        .execute(&self.pool)
        .await?;
        let is_full = page.len() as i64 == LATE_TRAFFIC_PAGE;
        let next = page.into_iter().last().filter(|_| is_full).map(|(at, id, _)| (at, id));
        Ok((rows, next))
    }

    async fn visit_deleted(&self, id: &str) -> Result<u64, StoreError> {
        let parsed =
            id.parse().map_err(|error| inconsistent("deleted_connections", "id", id, error))?;
        let mut rows = 0;
        for _ in 0..VISIT_STEPS {
            match self.delete_traffic(parsed).await?.rows {
                0 => break,
                deleted => rows += deleted,
            }
        }
        Ok(rows)
    }
}
