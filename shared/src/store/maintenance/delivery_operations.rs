//! Operations on deliveries: retry, skip, cancel, and the end of unreachable ones.
//!
//! The row of a lane has the state of its deliveries. Each operation therefore locks rows of lanes
//! first, in the order of intake, and acts in a second statement, which sees everything that was
//! enqueued before. Operations visit lanes in bounded steps.

use super::deliveries::{DeliveryFilter, filter_condition, filtered_query};
use crate::domain::Actor;
use crate::store::{AuditAction, AuditOrg, NewAuditEntry, StepEntry, Store, StoreError};
use serde::Serialize;
use sqlx::{PgConnection, Row, postgres::PgRow};

/// Maximum revoked connections, and deleted agents, per step.
const STEP_OWNERS: i64 = 100;
/// Maximum lanes per step.
const STEP_LANES: i64 = 1_000;
/// Maximum lanes per step for whole lanes.
const STEP_WHOLE_LANES: i64 = 100;
/// Maximum deliveries of a lane per step.
const STEP_DEPTH: i64 = 100;

/// Numbers of ended deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EndedDeliveries {
    /// Deleted deliveries.
    pub ended: u64,
    /// Running deliveries, which their workers end.
    pub requested: u64,
}

/// Deliveries of each lane that an operation ends.
#[derive(Debug, Clone, Copy)]
enum Extent {
    /// The head, unless it runs.
    WaitingHead,
    /// The head. Its worker ends a running one.
    Head,
    /// All deliveries. Its worker ends a running head.
    WholeLane,
}

impl Store {
    /// Makes waiting heads of lanes due. Returns the number of lanes. Attempts and ages stay.
    pub async fn retry_deliveries(
        &self,
        by: &Actor,
        filter: &DeliveryFilter,
    ) -> Result<u64, StoreError> {
        let mut entry =
            StepEntry::new(by, audit_entry(AuditAction::DeliveriesRetry, filter, false));
        let (mut after, mut lanes) = (start_key(), 0);
        loop {
            let mut tx = self.pool.begin().await?;
            let rows = filtered_query(
                concat!(
                    "-- deliveries.retry
                     with page as (
                         select l.connection_id, l.lane from delivery_lanes l where ",
                    filter_condition!(),
                    " and l.worker is null and l.next_at < 'infinity'
                        and (l.lane, l.connection_id) > ($7, $8)
                          order by l.lane, l.connection_id limit $9),
                     chosen as (
                         select l.connection_id, l.lane from page p
                           join delivery_lanes l using (lane, connection_id)
                          where l.worker is null and l.next_at < 'infinity'
                          order by l.connection_id, l.lane for update of l),
                     due as (
                         update delivery_lanes l set next_at = least(l.next_at, now()) from chosen c
                          where l.lane = c.lane and l.connection_id = c.connection_id)
                     select lane, connection_id from page order by lane, connection_id"
                ),
                filter,
            )
            .bind(after.0)
            .bind(&after.1)
            .bind(STEP_LANES)
            .fetch_all(&mut *tx)
            .await?;
            entry.add(&mut tx, !rows.is_empty()).await?;
            tx.commit().await?;
            lanes += rows.len() as u64;
            let Some(last) = lane_keys(&rows)?.pop().filter(|_| rows.len() as i64 == STEP_LANES)
            else {
                return Ok(lanes);
            };
            after = last;
        }
    }

    /// Skips waiting heads of lanes: ends them without a dead letter, which makes the next
    /// deliveries due.
    pub async fn skip_deliveries(
        &self,
        by: &Actor,
        filter: &DeliveryFilter,
    ) -> Result<EndedDeliveries, StoreError> {
        let entry = audit_entry(AuditAction::DeliveriesSkip, filter, false);
        let entry = StepEntry::new(by, entry);
        self.end_deliveries(entry, filter, "skipped", Extent::WaitingHead).await
    }

