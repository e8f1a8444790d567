//! Messages that Slack rejected permanently: list, retry, deletion.
//!
//! One statement enqueues a retried message at the end of its lane and deletes its failure. Its
//! request stays sealed, because the seal is bound to connection and dedup key, which stay.

use super::{BoundedCount, FailureFilter, json};
use crate::domain::{Actor, OrgId};
use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, StepEntry, Store, StoreError, outbox::enqueue_messages,
};
use serde::{Deserialize, Serialize};
use sqlx::{Postgres, Row, postgres::PgArguments, query::Query};

/// Maximum messages per step.
const STEP_MESSAGES: i64 = 1_000;

/// Message that Slack rejected permanently. Its text stays sealed.
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

macro_rules! filter_condition {
    () => {
        "(($1::bigint[] is null or id = any ($1)) and ($2::text is null or connection_id = $2)
           and ($3::text is null or position($3 in error) > 0)
           and ($4::text is null
                or connection_id in (select c.id from connections c where c.org_id = $4))
           and ($5::bigint is null or id < $5))"
    };
}

/// Returns a statement whose first five parameters are a filter.
fn filtered_query<'q>(
    sql: &'static str,
    filter: &'q FailureFilter,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql)
        .bind(&filter.ids)
        .bind(filter.connection.map(|id| id.to_string()))
        .bind(&filter.text)
        .bind(filter.org.as_ref().map(OrgId::as_str))
        .bind(filter.below)
}

impl Store {
    /// Returns the newest failures, at most `limit`.
    pub async fn outbox_failures(
        &self,
        filter: &FailureFilter,
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
                " order by id desc limit $6) t"
            ),
            filter,
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Counts the matching failures.
    pub async fn count_outbox_failures(&self, filter: &FailureFilter) -> Result<i64, StoreError> {
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

    /// Counts the matching failures, up to a bound. Returns the newest id, too.
    pub async fn count_outbox_failures_bounded(
        &self,
        filter: &FailureFilter,
    ) -> Result<(BoundedCount, i64), StoreError> {
        let row = filtered_query(
            concat!(
                "-- outbox_failures.count_some
                 select count(*) as count, coalesce(max(id), 0) as newest from (
                     select id from outbox_failures where ",
                filter_condition!(),
                " order by id desc limit $6) t"
            ),
            filter,
        )
        .bind(BoundedCount::READ_MAX)
        .fetch_one(&self.pool)
        .await?;
        let newest = row.try_get("newest")?;
        Ok((BoundedCount::of(row)?, newest))
    }

    /// Enqueues messages again, each at the end of its lane. Returns the ids of their deleted
    /// failures.
    pub async fn retry_outbox_failures(
        &self,
        by: &Actor,
        filter: &FailureFilter,
    ) -> Result<Vec<i64>, StoreError> {
        self.change_outbox_failures(
            by,
            AuditAction::OutboxFailuresRetry,
            concat!(
                "-- outbox_failures.retry
                 with gone as (
                     delete from outbox_failures where id in (
                         select id from outbox_failures where ",
                filter_condition!(),
                " and id > $6 order by id limit $7 for update skip locked)
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
        by: &Actor,
        filter: &FailureFilter,
    ) -> Result<Vec<i64>, StoreError> {
        self.change_outbox_failures(
            by,
            AuditAction::OutboxFailuresDelete,
            concat!(
                "-- outbox_failures.delete
                 with gone as (
                     delete from outbox_failures where id in (
                         select id from outbox_failures where ",
                filter_condition!(),
                " and id > $6 order by id limit $7 for update skip locked)
                     returning id)
                 select id from gone order by id"
            ),
            filter,
        )
        .await
    }

    async fn change_outbox_failures(
        &self,
        by: &Actor,
        action: AuditAction,
        sql: &'static str,
        filter: &FailureFilter,
    ) -> Result<Vec<i64>, StoreError> {
        let entry = NewAuditEntry::new(action, "*", AuditOrg::of(filter.connection, &filter.org))
            .after(serde_json::json!({
                "ids": filter.ids, "connection": filter.connection, "text": filter.text,
            }));
        let (mut entry, mut done) = (StepEntry::new(by, entry), Vec::<i64>::new());
        loop {
            let mut tx = self.pool.begin().await?;
            let after = done.last().copied().unwrap_or_default();
            let rows = filtered_query(sql, filter)
                .bind(after)
                .bind(STEP_MESSAGES)
                .fetch_all(&mut *tx)
                .await?;
            entry.add(&mut tx, !rows.is_empty()).await?;
            tx.commit().await?;
            for row in &rows {
                done.push(row.try_get("id")?);
            }
            if (rows.len() as i64) < STEP_MESSAGES {
                return Ok(done);
            }
        }
    }
}
