//! Maximum number of rows of a connection in tables that have no age.
//!
//! The maintenance of a worker counts the rows in pages, by index, and deletes the oldest rows of
//! connections above the maximum in steps.

use super::backlog::{CountedPage, RowPosition, pages_by_id};
use crate::store::{Store, StoreError};

/// Maximum rows of a connection in each of [`CAPPED_TABLES`], apart from those added since the last
/// count.
pub const CONNECTION_ROWS_MAX: i64 = 100_000;

/// Tables whose oldest rows are deleted above the maximum. A deleted channel is known again after
/// its next event. A deleted person may be welcomed again. A deleted session is the first again.
pub const CAPPED_TABLES: [&str; 3] = ["known_channels", "welcomed_users", "conversation_sessions"];

/// Maximum rows deleted per step.
const STEP_ROWS: u64 = 5_000;

impl Store {
    /// Counts a page of rows of a capped table, `limit` rows, after a position.
    pub async fn count_capped_page(
        &self,
        table: &'static str,
        after: &RowPosition,
        limit: i64,
    ) -> Result<CountedPage<RowPosition>, StoreError> {
        let sql = format!(
            "-- retention.count_capped
             with page as materialized (
                 select connection_id, id from {table}
                  where (connection_id, id) > ($1, $2) order by connection_id, id limit $3)
             select connection_id, count(*) as rows, 0::bigint as bytes, max(id) as last
               from page group by connection_id order by connection_id"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(&after.connection)
            .bind(after.id)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        pages_by_id(&rows, limit)
    }

    /// Deletes the oldest rows of a connection in a capped table. Returns the number of deleted
    /// rows.
    pub async fn delete_oldest_rows(
        &self,
        table: &'static str,
        connection: &str,
        rows: i64,
    ) -> Result<u64, StoreError> {
        let (limit, mut deleted) = (rows.unsigned_abs(), 0);
        while deleted < limit {
            let sql = format!(
                "-- retention.delete_capped
                 delete from {table} where ctid = any (array (
                     select ctid from {table} where connection_id = $1 order by id limit $2))"
            );
            let step = sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(connection)
                .bind((limit - deleted).min(STEP_ROWS) as i64)
                .execute(&self.pool)
                .await?;
            if step.rows_affected() == 0 {
                break;
            }
            deleted += step.rows_affected();
        }
        Ok(deleted)
    }
}
