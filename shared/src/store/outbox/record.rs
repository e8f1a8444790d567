//! Records of send outcomes in batches, and release of lanes of ended workers.

use crate::store::{Store, StoreError, replace_nul};
use crate::{domain::ConnectionId, stream::Lane};
use sqlx::Row;
use std::time::Duration;

/// Outcome of a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendOutcome {
    /// Sent.
    Sent,
    /// Not sent. Another attempt follows after this time.
    Later(Duration, String),
    /// May have been sent. Reconciled, and perhaps resent, after this time.
    Ambiguous(Duration, String),
    /// Not attempted. Another attempt follows after this time. Does not count as a use of a
    /// `response_url`. An ambiguity stays.
    Untried(Duration, String),
    /// Can never be sent.
    Failed(String),
}

/// Ambiguity that an attempt left.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendAmbiguity {
    /// Still ambiguous: Slack was not asked, or did not answer.
    pub open: bool,
    /// Resent although Slack could not be asked. Counted.
    pub resent: bool,
}

/// Send with its outcome.
#[derive(Debug, Clone)]
pub struct SendRecord {
    /// Connection.
    pub connection: ConnectionId,
    /// Lane.
    pub lane: Lane,
    /// Worker row.
    pub worker: String,
    /// Number of the turn. Worker, turn and attempt are the fence of the record.
    pub turn: i64,
    /// Number of the attempt.
    pub attempts: i32,
    /// Outcome.
    pub outcome: SendOutcome,
    /// Remaining ambiguity.
    pub ambiguity: SendAmbiguity,
    /// True if the attempt panicked.
    pub crashed: bool,
}

impl SendRecord {
    fn columns(&self) -> (&'static str, Duration, &str, bool, i32) {
        const NOW: Duration = Duration::ZERO;
        let open = self.ambiguity.open;
        match &self.outcome {
            SendOutcome::Sent => ("sent", NOW, "", false, 1),
            SendOutcome::Failed(error) => ("failed", NOW, error, false, 1),
            SendOutcome::Later(after, error) => ("later", *after, error, open, 1),
            SendOutcome::Ambiguous(after, error) => ("later", *after, error, true, 1),
            SendOutcome::Untried(after, error) => ("later", *after, error, open, 0),
        }
    }
}

