//! Start of a run, in its first attempt and in each later one.

use super::RunKey;
use crate::store::{ClaimedDelivery, Store, StoreError};
use sqlx::Row;
use std::time::Duration;

/// Run to begin.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names
pub struct NewRun<'a> {
    pub id: &'a str,
    pub channel: &'a str,
    pub thread_ts: &'a str,
    /// Message that the agent answers.
    pub trigger_ts: &'a str,
    /// Number of the agent's runs, on all workers, from which another run keeps its slot.
    pub max_runs: i64,
}

/// Begun run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BegunRun {
    /// Time since its first start.
    pub age: Duration,
    /// False if the agent has too many runs: this one then keeps its slot.
    pub frees_slot: bool,
}

impl Store {
    /// Begins a run, or continues that of an earlier attempt, and frees the agent's slot. `None` if
    /// the lane was freed.
    ///
    /// Runs are counted without a lock: those that begin at the same moment may exceed `max_runs`.
    pub async fn begin_run(
        &self,
        delivery: &ClaimedDelivery,
        new: &NewRun<'_>,
    ) -> Result<Option<BegunRun>, StoreError> {
        let key = RunKey::from(delivery);
        let row = sqlx::query(
            "-- runs.begin
             with fenced as (
                 select from delivery_lanes
                  where lane = $2 and connection_id = $1 and worker = $4 and claim = $5 for update),
             busy as (
                 select count(*) >= $13 as full from (
                     select from runs where org_id = $6 and agent_id = $7 limit $13) r),
             run as (
                 insert into runs (connection_id, lane, position, id, org_id, agent_id, channel_id,
                                   thread_ts, trigger_ts)
                 select $1, $2, $3, $9, $6, $7, $10, $11, $12 from fenced
                 on conflict (connection_id, lane, position) do update set id = excluded.id
                 returning started_at),
             slot as (
                 update agent_slots s set connection_id = null, lane = null, worker = null
                   from run, busy
                  where s.org_id = $6 and s.agent_id = $7 and s.n = $8 and s.lane = $2
                    and s.connection_id = $1 and s.worker = $4 and not busy.full)
             select extract(epoch from now() - run.started_at)::float8 as age,
                    not busy.full as frees_slot
               from run, busy",
        )
        .bind(key.connection.to_string())
        .bind(key.lane.to_bits())
        .bind(key.position)
        .bind(&delivery.worker)
        .bind(delivery.claim)
        .bind(&delivery.org)
        .bind(&delivery.agent)
        .bind(delivery.slot)
        .bind(new.id)
        .bind(new.channel)
        .bind(new.thread_ts)
        .bind(new.trigger_ts)
        .bind(new.max_runs)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let age = Duration::from_secs_f64(row.try_get::<f64, _>("age")?.max(0.0));
        Ok(Some(BegunRun { age, frees_slot: row.try_get("frees_slot")? }))
    }
}
