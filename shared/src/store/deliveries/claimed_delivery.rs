//! Claimed deliveries: their rows and payloads.

use super::ClaimRequest;
use crate::store::{GATEWAY_ORG, Priority, SealedPayload, Store, StoreError, column, partition_of};
use crate::{
    domain::{AgentId, ConnectionId, OrgId, WebhookKind},
    stream::{DedupKey, Lane, Partition},
};
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;

/// Key of a delivery's row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeliveryKey {
    /// Connection.
    pub connection: ConnectionId,
    /// Lane.
    pub lane: Lane,
    /// Position in the lane.
    pub position: i64,
}

/// Delivery with a running attempt.
#[derive(Debug, Clone)]
pub struct ClaimedDelivery {
    /// Key of the row.
    pub key: DeliveryKey,
    /// Worker row.
    pub worker: String,
    /// Number of the claim, which fences the end of the attempt.
    pub claim: i64,
    /// Number of this attempt. The first is 1.
    pub attempts: i32,
    /// Earlier attempts that failed because of this delivery.
    pub faults: i32,
    /// Earlier attempts without an outcome.
    pub crashes: i32,
    /// Number of deliveries that the attempts answer together: this one and those behind it.
    pub merged: i32,
    /// Organization of the agent, or [`GATEWAY_ORG`].
    pub org: String,
    /// Id of the agent.
    pub agent: String,
    /// Agent slot.
    pub slot: i32,
    /// Partition.
    pub partition: Partition,
    /// Session of the conversation at the time of the decision.
    pub session: i64,
    /// Kind.
    pub kind: WebhookKind,
    /// Priority.
    pub priority: Priority,
    /// Dedup key.
    pub dedup_key: DedupKey,
    /// Bytes of the sealed payload.
    pub size: usize,
    /// Time since the first attempt, without pauses of the agent.
    pub age: Duration,
    /// Time since the enqueueing, without pauses of the agent.
    pub waited: Duration,
    /// True if the person got a notice that the delivery waits.
    pub was_notified: bool,
    /// True if this attempt probes an open circuit breaker.
    pub probe: bool,
}

impl Store {
    /// Opens the payloads of claimed deliveries. The result of a deleted delivery is `None`, that
    /// of an unreadable payload an error.
    pub async fn load_payloads(
        &self,
        deliveries: &[&ClaimedDelivery],
    ) -> Result<Vec<Option<Result<SealedPayload, String>>>, StoreError> {
        let rows = sqlx::query(
            "-- deliveries.payloads
             select d.payload
               from unnest($1::text[], $2::bigint[], $3::bigint[]) with ordinality as u
                    (connection_id, lane, position, n)
               left join deliveries d on d.connection_id = u.connection_id and d.lane = u.lane
                                     and d.position = u.position and d.part = 0
              order by u.n",
        )
        .bind(deliveries.iter().map(|d| d.key.connection.to_string()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|d| d.key.lane.to_bits()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|d| d.key.position).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .zip(deliveries)
            .map(|(row, delivery)| {
                let Some(sealed) = row.try_get::<Option<Vec<u8>>, _>("payload")? else {
                    return Ok(None);
                };
                let key = delivery.dedup_key.as_str();
                Ok(Some(SealedPayload::open(&self.rings.tokens, key, &sealed)))
            })
            .collect()
    }
}

/// Converts a row. `None` if the head is missing, or has another agent or priority than the lane's
/// row.
pub(super) fn claimed_delivery(
    row: &PgRow,
    request: &ClaimRequest<'_>,
) -> Result<Option<ClaimedDelivery>, StoreError> {
    let lane = Lane::from_bits(row.try_get("lane")?);
    let org: Option<String> = row.try_get("org_id")?;
    let agent: Option<String> = row.try_get("agent_id")?;
    let (Some(org), Some(agent)) = (org, agent) else { return Ok(None) };
    let (queue_org, queue_agent): (String, String) =
        (row.try_get("queue_org")?, row.try_get("queue_agent")?);
    let priority: i16 = row.try_get("priority")?;
    if (&org, &agent) != (&queue_org, &queue_agent) || priority != request.priority.number() {
        return Ok(None);
    }
    let row_key = lane.to_string();
    let connection = column(row, "deliveries", &row_key, "connection_id")?;
    let seconds = |name| -> Result<Duration, StoreError> {
        let seconds: Option<f64> = row.try_get(name)?;
        Ok(Duration::from_secs_f64(seconds.unwrap_or_default().max(0.0)))
    };
    let kind: String = row.try_get("kind")?;
    Ok(Some(ClaimedDelivery {
        key: DeliveryKey { connection, lane, position: row.try_get("head")? },
        worker: request.worker.to_owned(),
        claim: row.try_get("claim")?,
        attempts: row.try_get("attempts")?,
        faults: row.try_get("faults")?,
        crashes: row.try_get("crashes")?,
        merged: row.try_get("merged")?,
        org,
        agent,
        slot: row.try_get("n")?,
        partition: partition_of(row.try_get("partition")?)?,
        session: row.try_get("session")?,
        kind: kind.parse().unwrap_or(WebhookKind::Unknown),
        priority: request.priority,
        dedup_key: DedupKey::from_stored(row.try_get("dedup_key")?),
        size: usize::try_from(row.try_get::<i32, _>("size")?).unwrap_or_default(),
        age: seconds("age")?,
        waited: seconds("waited")?,
        was_notified: row.try_get::<Option<bool>, _>("told")?.unwrap_or_default(),
        probe: row.try_get("probe")?,
    }))
}

impl ClaimedDelivery {
    /// Returns the agent. `None` for the gateway itself.
    pub fn agent(&self) -> Option<(OrgId, AgentId)> {
        if self.org == GATEWAY_ORG {
            return None;
        }
        self.org.parse().ok().zip(self.agent.parse().ok())
    }
}
