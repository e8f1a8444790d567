//! Writes of runs in batches: parts before they are sent, and confirmations by Slack.

use super::{RunKey, RunPart, RunState, seal, seal_ask};
use crate::store::{ClaimedDelivery, Store, StoreError};
use sqlx::Row;
use std::collections::HashSet;

/// Write of a run.
#[derive(Debug, Clone)]
pub struct RunWrite {
    /// Run.
    pub key: RunKey,
    /// Worker row. With the claim, the fence of the write.
    pub worker: String,
    /// Number of the claim.
    pub claim: i64,
    /// New state.
    pub state: RunState,
    /// New parts.
    pub parts: Vec<RunPart>,
}

impl RunWrite {
    /// Creates a write of a delivery's run.
    pub fn new(delivery: &ClaimedDelivery, state: RunState, parts: Vec<RunPart>) -> Self {
        let (worker, claim) = (delivery.worker.clone(), delivery.claim);
        Self { key: delivery.into(), worker, claim, state, parts }
    }
}

impl Store {
    /// Writes runs: one write per run. Returns for each whether its fence held. Parts before the
    /// segment are deleted. A run with new parts makes progress, so the failures of its delivery
    /// no longer count. A repetition has no effect.
    pub async fn save_runs(&self, writes: &[RunWrite]) -> Result<Vec<bool>, StoreError> {
        let (mut of, mut n, mut begins, mut sealed) = (vec![], vec![], vec![], vec![]);
        for (i, write) in writes.iter().enumerate() {
            for part in &write.parts {
                of.push(i as i64);
                n.push(part.n);
                begins.push(part.begins);
                sealed.push(seal(&self.rings.tokens, write.key, part)?);
            }
        }
        let asks: Result<Vec<_>, _> =
            writes.iter().map(|write| seal_ask(&self.rings.tokens, write)).collect();
        fn column<T>(writes: &[RunWrite], value: impl Fn(&RunWrite) -> T) -> Vec<T> {
            writes.iter().map(value).collect()
        }
        let rows = sqlx::query(
            "-- runs.save
             with u as (
                 select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[],
                                      $5::bigint[], $6::text[], $7::integer[], $8::integer[],
                                      $9::integer[], $10::text[], $11::boolean[], $12::text[],
                                      $13::bigint[], $14::text[], $19::text[]) with ordinality
                          as u (connection_id, lane, position, worker, claim, last_event_id, parts,
                                sent, segment_from, segment, edited, ts, text_bytes, ended, ask, i)),
             fenced as (
                 select u.*, l.crashes, l.faults
                   from (select * from u order by connection_id, lane) u, lateral (
                       -- Prevents the index by worker, which has entries of all its earlier lanes.
                       select l.crashes, l.faults from delivery_lanes l
                        where l.lane = u.lane and l.connection_id = u.connection_id
                          and l.worker is not distinct from u.worker and l.claim = u.claim
                          for update) l),
             saved as (
                 update runs r
                    set last_event_id = f.last_event_id, parts = f.parts, sent = f.sent,
                        segment_at = case when f.segment = 'starting'
                                           and (r.segment <> 'starting'
                                                or r.segment_from <> f.segment_from)
                            then now() else r.segment_at end,
                        segment_from = f.segment_from, segment = f.segment, edited = f.edited,
                        ts = f.ts, text_bytes = f.text_bytes, ended = f.ended, ask = f.ask,
                        progressed_at = case when f.parts > r.parts then now()
                                             else r.progressed_at end
                   from fenced f
                  where r.connection_id = f.connection_id and r.lane = f.lane
                    and r.position = f.position
                 returning f.i, f.connection_id, f.lane, f.position, f.segment_from, f.crashes, f.faults),
             added as (
                 insert into run_parts (connection_id, lane, position, n, begins, payload)
                 select s.connection_id, s.lane, s.position, p.n, p.begins, p.payload
                   from unnest($15::bigint[], $16::integer[], $17::boolean[], $18::bytea[])
                        as p (i, n, begins, payload)
                   join saved s on s.i = p.i + 1
                 -- A repetition after the result of the first write was lost.
                 on conflict (connection_id, lane, position, n)
                    do update set begins = excluded.begins, payload = excluded.payload
                 returning connection_id, lane),
             gone as (
                 delete from run_parts p using saved s
                  where p.connection_id = s.connection_id and p.lane = s.lane
                    and p.position = s.position and p.n < s.segment_from),
             progress as (
                 update delivery_lanes l set crashes = 0, faults = 0 from saved s
                  where l.lane = s.lane and l.connection_id = s.connection_id
                    and (s.crashes > 0 or s.faults > 0)
                    and exists (select from added a
                                 where a.connection_id = s.connection_id and a.lane = s.lane))
             select i from saved",
        )
        .bind(column(writes, |w| w.key.connection.to_string()))
        .bind(column(writes, |w| w.key.lane.to_bits()))
        .bind(column(writes, |w| w.key.position))
        .bind(column(writes, |w| w.worker.clone()))
        .bind(column(writes, |w| w.claim))
        .bind(column(writes, |w| w.state.last_event_id.clone()))
        .bind(column(writes, |w| w.state.parts))
        .bind(column(writes, |w| w.state.sent))
        .bind(column(writes, |w| w.state.segment_from))
        .bind(column(writes, |w| w.state.segment.as_str()))
        .bind(column(writes, |w| w.state.edited))
        .bind(column(writes, |w| w.state.ts.clone()))
        .bind(column(writes, |w| w.state.text_bytes))
        .bind(column(writes, |w| w.state.ended.clone()))
        .bind(of)
        .bind(n)
        .bind(begins)
        .bind(sealed)
        .bind(asks?)
        .fetch_all(&self.pool)
        .await?;
        let saved: HashSet<i64> =
            rows.iter().map(|row| row.try_get("i")).collect::<Result<_, _>>()?;
        Ok((1..=writes.len() as i64).map(|i| saved.contains(&i)).collect())
    }
}
