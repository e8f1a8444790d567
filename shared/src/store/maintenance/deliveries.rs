//! State of waiting and running deliveries for operators: lanes with their heads, and the
//! deliveries behind them.

use super::{BoundedCount, json};
use crate::store::{Store, StoreError, column};
use crate::{
    domain::{AgentId, ConnectionId, OrgId},
    stream::Lane,
};
use serde::{Deserialize, Serialize};
use sqlx::{Postgres, Row, postgres::PgArguments, query::Query};

/// Filter of lanes with deliveries. `None` matches everything.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// Connection.
    pub connection: Option<ConnectionId>,
    /// Organization of the head's agent.
    pub org: Option<OrgId>,
    /// Id of the head's agent.
    pub agent: Option<AgentId>,
    /// Lane.
    pub lane: Option<Lane>,
    /// Position of the head.
    pub head: Option<i64>,
    /// Organization of the connection.
    pub owner: Option<OrgId>,
}

/// Lane with deliveries, and its head.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct LaneState {
    pub connection: String,
    pub lane: String,
    pub partition: i16,
    pub agent: String,
    /// `running`, `due`, `waiting`, `paused`, `circuit open`, or the connection's status that
    /// blocks the lane.
    pub state: String,
    /// Waiting and running deliveries.
    pub waiting: i64,
    pub attempts: i32,
    pub crashes: i32,
    pub waiting_since: Option<String>,
    pub first_attempt_at: Option<String>,
    pub next_at: Option<String>,
    pub worker: Option<String>,
    pub last_error: String,
    pub cancel_requested: bool,
    pub kind: Option<String>,
    pub dedup_key: Option<String>,
    pub event_id: Option<String>,
    pub channel: Option<String>,
    pub ts: Option<String>,
    pub user: Option<String>,
    pub replay: Option<String>,
}

/// Waiting or running delivery.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct OpenDelivery {
    pub connection: String,
    pub lane: String,
    pub position: i64,
    pub head: bool,
    pub agent: String,
    pub session: i64,
    pub kind: String,
    pub dedup_key: String,
    pub event_id: Option<String>,
    pub channel: Option<String>,
    pub thread_ts: Option<String>,
    pub ts: Option<String>,
    pub user: Option<String>,
    pub size: i32,
    pub stored_at: String,
    pub inserted_at: String,
}

/// Numbers of deliveries that match a filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DeliveryCount {
    /// Lanes.
    pub lanes: i64,
    /// Deliveries in these lanes.
    pub deliveries: i64,
    /// Lanes with a running head.
    pub running: i64,
}

/// Condition on `delivery_lanes l` with the six parameters of `filtered_query`.
macro_rules! filter_condition {
    () => {
        "(l.head <= l.tail and ($1::text is null or l.connection_id = $1)
          and ($2::text is null or l.org_id = $2)
           and ($3::text is null or l.agent_id = $3) and ($4::bigint is null or l.lane = $4)
           and ($5::bigint is null or l.head = $5)
           and ($6::text is null
                or l.connection_id in (select o.id from connections o where o.org_id = $6)))"
    };
}
pub(super) use filter_condition;

/// Returns a statement whose first six parameters are a filter.
pub(super) fn filtered_query<'q>(
    sql: &'static str,
    filter: &'q DeliveryFilter,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql)
        .bind(filter.connection.map(|id| id.to_string()))
        .bind(filter.org.as_ref().map(OrgId::as_str))
        .bind(filter.agent.as_ref().map(AgentId::as_str))
        .bind(filter.lane.map(Lane::to_bits))
        .bind(filter.head)
        .bind(filter.owner.as_ref().map(OrgId::as_str))
}

/// Statement that describes the lanes of a subquery, in the order of its column `rank`.
macro_rules! lane_states {
    ($name:literal, $lanes:expr) => {
        concat!(
            "-- ",
            $name,
            "\n select to_jsonb(t) as row from (
                 select l.connection_id as connection, lpad(to_hex(l.lane), 16, '0') as lane,
                        l.partition, l.org_id || '/' || l.agent_id as agent,
                        case when l.worker is not null then 'running'
                             when a.paused_at is not null then 'paused'
                             when c.status in ('stopped', 'revoked') then c.status
                             when h.opened_at is not null then 'circuit open'
                             when l.next_at <= now() then 'due' else 'waiting' end as state,
                        l.tail - l.head + 1 as waiting, l.attempts, l.crashes,
                        d.inserted_at as waiting_since, l.first_attempt_at,
                        nullif(l.next_at, 'infinity') as next_at, l.worker, l.last_error,
                        l.cancel_requested, d.kind, d.dedup_key, d.event_id,
                        d.channel_id as channel, d.ts, d.user_id as user, d.replay
                   from (",
            $lanes,
            ") l
                   left join deliveries d on d.connection_id = l.connection_id and d.lane = l.lane
                                         and d.position = l.head and d.part = 0
                   left join agents a on a.org_id = l.org_id and a.id = l.agent_id
                   left join agent_health h on h.org_id = l.org_id and h.agent_id = l.agent_id
                   left join connections c on c.id = l.connection_id
                  order by l.rank) t"
        )
    };
}