    /// Cancels the heads of lanes, or all of their deliveries. Workers end running ones.
    pub async fn cancel_deliveries(
        &self,
        by: &Actor,
        filter: &DeliveryFilter,
        whole_lanes: bool,
    ) -> Result<EndedDeliveries, StoreError> {
        let extent = if whole_lanes { Extent::WholeLane } else { Extent::Head };
        let entry = audit_entry(AuditAction::DeliveriesCancel, filter, whole_lanes);
        self.end_deliveries(StepEntry::new(by, entry), filter, "cancelled", extent).await
    }

    /// Ends deliveries of connections that were revoked and agents that were deleted within the
    /// last day, at most a step of each. Leaves running ones. Returns their number.
    pub async fn end_unreachable_deliveries(&self) -> Result<u64, StoreError> {
        let rows = sqlx::query(
            "-- deliveries.unreachable
             (select c.id as a, '' as b, 'connection_revoked' as outcome from connections c
               where c.status = 'revoked' and c.updated_at > now() - interval '1 day'
                 and exists (select from deliveries d where d.connection_id = c.id)
               order by c.updated_at limit $1)
             union all
             (select d.org_id, d.agent_id, 'agent_deleted' from deleted_agents d
               where d.deleted_at > now() - interval '1 day'
                 and not exists (select from agents a where a.org_id = d.org_id
                                    and a.id = d.agent_id)
                 and exists (select from delivery_lanes l
                              where l.org_id = d.org_id and l.agent_id = d.agent_id
                                and l.head <= l.tail and l.worker is null)
               order by d.deleted_at limit $1)",
        )
        .bind(STEP_OWNERS)
        .fetch_all(&self.pool)
        .await?;
        let mut ended = 0;
        for row in rows {
            let (a, b): (String, String) = (row.try_get("a")?, row.try_get("b")?);
            let agent = Some((a.as_str(), b.as_str())).filter(|(_, agent)| !agent.is_empty());
            let find = if agent.is_some() { LANES_OF_AGENT } else { LANES_OF_CONNECTION };
            let mut tx = self.pool.begin().await?;
            let page = sqlx::query(find).bind(&a).bind(&b).bind(STEP_WHOLE_LANES);
            let page = lane_keys(&page.fetch_all(&mut *tx).await?)?;
            let locked = lock_lanes(&mut tx, &page, false, None).await?;
            let row = sqlx::query(END_UNREACHABLE)
                .bind(locked.iter().map(|(_, connection)| connection.as_str()).collect::<Vec<_>>())
                .bind(locked.iter().map(|(lane, _)| *lane).collect::<Vec<_>>())
                .bind(row.try_get::<String, _>("outcome")?)
                .bind(false)
                .bind(STEP_DEPTH)
                .bind(agent.map(|(org, _)| org))
                .bind(agent.map(|(_, agent)| agent))
                .fetch_one(&mut *tx)
                .await?;
            tx.commit().await?;
            ended += row.try_get::<i64, _>("ended")? as u64;
        }
        Ok(ended)
    }

    async fn end_deliveries(
        &self,
        mut entry: StepEntry<'_>,
        filter: &DeliveryFilter,
        outcome: &str,
        extent: Extent,
    ) -> Result<EndedDeliveries, StoreError> {
        let lanes = if matches!(extent, Extent::WholeLane) { STEP_WHOLE_LANES } else { STEP_LANES };
        let running_too = !matches!(extent, Extent::WaitingHead);
        let (mut after, mut all) = (start_key(), EndedDeliveries::default());
        loop {
            let mut tx = self.pool.begin().await?;
            let page: Vec<(i64, String)> = lane_keys(
                &filtered_query(
                    concat!(
                        "-- deliveries.page
                         select l.lane, l.connection_id from delivery_lanes l where ",
                        filter_condition!(),
                        " and ($10 or l.worker is null) and (l.lane, l.connection_id) > ($7, $8)
                          order by l.lane, l.connection_id limit $9"
                    ),
                    filter,
                )
                .bind(after.0)
                .bind(&after.1)
                .bind(lanes)
                .bind(running_too)
                .fetch_all(&mut *tx)
                .await?,
            )?;
            let locked = lock_lanes(&mut tx, &page, running_too, filter.head).await?;
            let row = sqlx::query(END)
                .bind(locked.iter().map(|(_, connection)| connection.as_str()).collect::<Vec<_>>())
                .bind(locked.iter().map(|(lane, _)| *lane).collect::<Vec<_>>())
                .bind(outcome)
                .bind(matches!(extent, Extent::WholeLane))
                .bind(STEP_DEPTH)
                .fetch_one(&mut *tx)
                .await?;
            let (ended, running): (i64, i64) = (row.try_get("ended")?, row.try_get("running")?);
            entry.add(&mut tx, ended + running > 0).await?;
            tx.commit().await?;
            all.ended += ended as u64;
            if row.try_get("more")? {
                continue; // same lanes again
            }
            all.requested += running as u64;
            let is_full = page.len() as i64 == lanes;
            let Some(last) = page.into_iter().last().filter(|_| is_full) else { return Ok(all) };
            after = last;
        }
    }
}

