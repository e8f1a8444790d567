//! Dead letters: webhooks and deliveries given up on, with a reason and their sealed payload.
//!
//! The commit of intake and the end of a delivery write them. Operators list, redrive and delete
//! them. One statement turns a dead letter of dispatch into a delivery at the end of its lane. A
//! dead letter of intake is marked, and the owner of its partition decides it again.

use super::{
    super::{
        AuditAction, AuditOrg, BoundedCount, FailureFilter, NewAuditEntry, StepEntry, Store,
        StoreError, partitions::FencingToken, replace_nul, timestamp,
    },
    SealedPayload,
};
use crate::{
    domain::{Actor, OrgId},
    stream::Partition,
};
use serde::Serialize;
use sqlx::{
    Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};

/// Dead letter.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DeadLetter {
    pub id: i64,
    pub stage: String,
    pub partition: i16,
    pub generation: i32,
    pub sequence: i64,
    pub subject: String,
    pub connection: Option<String>,
    pub agent: Option<String>,
    pub dedup_key: Option<String>,
    pub event_id: Option<String>,
    pub channel: Option<String>,
    pub ts: Option<String>,
    pub user: Option<String>,
    pub reason: String,
    pub last_error: String,
    pub attempts: i32,
    pub at: Option<String>,
    pub redrive_at: Option<String>,
    pub headers: Vec<(String, String)>,
    #[serde(skip)]
    pub body: Vec<u8>,
    /// Failure to open headers and body, which are then empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

impl DeadLetter {
    /// Returns the row that the payload is sealed for: its dedup key, or its position in the
    /// stream, as stored.
    pub(super) fn sealed_for(&self, token: &FencingToken) -> String {
        let place = || format!("{}#{}/{}", self.subject, token.generation, self.sequence);
        replace_nul(&self.dedup_key.clone().unwrap_or_else(place)).into_owned()
    }
}

/// Maximum dead letters per step of an operation.
const STEP_DEAD_LETTERS: i64 = 1_000;