impl Store {
    /// Returns lanes with deliveries, at most `limit`, ordered by first attempt or due time of the
    /// head.
    pub async fn lane_states(
        &self,
        filter: &DeliveryFilter,
        newest_first: bool,
        limit: i64,
    ) -> Result<Vec<LaneState>, StoreError> {
        let rows = filtered_query(
            lane_states!(
                "deliveries.list",
                concat!(
                    "select l.*,
                            extract(epoch from least(first_attempt_at, next_at)) * $7::integer
                                as rank
                       from delivery_lanes l where ",
                    filter_condition!(),
                    " order by rank limit $8"
                )
            ),
            filter,
        )
        .bind(if newest_first { -1 } else { 1 })
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Returns lanes with deliveries after a lane of a connection, in the order of lanes.
    pub async fn lanes_page(
        &self,
        filter: &DeliveryFilter,
        after: Option<(Lane, ConnectionId)>,
        limit: i64,
    ) -> Result<Vec<LaneState>, StoreError> {
        let rows = filtered_query(
            lane_states!(
                "deliveries.page_of_lanes",
                concat!(
                    "select l.*, row_number() over (order by l.lane, l.connection_id) as rank
                       from delivery_lanes l where ",
                    filter_condition!(),
                    " and ($7::bigint is null or (l.lane, l.connection_id) > ($7, $8))
                      order by l.lane, l.connection_id limit $9"
                )
            ),
            filter,
        )
        .bind(after.map(|(lane, _)| lane.to_bits()))
        .bind(after.map(|(_, connection)| connection.to_string()))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Returns the deliveries of a lane in their order, at most `limit`.
    pub async fn open_deliveries(
        &self,
        connection: ConnectionId,
        lane: Lane,
        limit: i64,
    ) -> Result<Vec<OpenDelivery>, StoreError> {
        let rows = sqlx::query(
            "-- deliveries.show
             select to_jsonb(t) as row from (
                 select d.connection_id as connection, lpad(to_hex(d.lane), 16, '0') as lane,
                        d.position, d.position = l.head as head,
                        d.org_id || '/' || d.agent_id as agent, d.session, d.kind, d.dedup_key,
                        d.event_id, d.channel_id as channel, d.thread_ts, d.ts, d.user_id as user,
                        d.size, d.stored_at, d.inserted_at
                   from delivery_lanes l join deliveries d using (connection_id, lane)
                  where l.connection_id = $1 and l.lane = $2 and d.position between l.head
                    and l.tail and d.part = 0
                  order by d.position limit $3) t",
        )
        .bind(connection.to_string())
        .bind(lane.to_bits())
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Returns the position of a webhook's delivery. `None` if it neither waits nor runs.
    pub async fn delivery_of(&self, dedup_key: &str) -> Result<Option<DeliveryFilter>, StoreError> {
        let row = sqlx::query(
            "-- deliveries.find
             select d.connection_id, d.lane, d.position from deliveries d
              where d.dedup_key = $1 order by d.position limit 1",
        )
        .bind(dedup_key)
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(DeliveryFilter {
                connection: Some(column(&row, "deliveries", dedup_key, "connection_id")?),
                lane: Some(Lane::from_bits(row.try_get("lane")?)),
                head: Some(row.try_get("position")?),
                ..DeliveryFilter::default()
            })
        })
        .transpose()
    }

    /// Counts matching lanes and their deliveries.
    pub async fn count_deliveries(
        &self,
        filter: &DeliveryFilter,
    ) -> Result<DeliveryCount, StoreError> {
        let row = filtered_query(
            concat!(
                "-- deliveries.count
                 select count(*) as lanes,
                        coalesce(sum(l.tail - l.head + 1), 0)::bigint as deliveries,
                        count(l.worker) as running
                   from delivery_lanes l where ",
                filter_condition!()
            ),
            filter,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(DeliveryCount {
            lanes: row.try_get("lanes")?,
            deliveries: row.try_get("deliveries")?,
            running: row.try_get("running")?,
        })
    }

    /// Counts matching lanes, up to a bound.
    pub async fn count_lanes_bounded(
        &self,
        filter: &DeliveryFilter,
    ) -> Result<BoundedCount, StoreError> {
        let row = filtered_query(
            concat!(
                "-- deliveries.count_some
                 select count(*) as count from (select from delivery_lanes l where ",
                filter_condition!(),
                " limit $7) t"
            ),
            filter,
        )
        .bind(BoundedCount::READ_MAX)
        .fetch_one(&self.pool)
        .await?;
        BoundedCount::of(row)
    }
}
