//! Merging of deliveries: messages that wait behind the head of a lane are answered with it.

use super::ClaimedDelivery;
use crate::store::{SealedPayload, Store, StoreError};
use sqlx::Row;

/// Delivery behind the head of a lane.
#[derive(Debug)]
pub struct WaitingDelivery {
    /// Dedup key.
    pub dedup_key: String,
    /// Payload, or the reason why it cannot be opened.
    pub payload: Result<SealedPayload, String>,
}

impl Store {
    /// Returns the deliveries behind a claimed one, in order: for the same agent and session, at
    /// most `count` and with at most `bytes`.
    pub async fn waiting_behind(
        &self,
        delivery: &ClaimedDelivery,
        count: i64,
        bytes: i64,
    ) -> Result<Vec<WaitingDelivery>, StoreError> {
        let rows = sqlx::query(
            "-- deliveries.waiting_behind
             select dedup_key, payload from (
                 select d.*, sum(size) over (order by position) as bytes,
                        bool_and(org_id = $5 and agent_id = $6 and session = $7 and kind = 'event')
                            over (order by position) as fits
                   from deliveries d
                  where connection_id = $1 and lane = $2 and position > $3
                    and position <= $3 + $4 and part = 0) d
              where fits and bytes <= $8 order by position",
        )
        .bind(delivery.key.connection.to_string())
        .bind(delivery.key.lane.to_bits())
        .bind(delivery.key.position)
        .bind(count)
        .bind(&delivery.org)
        .bind(&delivery.agent)
        .bind(delivery.session)
        .bind(bytes)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let dedup_key: String = row.try_get("dedup_key")?;
                let sealed: Vec<u8> = row.try_get("payload")?;
                let payload = SealedPayload::open(&self.rings.tokens, &dedup_key, &sealed);
                Ok(WaitingDelivery { dedup_key, payload })
            })
            .collect()
    }

    /// Records that the attempts of a delivery answer `merged` deliveries together. Returns false
    /// if the lane was freed.
    pub async fn merge_deliveries(
        &self,
        delivery: &ClaimedDelivery,
        merged: i32,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "-- deliveries.merge
             update delivery_lanes set merged = $5
              where lane = $2 and connection_id = $1 and worker = $3 and claim = $4
                and head + $5 - 1 <= tail",
        )
        .bind(delivery.key.connection.to_string())
        .bind(delivery.key.lane.to_bits())
        .bind(&delivery.worker)
        .bind(delivery.claim)
        .bind(merged)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}
