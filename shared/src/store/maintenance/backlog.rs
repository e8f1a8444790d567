//! Backlog of connections: counts of open deliveries, dead letters and messages, in pages by index.
//!
//! One worker counts in rounds. A statement reads at most a page of index entries. Connections with
//! a large backlog get a row in `connection_backlog`, which intake reads by key: beyond the limits
//! a delivery becomes a dead letter without bytes, intake enqueues no message, and dead letters are
//! stored without bytes.

use crate::store::{Store, StoreError};
use serde::Serialize;
use sqlx::{FromRow, Row};
use std::time::Duration;

/// Limits of one connection, for open deliveries and for dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BacklogLimits {
    /// Maximum rows.
    pub rows: i64,
    /// Maximum bytes.
    pub bytes: i64,
}

impl BacklogLimits {
    /// Returns whether rows or bytes have reached a multiple of the limits.
    pub fn are_reached(&self, rows: i64, bytes: i64, times: i64) -> bool {
        rows >= self.rows.saturating_mul(times) || bytes >= self.bytes.saturating_mul(times)
    }

    /// Returns whether rows or bytes have reached a hundredth of the limits, from which operators
    /// see the connection.
    fn are_near(&self, rows: i64, bytes: i64) -> bool {
        rows >= (self.rows / 100).max(1) || bytes >= (self.bytes / 100).max(1)
    }
}

/// Open deliveries and dead letters of a connection at the last count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, FromRow)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct ConnectionBacklog {
    pub connection_id: String,
    pub deliveries: i64,
    pub delivery_bytes: i64,
    pub dead_letters: i64,
    pub dead_letter_bytes: i64,
    /// Messages to Slack that wait or were rejected.
    pub messages: i64,
    pub deliveries_full: bool,
    pub messages_full: bool,
    pub dead_letters_full: bool,
    pub ignores: bool,
}

impl ConnectionBacklog {
    /// Sets the flags of reached limits. Messages count against the limit of deliveries, too, which
    /// cause them. At twice the limit of dead letters, webhooks are ignored.
    pub fn apply_limits(&mut self, limits: &BacklogLimits) {
        let (rows, bytes) = (self.dead_letters, self.dead_letter_bytes);
        self.messages_full = limits.are_reached(self.messages, 0, 1);
        self.deliveries_full =
            self.messages_full || limits.are_reached(self.deliveries, self.delivery_bytes, 1);
        self.dead_letters_full = limits.are_reached(rows, bytes, 1);
        self.ignores = limits.are_reached(rows, bytes, 2);
    }

    /// Returns whether the connection gets a row.
    pub fn is_notable(&self, limits: &BacklogLimits) -> bool {
        limits.are_near(self.deliveries, self.delivery_bytes)
            || limits.are_near(self.dead_letters, self.dead_letter_bytes)
            || limits.are_near(self.messages, 0)
    }
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
    /// Messages to Slack.
    pub outbox: OutboxBacklog,
    /// Connections at the limit of open deliveries.
    pub full_of_deliveries: usize,
    /// Connections at the limit of dead letters.
    pub full_of_dead_letters: usize,
}

/// Messages to Slack that wait or were rejected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboxBacklog {
    /// Waiting messages.
    pub waiting: i64,
    /// Age of the oldest waiting message.
    pub oldest: Duration,
    /// Messages that Slack rejected permanently.
    pub failures: i64,
}

/// Position of the count of deliveries. The default is before all rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryPosition {
    connection: String,
    lane: Option<i64>,
    position: i64,
    part: i16,
}

/// Position of a count of dead letters, rejected messages or capped rows. The default is before all
/// rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowPosition {
    pub(super) connection: String,
    pub(super) id: i64,
}

/// Position of the count of waiting messages. The default is before all channels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelPosition {
    connection: String,
    channel: String,
}

/// Rows of a connection on a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedRows {
    /// Connection.
    pub connection: String,
    /// Rows.
    pub rows: i64,
    /// Bytes of their payloads.
    pub bytes: i64,
}

/// Page of a count.
#[derive(Debug)]
pub struct CountedPage<P> {
    /// Counts in the order of the connections. One connection may continue on the next page.
    pub counts: Vec<CountedRows>,
    /// Age of the oldest row. Only of deliveries.
    pub oldest: Duration,
    /// Position of the next page, `None` after the last.
    pub next: Option<P>,
}

