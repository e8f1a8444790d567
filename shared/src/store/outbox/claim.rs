//! Claim of messages to Slack: round robin between connections, paced per channel, within Slack's
//! rate limits per method.
//!
//! A claim visits connections with due channels by a loose index scan, takes from each due channel
//! the lane that became due first, and moves the channel's time in the same statement. A channel is
//! locked only in the version of the claim's snapshot (`xmin`): enqueueing and ending write its
//! channel afterwards, so that an unseen lane makes the channel due again. The lane is marked
//! before the call, with the time until which the call may last: a message that is still marked
//! after that time may have been sent. Rows that another worker has locked are skipped.

use super::{
    OutboxMessage, UnreadableMessage,
    rate_limits::{interval, interval_over},
};
use crate::store::{Store, StoreError};
use crate::stream::Partition;
use sqlx::Row;
use std::time::Duration;

/// Maximum connections per claim.
const CONNECTIONS_MAX: i32 = 256;
/// Maximum channels of a connection per claim.
const CHANNELS_MAX: i64 = 16;

/// Result of a claim.
#[derive(Debug, Default)]
pub struct ClaimedMessages {
    /// Messages to send.
    pub messages: Vec<OutboxMessage>,
    /// Unreadable messages, which are marked as claimed.
    pub unreadable: Vec<UnreadableMessage>,
    /// Time until a visited channel is due.
    pub next_due: Option<Duration>,
    /// Last visited connection, if others follow.
    pub more: Option<ClaimPosition>,
    /// Number of lanes without their first message. They wait without delaying others.
    pub missing: usize,
}

/// Position of a claim among partitions and connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPosition {
    partition: i16,
    connection: String,
}

