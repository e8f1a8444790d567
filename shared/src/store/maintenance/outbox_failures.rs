//! Messages that Slack rejected for good: list, retry, deletion.
//!
//! One statement enqueues a retried message at the end of its lane and deletes its failure. Its
//! request stays sealed, because the seal is bound to connection and dedup key, which stay.

use super::json;
use crate::store::{Store, StoreError, outbox::enqueue_messages};
use crate::types::ConnectionId;
use serde::{Deserialize, Serialize};
use sqlx::{Postgres, Row, postgres::PgArguments, query::Query};

/// Maximum messages per step.
const STEP_MESSAGES: i64 = 1_000;

/// Message that Slack rejected for good. Its text stays sealed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct OutboxFailure {
    pub id: i64,
    pub connection: String,
    pub lane: String,
    pub channel_key: String,
    pub method: String,
    pub dedup_key: String,
    pub error: String,
    pub attempts: i32,
    pub resend_count: i32,
    pub created_at: String,
    pub at: String,
}

/// Filter of failures. `None` matches everything.
#[derive(Debug, Clone, Default)]
pub struct OutboxFailureFilter {
    /// Ids.
    pub ids: Option<Vec<i64>>,
    /// Connection.
    pub connection: Option<ConnectionId>,
    /// Substring of the error.
    pub error: Option<String>,
}

macro_rules! filter_condition {
    () => {
        "(($1::bigint[] is null or id = any ($1)) and ($2::text is null or connection_id = $2)
           and ($3::text is null or position($3 in error) > 0))"
    };
}

/// Returns a statement whose first three parameters are a filter.
fn filtered_query<'q>(
    sql: &'static str,
    filter: &'q OutboxFailureFilter,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql)
        .bind(&filter.ids)
        .bind(filter.connection.map(|id| id.to_string()))
        .bind(&filter.error)
}

impl Store {
    /// Returns the newest failures, at most `limit`.
    pub async fn outbox_failures(
        &self,
        filter: &OutboxFailureFilter,
        limit: i64,
    ) -> Result<Vec<OutboxFailure>, StoreError> {
        let rows = filtered_query(
            concat!(
                "-- outbox_failures.list
                 select to_jsonb(t) as row from (
                     select id, connection_id as connection, lpad(to_hex(lane), 16, '0') as lane,
                            channel_key, method, dedup_key, error, attempts, resend_count,
                            created_at, at
                       from outbox_failures where ",
                filter_condition!(),
                " order by id desc limit $4) t"
            ),
            filter,
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Counts the matching failures.
    pub async fn count_outbox_failures(
        &self,
        filter: &OutboxFailureFilter,
    ) -> Result<i64, StoreError> {
        let row = filtered_query(
            concat!(
                "-- outbox_failures.count\n select count(*) as count from outbox_failures where ",
                filter_condition!()
            ),
            filter,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("count")?)
    }

    /// Enqueues messages again, each at the end of its lane. Returns the ids of their deleted
    /// failures.
    pub async fn retry_outbox_failures(
        &self,
        filter: &OutboxFailureFilter,
    ) -> Result<Vec<i64>, StoreError> {
        self.in_steps(
            concat!(
                "-- outbox_failures.retry
                 with gone as (
                     delete from outbox_failures where id in (
                         select id from outbox_failures where ",
                filter_condition!(),
                " and id > $4 order by id limit $5 for update skip locked)
                     returning *),
                 messages as (
                     select id as n, connection_id, lane, partition, channel_key, method, dedup_key,
                            request from gone), ",
                enqueue_messages!(),
                " select id from gone order by id"
            ),
            filter,
        )
        .await
    }

    /// Deletes failures. Returns their ids.
    pub async fn delete_outbox_failures(
        &self,
        filter: &OutboxFailureFilter,
    ) -> Result<Vec<i64>, StoreError> {
        self.in_steps(
            concat!(
                "-- outbox_failures.delete
                 with gone as (
                     delete from outbox_failures where id in (
                         select id from outbox_failures where ",
                filter_condition!(),
                " and id > $4 order by id limit $5 for update skip locked)
                     returning id)
                 select id from gone order by id"
            ),
            filter,
        )
        .await
    }

    async fn in_steps(
        &self,
        sql: &'static str,
        filter: &OutboxFailureFilter,
    ) -> Result<Vec<i64>, StoreError> {
        let mut done: Vec<i64> = Vec::new();
        loop {
            let after = done.last().copied().unwrap_or_default();
            let rows = filtered_query(sql, filter)
                .bind(after)
                .bind(STEP_MESSAGES)
                .fetch_all(&self.pool)
                .await?;
            for row in &rows {
                done.push(row.try_get("id")?);
            }
            if (rows.len() as i64) < STEP_MESSAGES {
                return Ok(done);
            }
        }
    }
}
