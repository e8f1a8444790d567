//! Sending of notifications: the first of each connection, by one worker at a time.
//!
//! A claim moves the time of the next attempt behind the longest possible call, so that another
//! worker does not send the same notification meanwhile. A result is only recorded for the attempt
//! that it belongs to.

use crate::domain::{Actor, ConnectionId};
use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries, inconsistent,
    maintenance::json,
};
use serde::Deserialize;
use serde_json::Value;
use sqlx::Row;
use std::time::Duration;

/// Maximum rows that [`Store::notification_stats`] counts.
const COUNTED_MAX: i64 = 10_001;

/// First notification of a connection.
#[derive(Debug, Clone)]
pub struct NotificationHead {
    /// Connection.
    pub connection: String,
    /// Id.
    pub id: i64,
    /// True if the next attempt is due.
    pub is_due: bool,
}

/// Claimed notification.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DueNotification {
    pub id: i64,
    pub connection: String,
    pub event: String,
    pub data: Value,
    pub at: String,
    /// Number of this attempt.
    pub attempts: i32,
    /// Null if the connection was deleted.
    pub organization: Option<String>,
    pub app: Option<String>,
    pub enterprise: Option<String>,
    pub team: Option<String>,
}

/// Waiting notifications.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NotificationStats {
    /// Number.
    pub waiting: i64,
    /// Age of the oldest.
    pub oldest: Duration,
}

impl Store {
    /// Returns the first notification of each connection after `after`, at most `limit`.
    pub async fn notification_heads(
        &self,
        after: &str,
        limit: i64,
    ) -> Result<Vec<NotificationHead>, StoreError> {
        let rows = sqlx::query(
            "-- notifications.heads
             with recursive heads as (
                 (select connection_id, id, next_at, 1 as n from notifications
                   where connection_id > $1 order by connection_id, id limit 1)
                 union all
                 select next.connection_id, next.id, next.next_at, h.n + 1
                   from heads h, lateral (
                       select connection_id, id, next_at from notifications
                        where connection_id > h.connection_id
                        order by connection_id, id limit 1) next
                  where h.n < $2)
             select connection_id, id, next_at <= now() as is_due from heads",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(NotificationHead {
                    connection: row.try_get("connection_id")?,
                    id: row.try_get("id")?,
                    is_due: row.try_get("is_due")?,
                })
            })
            .collect()
    }

    /// Claims due notifications for the time of a call. Skips those that another worker claimed.
    pub async fn claim_notifications(
        &self,
        ids: &[i64],
        lease: Duration,
    ) -> Result<Vec<DueNotification>, StoreError> {
        let rows = sqlx::query(
            "-- notifications.claim
             with claimed as (
                 update notifications
                    set attempts = attempts + 1, next_at = now() + make_interval(secs => $2)
                  where id = any ($1) and next_at <= now()
                 returning id, connection_id, event, data, at, attempts)
             select to_jsonb(t) as row from (
                 select n.id, n.connection_id as connection, n.event, n.data, n.at, n.attempts,
                        c.org_id as organization, c.app_id as app, c.enterprise_id as enterprise,
                        c.team_id as team
                   from claimed n left join connections c on c.id = n.connection_id) t",
        )
        .bind(ids)
        .bind(lease.as_secs_f64())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Deletes a notification that the backend has confirmed.
    pub async fn record_notified(&self, id: i64) -> Result<(), StoreError> {
        let delete =
            sqlx::query("-- notifications.delete\n delete from notifications where id = $1");
        delete.bind(id).execute(&self.pool).await?;
        Ok(())
    }

    /// Records a failed attempt. Deletes the notification and returns true if its event is older
    /// than `keep`.
    pub async fn record_notification_failure(
        &self,
        failed: &DueNotification,
        error: &str,
        retry_after: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let given_up = sqlx::query_scalar(
            "-- notifications.fail
             with gone as (
                 delete from notifications
                  where id = $1 and attempts = $2 and at < now() - make_interval(secs => $5)
                 returning 1),
             kept as (
                 update notifications
                    set next_at = now() + make_interval(secs => $4), last_error = $3
                  where id = $1 and attempts = $2 and at >= now() - make_interval(secs => $5))
             select exists (select from gone)",
        )
        .bind(failed.id)
        .bind(failed.attempts)
        .bind(error)
        .bind(retry_after.as_secs_f64())
        .bind(keep.as_secs_f64());
        Ok(given_up.fetch_one(&self.pool).await?)
    }

    /// Stops a connection that the backend rejects, unless it was installed again since. Returns
    /// whether anything changed.
    pub async fn veto_connection(
        &self,
        notification: &DueNotification,
        reason: &str,
    ) -> Result<bool, StoreError> {
        let id: ConnectionId = notification.connection.parse().map_err(|error| {
            inconsistent("notifications", "connection_id", &notification.connection, error)
        })?;
        let mut tx = self.pool.begin().await?;
        let stopped = sqlx::query(
            "-- connections.veto
             update connections set status = 'stopped', status_reason = $3
              where id = $1 and status = 'active'
                and installed_at is not distinct from $2::timestamptz",
        )
        .bind(id.to_string())
        .bind(notification.data["installed_at"].as_str())
        .bind(reason)
        .execute(&mut *tx)
        .await?;
        if stopped.rows_affected() == 0 {
            return Ok(false);
        }
        let org = AuditOrg::OfConnection(id);
        let entry = NewAuditEntry::new(AuditAction::ConnectionVeto, id, org);
        let entry = entry.after(serde_json::json!({ "status": "stopped", "reason": reason }));
        add_audit_entries(&mut tx, &Actor::Backend, &[entry]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Returns the number of notifications that wait, at most 10,001, and the age of the oldest.
    pub async fn notification_stats(&self) -> Result<NotificationStats, StoreError> {
        let row = sqlx::query(
            "-- notifications.count
             select count(*) as waiting,
                    coalesce(extract(epoch from now() - min(at)), 0)::float8 as oldest
               from (select at from notifications order by id limit $1) n",
        )
        .bind(COUNTED_MAX)
        .fetch_one(&self.pool)
        .await?;
        let oldest: f64 = row.try_get("oldest")?;
        Ok(NotificationStats {
            waiting: row.try_get("waiting")?,
            oldest: Duration::from_secs_f64(oldest.max(0.0)),
        })
    }
}