impl Store {
    /// Claims due messages of the partitions, at most `limit`, and marks them for `send_timeout`.
    ///
    /// `min_interval` is the minimum time between two messages posted to one channel. Connections
    /// are visited by partition and id, starting after `after`. The next claim starts after `more`
    /// of this one.
    pub async fn claim_outbox_messages(
        &self,
        worker: &str,
        partitions: &[Partition],
        after: Option<&ClaimPosition>,
        limit: i64,
        send_timeout: Duration,
        min_interval: Duration,
    ) -> Result<ClaimedMessages, StoreError> {
        let rows = sqlx::query(concat!(
            "-- outbox.claim
             with recursive me as (
                 select from workers where id = $1 and alive_until > clock_timestamp()
                    for key share),
             queues as (
                 select $6::smallint as partition, $7::text as connection_id, 0 as n
                 union all
                 select f.partition, f.connection_id, q.n + 1
                   from queues q, lateral (
                       (select c.partition, c.connection_id from outbox_channels c
                         where c.partition = q.partition and q.partition = any ($2::smallint[])
                           and c.connection_id > q.connection_id
                           and c.next_at < 'infinity'
                         order by c.connection_id limit 1)
                       union all
                       (select c.* from unnest($2::smallint[]) p (partition), lateral (
                            select c.partition, c.connection_id from outbox_channels c
                             where c.partition = p.partition and c.next_at < 'infinity'
                             order by c.connection_id limit 1) c
                         where p.partition > q.partition)
                       limit 1) f
                  where q.n < $8),
             visited as (
                 select q.*, coalesce(c.status = 'revoked', true) as ended,
                        coalesce(c.status = 'pending' and c.bot_token is null, false) as no_token
                   from queues q left join connections c on c.id = q.connection_id
                  where q.n > 0 and c.sending_paused_at is null
                    and c.status is distinct from 'stopped' and exists (select from me)),
             due as (
                 select v.n, v.ended, v.no_token, c.*,
                        row_number() over (partition by v.n order by c.next_at) as nth
                   from visited v, lateral (
                       select c.connection_id, c.channel_key, c.next_at, c.xmin as version
                         from outbox_channels c
                        -- Row comparisons in the order of the index: Postgres then reads due
                        -- channels from the index instead of sorting all of a connection.
                        where (c.partition, c.connection_id, c.next_at)
                              >= (v.partition, v.connection_id, '-infinity'::timestamptz)
                          and (c.partition, c.connection_id, c.next_at)
                              <= (v.partition, v.connection_id, now())
                          and c.next_at < 'infinity'
                        order by c.partition, c.connection_id, c.next_at limit $9) c),
             chosen as (select * from due order by nth, n limit $3::bigint),
             locked as (
                 select c.connection_id, c.channel_key, c.pending, d.ended, d.no_token
                   from chosen d join outbox_channels c
                        on c.connection_id = d.connection_id and c.channel_key = d.channel_key
                       and c.xmin = d.version
                    for update of c skip locked),
             heads as (
                 select k.connection_id, k.channel_key, k.ended, k.no_token, l.lane, l.turn,
                        o.position, o.method, o.dedup_key, o.channel_key as own_key, o.created_at,
                        l.lane is not null and o.position is null as missing
                   from locked k
                   left join lateral (
                       select l.lane, l.head, l.turn from outbox_lanes l
                        where l.connection_id = k.connection_id and l.channel_key = k.channel_key
                          and l.next_at <= now() and l.next_at < 'infinity'
                        order by l.turn limit 1 for update skip locked) l on true
                   left join outbox o on o.connection_id = k.connection_id and o.lane = l.lane
                    and o.position = l.head),
             limits as (
                 select h.connection_id, h.method, h.turn, l.gap,
                        greatest(l.blocked_until, l.next_at) as free_at,
                        row_number() over (partition by h.connection_id, h.method
                                           order by h.turn) as rank
                   from heads h join (select l.*, ",
            interval!(),
            " as gap from slack_rate_limits l) l
                     on l.connection_id = h.connection_id and l.method = h.method
                    and (l.blocked_until > now() or l.gap >= ",
            interval_over!(),
            ")
                  where not h.ended and h.own_key = h.channel_key),
             free as (
                 select l.connection_id, l.method, d.turn, d.gap
                   from limits d join slack_rate_limits l using (connection_id, method)
                  where d.rank = 1 and l.blocked_until <= now() and l.next_at <= now()
                    for update of l skip locked),
             turns as (
                 update slack_rate_limits l set next_at = now() + make_interval(secs => f.gap)
                   from free f where l.connection_id = f.connection_id and l.method = f.method
                 returning f.turn),
             verdicts as (
                 select h.*, case
                          when h.lane is null then 'none'
                          when h.missing then 'missing'
                          when h.own_key <> h.channel_key then 'misplaced'
                          when h.no_token and h.method <> 'response_url'
                              and h.created_at > now() - interval '24 hours' then 'waits'
                          when d.turn is not null and h.turn not in (select turn from turns)
                              then 'limited'
                          else 'take' end as verdict,
                        greatest(d.free_at, now()) +
                        make_interval(secs => d.gap * (d.rank - 1)) as free_at
                   from heads h left join limits d on d.connection_id = h.connection_id
                    and d.turn = h.turn),
             strays as (
                 select c.connection_id, c.channel_key,
                        greatest(now(), c.paced_until) as next_at, v.lane
                   from verdicts v join outbox_channels c on c.connection_id = v.connection_id
                    and c.channel_key = v.own_key
                  where v.verdict = 'misplaced' for update of c skip locked),
             lanes as (
                 update outbox_lanes l
                    set worker = case when verdict = 'take' then $1 end,
                        attempts = l.attempts + (verdict = 'take')::int,
                        sending_until = case when verdict = 'take'
                            then now() + make_interval(secs => $4::float8) end,
                        next_at = case verdict when 'take' then 'infinity'
                                  when 'missing' then now() + interval '10 s' else l.next_at end,
                        channel_key = coalesce(s.channel_key, l.channel_key)
                   from verdicts v left join strays s on s.connection_id = v.connection_id
                    and s.lane = v.lane
                  where l.lane = v.lane and l.connection_id = v.connection_id
                    and v.verdict in ('take', 'missing', 'misplaced')
                 returning l.connection_id, l.lane, v.position, v.verdict, l.turn, l.attempts,
                           l.crashes, l.ambiguous),
             moves as (
                 select connection_id, channel_key, min(next_at) as next_at,
                        max(paced_until) as paced_until
                   from (select k.connection_id, k.channel_key,
                                case v.verdict
                                  when 'take' then case when exists (
                                      select from outbox_lanes l
                                       where l.connection_id = k.connection_id
                                         and l.channel_key = k.channel_key
                                         and l.next_at < 'infinity' and l.lane <> v.lane)
                                      then now() else now() + interval '30 s' end
                                  when 'limited' then v.free_at
                                  when 'waits' then now() + interval '10 s'
                                  when 'missing' then now() when 'misplaced' then now()
                                  else coalesce(
                                      (select greatest(now() + interval '50 ms',
                                                       least(now() + interval '30 s',
                                                           min(l.next_at)))
                                         from outbox_lanes l
                                        where l.connection_id = k.connection_id
                                          and l.channel_key = k.channel_key
                                          and l.next_at < 'infinity' having count(*) > 0),
                                      case when k.pending = 0 then 'infinity'
                                           else now() + interval '30 s' end)
                                end as next_at, p.paced_until
                           from locked k join verdicts v using (connection_id, channel_key),
                                lateral (select now() + case
                                             when v.verdict = 'take' and not v.ended
                                                  and v.method = 'chat.postMessage'
                                             then make_interval(secs => $5::float8)
                                             else interval '0' end as paced_until) p
                          union all
                          select connection_id, channel_key, next_at, next_at from strays) m
                  group by 1, 2),
             channels as (
                 update outbox_channels c set next_at = greatest(m.next_at, m.paced_until),
                        paced_until = greatest(c.paced_until, m.paced_until)
                   from moves m where c.connection_id = m.connection_id
                    and c.channel_key = m.channel_key
                 returning c.next_at),
             used as (
                 insert into response_url_uses as u (dedup_key, connection_id, uses)
                 select v.dedup_key, v.connection_id, 1 from verdicts v where v.verdict = 'take'
                    and v.method = 'response_url' order by 1
                 on conflict (dedup_key) do update set uses = u.uses + 1 returning dedup_key, uses),
             summary as (
                 select case when (select count(*) from chosen
                                    where nth = 1) < (select count(*) from due where nth = 1)
                             then (select max(n) from chosen where nth = 1)
                             when (select max(n) from queues) = $8 then $8 end as resume,
                        extract(epoch from least(
                            (select min(next_at) from channels),
                            (select min(f.next_at) from visited v, lateral (
                                 select c.next_at from outbox_channels c
                                  where (c.partition, c.connection_id, c.next_at)
                                        > (v.partition, v.connection_id, now())
                                    and (c.partition, c.connection_id)
                                        <= (v.partition, v.connection_id)
                                    and c.next_at < 'infinity'
                                  order by c.partition, c.connection_id, c.next_at limit 1) f),
                            case when (select count(*) from locked) < (select count(*) from chosen)
                                 then now() + interval '20 ms' end)
                          - now())::float8 as next_due)
             select s.next_due, q.partition as after_partition, q.connection_id as after_connection,
                    t.verdict, t.connection_id, t.lane, t.turn, t.attempts, t.crashes, t.ambiguous,
                    o.id, o.dedup_key, o.request, coalesce(r.uses, 1) - 1 as uses,
                    extract(epoch from o.created_at)::float8 as written_at,
                    extract(epoch from now() - o.created_at - coalesce((
                        select sum(coalesce(ended_at, now()) - greatest(started_at, o.created_at))
                          from pauses p
                         where p.connection_id = t.connection_id
                           and coalesce(ended_at, now()) > o.created_at), '0'))::float8 as age
               from summary s
               left join queues q on q.n = s.resume
               left join lanes t on t.verdict in ('take', 'missing')
               left join outbox o on o.connection_id = t.connection_id and o.lane = t.lane
                and o.position = t.position
               left join used r on r.dedup_key = o.dedup_key
              order by t.turn"
        ))
        .bind(worker)
        .bind(partitions.iter().map(|p| p.number() as i16).collect::<Vec<_>>())
        .bind(limit)
        .bind(send_timeout.as_secs_f64())
        .bind(min_interval.as_secs_f64())
        .bind(after.map_or(-1, |after| after.partition))
        .bind(after.map_or("", |after| &after.connection))
        .bind(CONNECTIONS_MAX)
        .bind(CHANNELS_MAX)
        .fetch_all(&self.pool)
        .await?;
        let mut claimed = ClaimedMessages::default();
        for row in &rows {
            if let Some(next_due) = row.try_get::<Option<f64>, _>("next_due")? {
                claimed.next_due = Some(Duration::from_secs_f64(next_due.max(0.0)));
            }
            if let Some(partition) = row.try_get("after_partition")? {
                let connection = row.try_get("after_connection")?;
                claimed.more = Some(ClaimPosition { partition, connection });
            }
            match row.try_get::<Option<&str>, _>("verdict")? {
                None => {}
                Some("missing") => claimed.missing += 1,
                Some(_) => match self.outbox_message(row, worker)? {
                    Ok(message) => claimed.messages.push(message),
                    Err(unreadable) => claimed.unreadable.push(unreadable),
                },
            }
        }
        Ok(claimed)
    }
}