/// Returns the entry of an operation in the audit log.
fn audit_entry(action: AuditAction, filter: &DeliveryFilter, whole_lanes: bool) -> NewAuditEntry {
    let object = match (filter.connection, filter.lane) {
        (Some(connection), Some(lane)) => format!("{connection}/{lane}"),
        _ => "*".to_owned(),
    };
    NewAuditEntry::new(action, object, AuditOrg::of(filter.connection, &filter.owner)).after(
        serde_json::json!({
            "connection": filter.connection, "organization": filter.org, "agent": filter.agent,
            "lane": filter.lane.map(|lane| lane.to_string()), "position": filter.head,
            "whole_lanes": whole_lanes,
        }),
    )
}

/// Statement that ends the deliveries from `first` to `last` of each locked lane in `c`.
macro_rules! end_statement {
    ($name:literal, $chosen:literal) => {
        concat!(
            "-- ",
            $name,
            "\n with c as (",
            $chosen,
            "), gone as (
        delete from deliveries d using c
         where d.connection_id = c.connection_id and d.lane = c.lane and d.position between c.first
           and c.last
        returning d.*),
    runs_gone as (
        delete from runs r using c
         where r.connection_id = c.connection_id and r.lane = c.lane
           and r.position between c.first and c.last
        returning r.connection_id, r.lane, r.position),
    parts_gone as (
        delete from run_parts p using runs_gone r
         where p.connection_id = r.connection_id and p.lane = r.lane
           and p.position = r.position),
    logged as (
        insert into delivery_log (slot, connection_id, partition, generation, sequence, lane,
               dedup_key, event_id, channel_id, ts, thread_ts, user_id, org_id, agent_id, kind,
               outcome, error, attempts, received_at, stored_at, inserted_at, first_attempt_at)
        select extract(epoch from now())::bigint / 86400 % 32, g.connection_id, g.partition,
               g.generation, g.sequence, g.lane, g.dedup_key, g.event_id, g.channel_id, g.ts,
               g.thread_ts, g.user_id, g.org_id, g.agent_id, g.kind, $3,
               case when g.position = c.head then c.last_error else '' end,
               case when g.position = c.head then c.attempts else 0 end,
               g.received_at, g.stored_at, g.inserted_at,
               case when g.position = c.head then c.first_attempt_at end
          from gone g join c using (connection_id, lane)),
    moved as (
        update delivery_lanes l
           set head = c.last + 1, attempts = 0, faults = 0, crashes = 0, first_attempt_at = null,
               last_error = '', cancel_requested = false,
               next_at = case when c.last = c.tail then 'infinity' else now() end,
               org_id = coalesce(n.org_id, l.org_id), agent_id = coalesce(n.agent_id, l.agent_id),
               priority = coalesce(n.priority, l.priority)
          from c left join deliveries n on n.connection_id = c.connection_id and n.lane = c.lane
                                       and n.position = c.last + 1 and n.part = 0
         where l.connection_id = c.connection_id and l.lane = c.lane and c.worker is null
           and c.first = c.head),
    cut as (
        update delivery_lanes l
           set tail = case when $4 then c.first - 1 else l.tail end,
               cancel_requested = l.cancel_requested or c.worker is not null
          from c
         where l.connection_id = c.connection_id and l.lane = c.lane
           and not (c.worker is null and c.first = c.head))
    select (select count(*) from gone where part = 0) as ended,
           count(*) filter (where worker is not null) as running,
           coalesce(bool_or($4 and first > head + (worker is not null)::integer), false) as more
      from c"
        )
    };
}