impl Store {
    /// Counts a page of open deliveries, `limit` rows, after a position.
    pub async fn count_delivery_page(
        &self,
        after: &DeliveryPosition,
        limit: i64,
    ) -> Result<CountedPage<DeliveryPosition>, StoreError> {
        let rows = sqlx::query(
            "-- backlog.count_deliveries
             with page as materialized (
                 select connection_id, lane, position, part, size, inserted_at from deliveries
                  where (connection_id, lane, position, part) > ($1, $2, $3, $4)
                  order by connection_id, lane, position, part limit $5),
             last as (
                 select connection_id, lane, position, part from page
                  order by connection_id desc, lane desc, position desc, part desc limit 1)
             select p.connection_id, count(*) as rows, sum(p.size)::bigint as bytes,
                    extract(epoch from now() - min(p.inserted_at))::float8 as age,
                    l.lane, l.position, l.part
               from page p left join last l on l.connection_id = p.connection_id
              group by p.connection_id, l.lane, l.position, l.part order by p.connection_id",
        )
        .bind(&after.connection)
        .bind(after.lane.unwrap_or(i64::MIN))
        .bind(after.position)
        .bind(after.part)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        let mut page = CountedPage { counts: Vec::new(), oldest: Duration::ZERO, next: None };
        for row in &rows {
            page.counts.push(counted(row)?);
            let age: f64 = row.try_get("age")?;
            page.oldest = page.oldest.max(Duration::from_secs_f64(age.max(0.0)));
        }
        if let Some(last) = rows.last().filter(|_| page.is_full(limit)) {
            page.next = Some(DeliveryPosition {
                connection: last.try_get("connection_id")?,
                lane: last.try_get("lane")?,
                position: last.try_get("position")?,
                part: last.try_get("part")?,
            });
        }
        Ok(page)
    }

    /// Counts a page of dead letters with a connection, `limit` rows, after a position.
    pub async fn count_dead_letter_page(
        &self,
        after: &RowPosition,
        limit: i64,
    ) -> Result<CountedPage<RowPosition>, StoreError> {
        let rows = sqlx::query(
            "-- backlog.count_dead_letters
             with page as materialized (
                 select connection_id, id, payload_bytes from dead_letters
                  where (connection_id, id) > ($1, $2) order by connection_id, id limit $3)
             select connection_id, count(*) as rows, sum(payload_bytes)::bigint as bytes,
                    max(id) as last
               from page group by connection_id order by connection_id",
        )
        .bind(&after.connection)
        .bind(after.id)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        pages_by_id(&rows, limit)
    }

    /// Counts waiting messages by a page of channels, `limit` of them, after a position.
    pub async fn count_message_page(
        &self,
        after: &ChannelPosition,
        limit: i64,
    ) -> Result<CountedPage<ChannelPosition>, StoreError> {
        let rows = sqlx::query(
            "-- backlog.count_messages
             with page as materialized (
                 select connection_id, channel_key, pending from outbox_channels
                  where (connection_id, channel_key) > ($1, $2)
                  order by connection_id, channel_key limit $3)
             select connection_id, sum(pending)::bigint as rows, 0::bigint as bytes,
                    max(channel_key) as last, count(*) as channels
               from page group by connection_id order by connection_id",
        )
        .bind(&after.connection)
        .bind(&after.channel)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        let mut page = CountedPage { counts: Vec::new(), oldest: Duration::ZERO, next: None };
        let mut channels = 0;
        for row in &rows {
            page.counts.push(counted(row)?);
            channels += row.try_get::<i64, _>("channels")?;
        }
        if let Some(last) = rows.last().filter(|_| channels >= limit) {
            let (connection, channel) = (last.try_get("connection_id")?, last.try_get("last")?);
            page.next = Some(ChannelPosition { connection, channel });
        }
        Ok(page)
    }

    /// Counts a page of rejected messages, `limit` rows, after a position.
    pub async fn count_failure_page(
        &self,
        after: &RowPosition,
        limit: i64,
    ) -> Result<CountedPage<RowPosition>, StoreError> {
        let rows = sqlx::query(
            "-- backlog.count_failures
             with page as materialized (
                 select connection_id, id from outbox_failures
                  where (connection_id, id) > ($1, $2) order by connection_id, id limit $3)
             select connection_id, count(*) as rows, 0::bigint as bytes, max(id) as last
               from page group by connection_id order by connection_id",
        )
        .bind(&after.connection)
        .bind(after.id)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        pages_by_id(&rows, limit)
    }

    /// Counts dead letters of malformed messages, which have no connection, up to `limit`.
    pub async fn count_dead_letters_without_connection(
        &self,
        limit: i64,
    ) -> Result<i64, StoreError> {
        let count = sqlx::query_scalar(
            "-- backlog.count_malformed
             select count(*) from (
                 select from dead_letters where connection_id is null limit $1) page",
        );
        Ok(count.bind(limit).fetch_one(&self.pool).await?)
    }