impl Store {
    /// Records outcomes of sends, except for lanes that were freed meanwhile. Idempotent.
    pub async fn record_send_results(&self, records: &[SendRecord]) -> Result<(), StoreError> {
        let columns = || records.iter().map(SendRecord::columns);
        sqlx::query(
            "-- outbox.record
             with u as (
                 select u.*, u.state <> 'later' as over
                   from unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::integer[],
                               $6::text[], $7::float8[], $8::text[], $9::boolean[], $10::integer[],
                               $11::integer[], $12::boolean[])
                        as u (connection_id, lane, worker, turn, attempts, state, after, error,
                              ambiguous, tried, resent, crashed)),
             fenced as (
                 select u.*, l.head, l.channel_key, l.resend_count + u.resent as resends
                   from (select * from u order by connection_id, lane) u, lateral (
                       -- Prevents the index by worker, which has entries of all its earlier lanes.
                       select l.head, l.channel_key, l.resend_count from outbox_lanes l
                        where l.lane = u.lane and l.connection_id = u.connection_id
                          and l.worker is not distinct from u.worker and l.turn = u.turn
                          and l.attempts = u.attempts for update) l),
             lanes as (
                 update outbox_lanes l
                    set head = l.head + f.over::integer, worker = null, sending_until = null,
                        turn = case when f.over then nextval('outbox_turns') else l.turn end,
                        -- Never lowered for the same message, as a part of the fence.
                        attempts = case when f.over then 0 else l.attempts end,
                        crashes = case when f.over then 0 else l.crashes + f.crashed::integer end,
                        ambiguous = not f.over and f.ambiguous,
                        resend_count = case when f.over then 0 else f.resends end,
                        last_error = f.error,
                        -- The claim corrects a next message that is not visible here.
                        channel_key = case when f.over then coalesce((
                            select o.channel_key from outbox o
                             where o.connection_id = l.connection_id and o.lane = l.lane
                               and o.position = l.head + 1),
                            l.channel_key) else l.channel_key end,
                        next_at = case when not f.over then now() + make_interval(secs => f.after)
                                       when l.head + 1 > l.tail then 'infinity' else now() end
                   from fenced f where l.lane = f.lane and l.connection_id = f.connection_id
                 returning l.connection_id, l.lane, l.channel_key, l.next_at, f.over,
                           f.channel_key as ended_key),
             gone as (
                 delete from outbox o using fenced f
                  where f.over and o.connection_id = f.connection_id and o.lane = f.lane
                    and o.position = f.head
                 returning o.*, f.state, f.error, f.attempts, f.resends),
             logged as (
                 insert into outbox_log (slot, outbox_id, connection_id, lane, channel_key, method,
                                         dedup_key, attempts, resend_count, created_at)
                 select extract(epoch from now())::bigint / 86400 % 32, id, connection_id, lane,
                        channel_key, method, dedup_key, attempts, resends, created_at
                   from gone where state = 'sent'),
             known as (
                 insert into known_channels (connection_id, channel_id)
                 select distinct connection_id, channel_key from gone
                  where state = 'sent' and method = 'chat.postMessage'
                    and channel_key not like 'lane:%'
                  order by 1, 2
                 on conflict do nothing),
             failed as (
                 insert into outbox_failures (id, connection_id, lane, partition, channel_key,
                                              method, dedup_key, request, error, attempts,
                                              resend_count, created_at)
                 select id, connection_id, lane, partition, channel_key, method, dedup_key, request,
                        error, attempts, resends, created_at
                   from gone where state = 'failed' on conflict do nothing),
             unused as (
                 update response_url_uses r set uses = r.uses - 1
                   from fenced f join outbox o on o.connection_id = f.connection_id
                    and o.lane = f.lane
                                              and o.position = f.head
                  where f.tried = 0 and o.method = 'response_url' and r.dedup_key = o.dedup_key),
             changed as (
                 select connection_id, channel_key, sum(over) as over, min(due) as due
                   from (select connection_id, ended_key as channel_key, over::integer as over,
                                'infinity'::timestamptz as due from lanes
                         union all
                         select connection_id, channel_key, 0, next_at from lanes) l
                  group by 1, 2),
             locked as (
                 select c.connection_id, c.channel_key, changed.over, changed.due
                   from outbox_channels c join changed using (connection_id, channel_key)
                  order by 1, 2 for update of c)
             update outbox_channels c
                set pending = c.pending - l.over,
                    next_at = case when c.pending <= l.over and l.due = 'infinity' then 'infinity'
                                   else greatest(least(c.next_at, l.due), c.paced_until) end
               from locked l where c.connection_id = l.connection_id
                and c.channel_key = l.channel_key",
        )
        .bind(records.iter().map(|r| r.connection.to_string()).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.lane.to_bits()).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.worker.as_str()).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.turn).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.attempts).collect::<Vec<_>>())
        .bind(columns().map(|(state, ..)| state).collect::<Vec<_>>())
        .bind(columns().map(|(_, after, ..)| after.as_secs_f64()).collect::<Vec<_>>())
        .bind(columns().map(|(_, _, error, ..)| replace_nul(error)).collect::<Vec<_>>())
        .bind(columns().map(|(.., ambiguous, _)| ambiguous).collect::<Vec<_>>())
        .bind(columns().map(|(.., tried)| tried).collect::<Vec<_>>())
        .bind(records.iter().map(|r| i32::from(r.ambiguity.resent)).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.crashed).collect::<Vec<_>>())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Frees lanes of a worker, except for `keep`, at most `limit`. Their messages may have been
    /// sent. Returns their number.
    pub async fn release_outbox_lanes(
        &self,
        worker: &str,
        keep: Option<&[(ConnectionId, Lane)]>,
        limit: i64,
    ) -> Result<u64, StoreError> {
        let died = i32::from(keep.is_none());
        let keep = keep.unwrap_or_default();
        let row = sqlx::query(
            "-- outbox.release
             with orphans as (
                 select connection_id, lane from outbox_lanes
                  where worker = $1 and (connection_id, lane) not in (
                        select * from unnest($2::text[], $3::bigint[]))
                  order by connection_id, lane limit $4 for update skip locked),
             freed as (
                 update outbox_lanes l
                    set worker = null, crashes = l.crashes + $5::integer,
                        last_error = case $5::integer when 1 then 'the worker ended'
                            else l.last_error end,
                        ambiguous = true,
                        -- The call may still be running.
                        next_at = greatest(now(), l.sending_until), sending_until = null
                   from orphans o where l.connection_id = o.connection_id and l.lane = o.lane
                 returning l.connection_id, l.channel_key, l.next_at),
             due as (
                 select c.connection_id, c.channel_key, f.due
                   from outbox_channels c join (
                       select connection_id, channel_key, min(next_at) as due from freed
                        group by 1, 2) f
                        using (connection_id, channel_key)
                  order by 1, 2 for update of c),
             channels as (
                 update outbox_channels c
                    set next_at = least(c.next_at, greatest(due.due, c.paced_until)) from due
                  where c.connection_id = due.connection_id and c.channel_key = due.channel_key)
             select count(*) as freed from freed",
        )
        .bind(worker)
        .bind(keep.iter().map(|(connection, _)| connection.to_string()).collect::<Vec<_>>())
        .bind(keep.iter().map(|(_, lane)| lane.to_bits()).collect::<Vec<_>>())
        .bind(limit)
        .bind(died)
        .fetch_one(&self.pool)
        .await?;
        Ok(u64::try_from(row.try_get::<i64, _>("freed")?).unwrap_or_default())
    }

    /// Records in the binding of a conversation that Slack rejects messages to it.
    pub async fn record_channel_rejection(
        &self,
        connection: ConnectionId,
        channel: &str,
        why: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- outbox.refused_channel
             update channel_bindings set refused_at = now(), last_send_error = $3
              where connection_id = $1 and channel_id = $2",
        )
        .bind(connection.to_string())
        .bind(channel)
        .bind(why)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