macro_rules! filter_condition {
    () => {
        "(($1::bigint[] is null or id = any ($1)) and ($2::text is null or connection_id = $2)
           and ($3::text is null or position($3 in reason) > 0 or position($3 in last_error) > 0)
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
    /// Returns the newest dead letters, at most `limit`. Opens payloads if `with_payload` is true.
    pub async fn dead_letters(
        &self,
        filter: &FailureFilter,
        limit: i64,
        with_payload: bool,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let rows = filtered_query(
            concat!(
                "-- dead_letters.list
                 select *, case when $7 then payload end as bytes from dead_letters where ",
                filter_condition!(),
                " order by id desc limit $6"
            ),
            filter,
        )
        .bind(limit)
        .bind(with_payload)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| self.dead_letter(row)).collect()
    }

    /// Counts the matching dead letters.
    pub async fn count_dead_letters(&self, filter: &FailureFilter) -> Result<i64, StoreError> {
        let row = filtered_query(
            concat!(
                "-- dead_letters.count\n select count(*) as count from dead_letters where ",
                filter_condition!()
            ),
            filter,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("count")?)
    }

    /// Counts the matching dead letters, up to a bound. Returns the newest id, too.
    pub async fn count_dead_letters_bounded(
        &self,
        filter: &FailureFilter,
    ) -> Result<(BoundedCount, i64), StoreError> {
        let row = filtered_query(
            concat!(
                "-- dead_letters.count_some
                 select count(*) as count, coalesce(max(id), 0) as newest from (
                     select id from dead_letters where ",
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

    /// Redrives dead letters. Those of dispatch become deliveries, those of intake are marked for
    /// the owners of their partitions. Returns the ids.
    pub async fn redrive_dead_letters(
        &self,
        by: &Actor,
        filter: &FailureFilter,
    ) -> Result<Vec<i64>, StoreError> {
        self.change_dead_letters(
            by,
            AuditAction::DeadLettersRedrive,
            concat!(
                "-- dead_letters.redrive
                 with chosen as (
                     select id, stage from dead_letters
                      where redrive_at is null and payload is not null and ",
                filter_condition!(),
                " and id > $7 order by id limit $6 for update skip locked),
                 marked as (
                     update dead_letters l set redrive_at = now(), redrive_starts = 0 from chosen
                      where l.id = chosen.id and chosen.stage = 'intake' returning l.id),
                 revived as (
                     delete from dead_letters l using chosen
                      where l.id = chosen.id and chosen.stage = 'dispatch' returning l.*),
                 d as (
                     select r.*, count(*) over (partition by connection_id, lane) as of_lane,
                            row_number() over (partition by connection_id, lane order by id) as nth
                                from revived r),
                 lanes as (
                     insert into delivery_lanes as l (connection_id, lane, partition, head, tail,
                                                      org_id, agent_id, priority, next_at)
                     select connection_id, lane, partition, 1, of_lane, org_id, agent_id, 1, now()
                       from d where nth = 1
                      order by connection_id, lane
                     on conflict (connection_id, lane) do update
                        set tail = l.tail + excluded.tail,
                            next_at = case when l.head > l.tail then now() else l.next_at end,
                            org_id = case when l.head > l.tail then excluded.org_id
                                else l.org_id end,
                            agent_id = case when l.head > l.tail then excluded.agent_id
                                else l.agent_id end,
                            priority = case when l.head > l.tail then excluded.priority
                                else l.priority end
                     returning connection_id, lane, tail),
                 enqueued as (
                     insert into deliveries (connection_id, lane, position, partition, generation,
                            sequence, org_id, agent_id, session, kind, priority, dedup_key, hops,
                            event_id, team_id, channel_id, thread_ts, ts, user_id, traceparent,
                            received_at, stored_at, replay, payload, size, schema)
                     select connection_id, lane, lanes.tail - d.of_lane + d.nth, partition,
                            generation, sequence, org_id, agent_id, coalesce(session, 1), kind, 1,
                            dedup_key, hops, event_id, team_id, channel_id, thread_ts, ts, user_id,
                            traceparent, coalesce(received_at, at), coalesce(stored_at, at), replay,
                            payload, length(payload), 1
                       from d join lanes using (connection_id, lane))
                 select id from chosen order by id"
            ),
            filter,
        )
        .await
    }

    /// Deletes dead letters. Their dedup keys stay, so that no copy is processed. Returns the ids.
    pub async fn delete_dead_letters(
        &self,
        by: &Actor,
        filter: &FailureFilter,
    ) -> Result<Vec<i64>, StoreError> {
        self.change_dead_letters(
            by,
            AuditAction::DeadLettersDelete,
            concat!(
                "-- dead_letters.delete
                 delete from dead_letters where id in (
                     select id from dead_letters where ",
                filter_condition!(),
                " and id > $7 order by id limit $6) returning id"
            ),
            filter,
        )
        .await
    }

    /// Runs a statement in steps, in the order of ids, so that a row that a worker has handled
    /// meanwhile is not changed again. Returns the ids of all changed rows.
    async fn change_dead_letters(
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
        let (mut entry, mut done, mut after) = (StepEntry::new(by, entry), Vec::new(), 0);
        loop {
            let mut tx = self.pool.begin().await?;
            let rows = filtered_query(sql, filter).bind(STEP_DEAD_LETTERS).bind(after);
            let changed = ids(&rows.fetch_all(&mut *tx).await?)?;
            entry.add(&mut tx, !changed.is_empty()).await?;
            tx.commit().await?;
            // `returning` has no order.
            let Some(last) = changed.iter().copied().max() else { return Ok(done) };
            after = last;
            done.extend(changed);
        }
    }

    /// Returns marked dead letters of intake in these partitions, at most `limit`.
    pub async fn redriven_dead_letters(
        &self,
        partitions: &[Partition],
        limit: i64,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let rows = sqlx::query(
            "-- dead_letters.redriven
             select d.*, d.payload as bytes from unnest($1::smallint[]) p (partition), lateral (
                 select * from dead_letters l
                  where l.partition = p.partition and l.redrive_at <= now()
                  order by l.redrive_at limit $2) d
              order by d.redrive_at limit $2",
        )
        .bind(partitions.iter().map(|p| p.number() as i16).collect::<Vec<_>>())
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| self.dead_letter(row)).collect()
    }

    /// Returns the partitions in `held` that have marked dead letters.
    pub async fn partitions_to_redrive(
        &self,
        held: &[Partition],
    ) -> Result<Vec<Partition>, StoreError> {
        let numbers: Vec<i16> = sqlx::query_scalar(
            "-- dead_letters.partitions_to_redrive
             select partition from unnest($1::smallint[]) p (partition)
              where exists (select from dead_letters l
                             where l.partition = p.partition and l.redrive_at <= now())",
        )
        .bind(held.iter().map(|p| p.number() as i16).collect::<Vec<_>>())
        .fetch_all(&self.leases)
        .await?;
        let partitions = numbers.into_iter().filter_map(|n| u16::try_from(n).ok());
        Ok(partitions.filter_map(|n| Partition::try_from(n).ok()).collect())
    }

    /// Records the start of a redrive. Returns the number of starts, `None` if the dead letter is
    /// no longer marked.
    pub async fn start_redrive(&self, id: i64) -> Result<Option<i32>, StoreError> {
        let starts = sqlx::query_scalar(
            "-- dead_letters.start_redrive
             update dead_letters set redrive_starts = redrive_starts + 1
              where id = $1 and redrive_at is not null returning redrive_starts",
        );
        Ok(starts.bind(id).fetch_optional(&self.pool).await?)
    }

    /// Records the failed redrive of a dead letter of intake.
    pub async fn record_redrive_failure(&self, id: i64, error: &str) -> Result<(), StoreError> {
        sqlx::query(
            "-- dead_letters.redrive_failed
             update dead_letters set redrive_at = null, last_error = $2, attempts = attempts + 1
              where id = $1",
        )
        .bind(id)
        .bind(replace_nul(error))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    fn dead_letter(&self, row: &PgRow) -> Result<DeadLetter, StoreError> {
        let id: i64 = row.try_get("id")?;
        let (org, agent): (Option<String>, Option<String>) =
            (row.try_get("org_id")?, row.try_get("agent_id")?);
        let mut letter = DeadLetter {
            id,
            stage: row.try_get("stage")?,
            partition: row.try_get("partition")?,
            generation: row.try_get("generation")?,
            sequence: row.try_get("sequence")?,
            subject: row.try_get("subject")?,
            connection: row.try_get("connection_id")?,
            agent: org.zip(agent).map(|(org, agent)| format!("{org}/{agent}")),
            dedup_key: row.try_get("dedup_key")?,
            event_id: row.try_get("event_id")?,
            channel: row.try_get("channel_id")?,
            ts: row.try_get("ts")?,
            user: row.try_get("user_id")?,
            reason: row.try_get("reason")?,
            last_error: row.try_get("last_error")?,
            attempts: row.try_get("attempts")?,
            at: timestamp(row, "dead_letters", &id.to_string(), "at")?,
            redrive_at: timestamp(row, "dead_letters", &id.to_string(), "redrive_at")?,
            ..DeadLetter::default()
        };
        let Some(sealed) = row.try_get::<Option<Vec<u8>>, _>("bytes")? else { return Ok(letter) };
        let place = || format!("{}#{}/{}", letter.subject, letter.generation, letter.sequence);
        let sealed_for = letter.dedup_key.clone().unwrap_or_else(place);
        // An unreadable payload must not hide other dead letters.
        match SealedPayload::open(&self.rings.tokens, &sealed_for, &sealed) {
            Ok(payload) => (letter.headers, letter.body) = (payload.headers, payload.body),
            Err(why) => letter.unreadable = Some(why),
        }
        Ok(letter)
    }
}

fn ids(rows: &[PgRow]) -> Result<Vec<i64>, StoreError> {
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}