/// Ends whole lanes (`$4`) from their tails, `$5` deliveries of each, or heads.
const END: &str = end_statement!(
    "deliveries.end_by_operator",
    "select l.*, case when $4 then greatest(l.head + (l.worker is not null)::integer,
                                            l.tail - $5 + 1)
                      else l.head end as first,
            case when $4 then l.tail when l.worker is null then l.head else l.head - 1 end as last
       from unnest($1::text[], $2::bigint[]) as u (connection_id, lane)
       join delivery_lanes l using (connection_id, lane)
      where l.head <= l.tail"
);

/// Ends `$5` deliveries of each lane from its head, up to the first of another agent than `$6` and
/// `$7`. `$4` is false.
const END_UNREACHABLE: &str = end_statement!(
    "deliveries.end_unreachable",
    "select l.*, l.head as first,
            least(l.tail, l.head + $5 - 1,
                  (select min(d.position) - 1 from deliveries d
                    where d.connection_id = l.connection_id and d.lane = l.lane
                      and d.position between l.head and l.head + $5 - 1
                      and (d.org_id, d.agent_id) <> ($6, $7))) as last
       from unnest($1::text[], $2::bigint[]) as u (connection_id, lane)
       join delivery_lanes l using (connection_id, lane)
      where l.head <= l.tail and l.worker is null and not $4"
);

/// Lanes of a connection with deliveries, by a loose index scan, because a lane may hold many
/// deliveries.
const LANES_OF_CONNECTION: &str = "-- deliveries.lanes_of_connection
    with recursive r as (
        (select lane from deliveries where connection_id = $1 order by lane limit 1)
        union all
        select n.lane from r, lateral (
            select d.lane from deliveries d where d.connection_id = $1 and d.lane > r.lane
             order by d.lane limit 1) n)
    select r.lane, $1 as connection_id from r
      join delivery_lanes l on l.lane = r.lane and l.connection_id = $1 and l.worker is null
     where $2::text is not null limit $3";

const LANES_OF_AGENT: &str = "-- deliveries.lanes_of_agent
    select lane, connection_id from delivery_lanes
     where org_id = $1 and agent_id = $2 and worker is null and head <= tail limit $3";

/// Locks lanes in the order of all statements, and repeats the checks that others may have
/// invalidated.
async fn lock_lanes(
    tx: &mut PgConnection,
    page: &[(i64, String)],
    running_too: bool,
    head: Option<i64>,
) -> Result<Vec<(i64, String)>, StoreError> {
    let rows = sqlx::query(
        "-- deliveries.lock_lanes
         select l.lane, l.connection_id
           from unnest($1::bigint[], $2::text[]) as u (lane, connection_id)
           join delivery_lanes l using (lane, connection_id)
          where ($3 or l.worker is null) and ($4::bigint is null or l.head = $4)
          order by l.connection_id, l.lane for update of l",
    )
    .bind(page.iter().map(|(lane, _)| *lane).collect::<Vec<_>>())
    .bind(page.iter().map(|(_, connection)| connection.as_str()).collect::<Vec<_>>())
    .bind(running_too)
    .bind(head)
    .fetch_all(tx)
    .await?;
    lane_keys(&rows)
}

fn lane_keys(rows: &[PgRow]) -> Result<Vec<(i64, String)>, StoreError> {
    rows.iter().map(|row| Ok((row.try_get("lane")?, row.try_get("connection_id")?))).collect()
}

/// Returns a key before all lanes.
fn start_key() -> (i64, String) {
    (i64::MIN, String::new())
}