    /// Replaces the rows of `connection_backlog`. Unchanged rows are not written.
    pub async fn put_connection_backlog(
        &self,
        rows: &[ConnectionBacklog],
    ) -> Result<(), StoreError> {
        fn column<T>(rows: &[ConnectionBacklog], of: impl Fn(&ConnectionBacklog) -> T) -> Vec<T> {
            rows.iter().map(of).collect()
        }
        sqlx::query(
            "-- backlog.put
             with kept as (
                 insert into connection_backlog as b (connection_id, deliveries, delivery_bytes,
                        dead_letters, dead_letter_bytes, deliveries_full, dead_letters_full,
                        ignores, messages, messages_full)
                 select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[],
                                      $5::bigint[], $6::boolean[], $7::boolean[], $8::boolean[],
                                      $9::bigint[], $10::boolean[])
                  order by 1
                 on conflict (connection_id) do update
                    set deliveries = excluded.deliveries,
                        delivery_bytes = excluded.delivery_bytes,
                        dead_letters = excluded.dead_letters,
                        dead_letter_bytes = excluded.dead_letter_bytes,
                        deliveries_full = excluded.deliveries_full,
                        dead_letters_full = excluded.dead_letters_full,
                        ignores = excluded.ignores, messages = excluded.messages,
                        messages_full = excluded.messages_full
                  where (b.deliveries, b.delivery_bytes, b.dead_letters, b.dead_letter_bytes,
                         b.deliveries_full, b.dead_letters_full, b.ignores, b.messages,
                         b.messages_full)
                        is distinct from (excluded.deliveries, excluded.delivery_bytes,
                         excluded.dead_letters, excluded.dead_letter_bytes,
                         excluded.deliveries_full, excluded.dead_letters_full, excluded.ignores,
                         excluded.messages, excluded.messages_full))
             delete from connection_backlog where connection_id <> all ($1)",
        )
        .bind(column(rows, |row| row.connection_id.clone()))
        .bind(column(rows, |row| row.deliveries))
        .bind(column(rows, |row| row.delivery_bytes))
        .bind(column(rows, |row| row.dead_letters))
        .bind(column(rows, |row| row.dead_letter_bytes))
        .bind(column(rows, |row| row.deliveries_full))
        .bind(column(rows, |row| row.dead_letters_full))
        .bind(column(rows, |row| row.ignores))
        .bind(column(rows, |row| row.messages))
        .bind(column(rows, |row| row.messages_full))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Counts waiting and rejected messages: exactly up to [`EXACT_MAX`] channels and rejected
    /// messages, beyond it by Postgres's own estimate of the tables.
    pub async fn outbox_backlog(&self) -> Result<OutboxBacklog, StoreError> {
        let row = sqlx::query(
            "-- backlog.outbox
             with channels as materialized (select pending from outbox_channels limit $1 + 1),
             failures as materialized (select from outbox_failures limit $1 + 1)
             select case when (select count(*) from channels) <= $1
                         then (select coalesce(sum(pending), 0)::bigint from channels)
                         else (select n_live_tup from pg_stat_user_tables
                                where relid = 'outbox'::regclass) end as waiting,
                    case when (select count(*) from failures) <= $1
                         then (select count(*) from failures)
                         else (select n_live_tup from pg_stat_user_tables
                                where relid = 'outbox_failures'::regclass) end as failures,
                    (select extract(epoch from now() - created_at)::float8 from outbox
                      order by id limit 1) as oldest",
        )
        .bind(EXACT_MAX)
        .fetch_one(&self.pool)
        .await?;
        let oldest: Option<f64> = row.try_get("oldest")?;
        Ok(OutboxBacklog {
            waiting: row.try_get("waiting")?,
            oldest: Duration::from_secs_f64(oldest.unwrap_or_default().max(0.0)),
            failures: row.try_get("failures")?,
        })
    }
}

/// Maximum channels, and rejected messages, that are counted exactly.
pub const EXACT_MAX: i64 = 10_000;

impl<P> CountedPage<P> {
    fn is_full(&self, limit: i64) -> bool {
        self.counts.iter().map(|counted| counted.rows).sum::<i64>() >= limit
    }
}

/// Returns the page of rows that are counted in the order of connection and id.
pub(super) fn pages_by_id(
    rows: &[sqlx::postgres::PgRow],
    limit: i64,
) -> Result<CountedPage<RowPosition>, StoreError> {
    let mut page = CountedPage { counts: Vec::new(), oldest: Duration::ZERO, next: None };
    for row in rows {
        page.counts.push(counted(row)?);
    }
    if let Some(last) = rows.last().filter(|_| page.is_full(limit)) {
        let (connection, id) = (last.try_get("connection_id")?, last.try_get("last")?);
        page.next = Some(RowPosition { connection, id });
    }
    Ok(page)
}

fn counted(row: &sqlx::postgres::PgRow) -> Result<CountedRows, StoreError> {
    Ok(CountedRows {
        connection: row.try_get("connection_id")?,
        rows: row.try_get("rows")?,
        bytes: row.try_get("bytes")?,
    })
}
