//! Release of lanes and slots without a running attempt: of an expired worker, and of a live worker
//! that does not know them because the result of its claim was lost.

use crate::store::{Store, StoreError};
use crate::{domain::ConnectionId, stream::Lane};
use sqlx::Row;

impl Store {
    /// Frees lanes of a worker, except for `keep`, at most `limit`. Returns their number.
    ///
    /// Without `keep` the worker has ended: its attempts count as crashes, after which the lane
    /// waits 0, 1, 4, 16 s. A live worker never started the attempt of a lane that it does not
    /// know.
    pub async fn release_delivery_lanes(
        &self,
        worker: &str,
        keep: Option<&[(ConnectionId, Lane)]>,
        limit: i64,
    ) -> Result<u64, StoreError> {
        let ended = keep.is_none();
        let keep = keep.unwrap_or_default();
        let row = sqlx::query(
            "-- deliveries.release
             with orphans as (
                 select connection_id, lane from delivery_lanes
                  where worker = $1 and (connection_id, lane) not in (
                        select * from unnest($2::text[], $3::bigint[]))
                  order by connection_id, lane limit $4 for update),
             freed as (
                 update delivery_lanes l
                    set worker = null, claim = null,
                        -- An attempt that has a run counts: only later ones look for it.
                        attempts = l.attempts - 1 + greatest($5::integer, exists (
                            select from runs r
                             where r.connection_id = l.connection_id and r.lane = l.lane
                               and r.position = l.head)::integer),
                        -- A live worker never started the attempt of a lane that it does not know.
                        crashes = l.crashes + $5::integer,
                        last_error = case $5::integer when 1 then 'the worker ended'
                            else l.last_error end,
                        next_at = now() + make_interval(
                                              secs => $5::integer * trunc(power(4, l.crashes - 1)))
                   from orphans o where l.connection_id = o.connection_id and l.lane = o.lane
                 returning 1),
             slots as (
                 update agent_slots s set connection_id = null, lane = null, worker = null
                  where worker = $1 and (connection_id, lane) not in (
                        select * from unnest($2::text[], $3::bigint[]))
                    and (connection_id, lane) in (select connection_id, lane from orphans)),
             forgotten as (
                 -- Slots without a running lane of the same worker.
                 update agent_slots s set connection_id = null, lane = null, worker = null
                  where worker = $1 and (connection_id, lane) not in (
                        select * from unnest($2::text[], $3::bigint[]))
                    and (connection_id, lane) not in (select connection_id, lane from orphans)
                    and not exists (select from delivery_lanes l
                                     where l.connection_id = s.connection_id and l.lane = s.lane
                                       and l.worker = $1))
             select count(*) as freed from freed",
        )
        .bind(worker)
        .bind(keep.iter().map(|(connection, _)| connection.to_string()).collect::<Vec<_>>())
        .bind(keep.iter().map(|(_, lane)| lane.to_bits()).collect::<Vec<_>>())
        .bind(limit)
        .bind(i32::from(ended))
        .fetch_one(&self.pool)
        .await?;
        Ok(u64::try_from(row.try_get::<i64, _>("freed")?).unwrap_or_default())
    }

    /// Returns the running lanes of a worker that an operator asked to cancel.
    pub async fn cancelled_lanes(
        &self,
        worker: &str,
    ) -> Result<Vec<(ConnectionId, Lane)>, StoreError> {
        let rows = sqlx::query(
            "-- deliveries.cancelled
             select connection_id, lane from delivery_lanes where worker = $1 and cancel_requested",
        )
        .bind(worker)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let lane = Lane::from_bits(row.try_get("lane")?);
                let key = lane.to_string();
                let connection =
                    crate::store::column(row, "delivery_lanes", &key, "connection_id")?;
                Ok((connection, lane))
            })
            .collect()
    }

    /// Creates the slots of deliveries that workers answer themselves, and deletes free ones above
    /// `count`.
    pub async fn ensure_gateway_slots(&self, count: i32) -> Result<(), StoreError> {
        sqlx::query(
            "-- slots.ensure_gateway
             with dropped as (
                 delete from agent_slots where org_id = $1 and agent_id = $2 and n > $3
                    and lane is null)
             insert into agent_slots (org_id, agent_id, n)
             select $1, $2, n from generate_series(0, $3) n on conflict do nothing",
        )
        .bind(crate::store::GATEWAY_ORG)
        .bind(crate::store::GATEWAY_AGENT)
        .bind(count)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
