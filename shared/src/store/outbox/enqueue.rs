//! Enqueueing of messages to Slack as part of a larger statement.

use crate::store::{StoreError, inconsistent};
use crate::{
    domain::{ConnectionId, Destination, HeaderToken, OutgoingMessage},
    secrets::{KeyRing, SealContext},
    stream::{DedupKey, Lane, Partition},
};
use serde::{Deserialize, Serialize};
use sqlx::{Postgres, postgres::PgArguments, query::Query};

/// Column that requests are sealed for.
pub const COLUMN: &str = "outbox.request";

/// CTEs that enqueue the rows of a CTE `messages (n, connection_id, lane, partition, channel_key,
/// method, dedup_key, request)`, which the surrounding statement has filtered by its fence. They
/// use only the newest version of lane and channel rows and read no other rows.
macro_rules! enqueue_messages {
    () => {
        "outbox_rows as (
             select m.*, nextval('outbox_turns') as turn
               from (select m.*, count(*) over (partition by connection_id, lane) as of_lane,
                            row_number() over (partition by connection_id, lane order by n) as nth
                       from messages m order by n) m),
         outbox_tails as (
             insert into outbox_lanes as l (connection_id, lane, partition, head, tail, channel_key,
                                            turn, next_at)
             select connection_id, lane, partition, 1, of_lane, channel_key, turn, now()
               from outbox_rows where nth = 1 order by connection_id, lane
             on conflict (connection_id, lane) do update
                set tail = l.tail + excluded.tail, partition = excluded.partition,
                    next_at = case when l.head > l.tail then now() else l.next_at end,
                    turn = case when l.head > l.tail then excluded.turn else l.turn end,
                    channel_key = case when l.head > l.tail then excluded.channel_key
                        else l.channel_key end
             returning connection_id, lane, tail),
         outbox_counted as (
             insert into outbox_channels as c (connection_id, channel_key, partition, pending,
                                               next_at)
             select connection_id, channel_key, min(partition), count(*), now()
               from outbox_rows join outbox_tails using (connection_id, lane) group by 1, 2
              order by 1, 2
             on conflict (connection_id, channel_key) do update
                set pending = c.pending + excluded.pending, partition = excluded.partition,
                    next_at = least(c.next_at, greatest(now(), c.paced_until))
             returning 1),
         outbox_queued as (
             insert into outbox (connection_id, lane, position, partition, channel_key, method,
                                 dedup_key, request)
             select connection_id, lane, t.tail - r.of_lane + r.nth, partition, channel_key, method,
                    dedup_key, request
               from outbox_rows r join outbox_tails t using (connection_id, lane) order by r.n)"
    };
}
pub(in crate::store) use enqueue_messages;

/// Decrypted request of a message.
#[derive(Serialize, Deserialize)]
pub(super) struct Request<O> {
    #[serde(flatten)]
    pub outgoing: O,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Messages as columns of the CTE `messages`.
#[derive(Default)]
pub(in crate::store) struct SealedMessages {
    n: Vec<i64>,
    connections: Vec<String>,
    lanes: Vec<i64>,
    partitions: Vec<i16>,
    channel_keys: Vec<String>,
    methods: Vec<&'static str>,
    dedup_keys: Vec<String>,
    requests: Vec<String>,
}

impl SealedMessages {
    /// Adds a message, sealed for its row.
    #[allow(clippy::too_many_arguments)]
    pub fn push(
        &mut self,
        ring: &KeyRing,
        partition: Partition,
        lane: Lane,
        connection: ConnectionId,
        dedup_key: &DedupKey,
        traceparent: Option<&HeaderToken>,
        outgoing: &OutgoingMessage,
    ) -> Result<(), StoreError> {
        let traceparent = traceparent.map(|token| token.as_str().to_owned());
        let clear = serde_json::to_vec(&Request { outgoing, traceparent })
            .map_err(|error| inconsistent("outbox", "request", dedup_key.as_str(), error))?;
        let owner = format!("{connection}/{dedup_key}");
        let sealed = ring.seal(SealContext { owner: &owner, column: COLUMN }, &clear)?;
        self.n.push(self.n.len() as i64);
        self.connections.push(connection.to_string());
        self.lanes.push(lane.to_bits());
        self.partitions.push(partition.number() as i16);
        self.channel_keys.push(channel_key(&outgoing.to, lane));
        self.methods.push(outgoing.to.as_str());
        self.dedup_keys.push(dedup_key.as_str().to_owned());
        self.requests.push(sealed.as_str().to_owned());
        Ok(())
    }

    /// Returns whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.n.is_empty()
    }

    /// Binds the eight arrays, in the order of the CTE's columns.
    pub fn bind<'q>(
        &'q self,
        query: Query<'q, Postgres, PgArguments>,
    ) -> Query<'q, Postgres, PgArguments> {
        query
            .bind(&self.n)
            .bind(&self.connections)
            .bind(&self.lanes)
            .bind(&self.partitions)
            .bind(&self.channel_keys)
            .bind(&self.methods)
            .bind(&self.dedup_keys)
            .bind(&self.requests)
    }
}

/// Returns the key that paces a message: its channel, or its lane if it has no channel.
fn channel_key(to: &Destination, lane: Lane) -> String {
    match to {
        Destination::PostMessage { channel, .. }
        | Destination::PostEphemeral { channel, .. }
        | Destination::UpdateMessage { channel, .. } => channel.to_string(),
        Destination::ResponseUrl { .. }
        | Destination::DirectMessage { .. }
        | Destination::OpenView { .. }
        | Destination::UpdateView { .. }
        | Destination::PublishView { .. } => format!("lane:{lane}"),
    }
}
