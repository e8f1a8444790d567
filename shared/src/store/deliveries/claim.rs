//! Claim of due lanes: fair between queues, within the free slots of each agent.
//!
//! A queue is (partition, priority, agent, connection). A claim visits a bounded number of queues
//! by a loose index scan that starts after the last visited one, joins each with its agent and
//! connection, and then reads due lanes. A queue that is paused, stopped or behind an open circuit
//! breaker thus costs one visit, not one per lane. Rows of lanes and slots that another worker has
//! locked are skipped, so that a claim never waits.

use super::{ClaimedDelivery, claimed_delivery::claimed_delivery};
use crate::store::{GATEWAY_ORG, Priority, Store, StoreError, partition_of};
use crate::stream::Partition;
use sqlx::{Row, postgres::PgRow};

/// Maximum queues per claim.
const QUEUES_MAX: i64 = 64;

/// Arguments of a claim.
#[derive(Debug)]
pub struct ClaimRequest<'a> {
    /// Worker row for the claimed deliveries.
    pub worker: &'a str,
    /// Partitions, in the order of their visit.
    pub partitions: &'a [Partition],
    /// Position after which the visit of the first partition starts.
    pub after: Option<QueueKey>,
    /// Priority of the deliveries.
    pub priority: Priority,
    /// Maximum deliveries.
    pub limit: i64,
    /// Maximum deliveries for the agents of these organizations. Queues of one with 0 are skipped.
    pub organizations: &'a [(String, usize)],
    /// Maximum deliveries for the agents of each other organization.
    pub other_organizations: usize,
}

/// Queue within its partition and priority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the columns' names
pub struct QueueKey {
    pub org: String,
    pub agent: String,
    pub connection: String,
}

/// Result of a claim.
#[derive(Debug, Default)]
pub struct ClaimedDeliveries {
    /// Claimed deliveries.
    pub deliveries: Vec<ClaimedDelivery>,
    /// Start of the next claim. `None` if all queues were visited.
    pub last_visited: Option<(Partition, QueueKey)>,
    /// True if a visited agent has no free slot left and another worker holds one.
    pub is_contended: bool,
}

impl Store {
    /// Claims due deliveries.
    pub async fn claim_deliveries(
        &self,
        request: &ClaimRequest<'_>,
    ) -> Result<ClaimedDeliveries, StoreError> {
        let after = request.after.clone().unwrap_or_default();
        let names: Vec<&str> =
            request.organizations.iter().map(|(name, _)| name.as_str()).collect();
        let full = request.organizations.iter().filter(|(_, room)| *room == 0);
        let full: Vec<&str> = full.map(|(name, _)| name.as_str()).collect();
        let rows = sqlx::query(
            "-- deliveries.claim
             with me as (
                 select id from workers where id = $1 and alive_until > clock_timestamp()
                    for key share),
             rooms as materialized (
                 select * from unnest($10::text[], $11::bigint[]) as r (org_id, room)),
             visited as materialized (
                 select p.ord, p.partition, q.*, q.next_at <= now() as due
                   from unnest($2::smallint[]) with ordinality p (partition, ord), me, lateral (
                     with recursive q as (
                         (select l.org_id, l.agent_id, l.connection_id, l.next_at
                            from delivery_lanes l
                           where l.partition = p.partition and l.priority = $6
                             and l.next_at < 'infinity'
                             and (l.org_id, l.agent_id, l.connection_id)
                                 > (case when p.ord = 1 then $3 else '' end, case when p.ord = 1
                                         then $4 else '' end,
                                    case when p.ord = 1 then $5 else '' end)
                           order by l.org_id, l.agent_id, l.connection_id, l.next_at limit 1)
                         union all
                         select n.* from q, lateral (
                             (select l.org_id, l.agent_id, l.connection_id, l.next_at
                                from delivery_lanes l
                               where l.partition = p.partition and l.priority = $6
                                 and l.next_at < 'infinity' and q.org_id <> all ($13::text[])
                                 and (l.org_id, l.agent_id, l.connection_id)
                                     > (q.org_id, q.agent_id, q.connection_id)
                               order by l.org_id, l.agent_id, l.connection_id, l.next_at limit 1)
                             union all
                             -- An organization without room costs one visit, not one per queue.
                             (select l.org_id, l.agent_id, l.connection_id, l.next_at
                                from delivery_lanes l
                               where l.partition = p.partition and l.priority = $6
                                 and l.next_at < 'infinity' and q.org_id = any ($13::text[])
                                 and l.org_id > q.org_id
                               order by l.org_id, l.agent_id, l.connection_id, l.next_at
                               limit 1)) n)
                     select * from q) q
                  limit $8),
             agents_of as (
                 select v.org_id, v.agent_id, count(distinct v.connection_id) as waiting,
                        max(a.max_concurrent) as max_concurrent,
                        max(coalesce(r.room, $12)) as room,
                        bool_or(h.agent_id is not null) as open
                   from visited v left join rooms r on r.org_id = v.org_id
                   left join lateral (
                       -- A lookup by key, as of connections: a plan of small tables may scan them.
                       select * from agents a
                        where a.org_id = v.org_id and a.id = v.agent_id limit 1) a on true
                   left join agent_health h on h.org_id = v.org_id and h.agent_id = v.agent_id
                   join lateral (
                       select status from connections c where c.id = v.connection_id limit 1) c
                     on c.status in ('pending', 'active', 'error')
                  where v.due and ((a.id is not null and a.paused_at is null) or v.org_id = $9)
                    and coalesce(r.room, $12) > 0
                  group by 1, 2),
             probes as (
                 update agent_health h
                    set probe_at = now() + least(interval '60 s',
                                                 interval '1 s' * power(2, least(h.probes, 6))),
                        probes = h.probes + 1
                  where h.probe_at <= now() and (h.org_id, h.agent_id) in (
                            select org_id, agent_id from agent_health
                             where (org_id, agent_id) in (select org_id, agent_id from agents_of
                                                           where open) and probe_at <= now()
                               for update skip locked)
                 returning h.org_id, h.agent_id),
             slot as materialized (
                 select s.org_id, s.agent_id, s.connection_id, s.lane, s.worker
                   from agents_of a, lateral (
                       select * from agent_slots s
                        where s.org_id = a.org_id and s.agent_id = a.agent_id
                          and s.n <= coalesce(a.max_concurrent, s.n)
                          and (s.n > 0 or $6 = 0) offset 0) s),
             vacant as (
                 select org_id, agent_id, count(*) filter (where lane is null) as free
                   from slot group by 1, 2),
             eligible as (
                 select v.*, a.open, a.room, f.free, random() as luck,
                        case when a.open then 1
                             -- While other connections of the agent wait, one gets at most a
                             -- quarter of its slots, or an even share.
                             when a.waiting > 1 then
                                 greatest(1, coalesce(a.max_concurrent, 64) / least(4, a.waiting))
                                 - (select count(*) from slot s
                                     where s.org_id = v.org_id and s.agent_id = v.agent_id
                                       and s.connection_id = v.connection_id)
                             else f.free end as share
                   from visited v join agents_of a using (org_id, agent_id)
                   join vacant f using (org_id, agent_id)
                   join lateral (
                       select status from connections c where c.id = v.connection_id limit 1) c
                     on true
                  where v.due and f.free > 0 and c.status in ('pending', 'active', 'error')
                    and (not a.open
                         or exists (select from probes p where p.org_id = v.org_id
                                       and p.agent_id = v.agent_id))),
             heads as (
                 select e.*, l.lane, l.head, row_number() over (
                            partition by e.partition, e.org_id, e.agent_id, e.connection_id
                            order by l.next_at) as turn
                   from eligible e, lateral (
                       -- Row comparisons in the order of the index: Postgres then reads due lanes
                       -- from the index instead of sorting all lanes of a queue.
                       select lane, head, next_at from delivery_lanes l
                        where (l.partition, l.priority, l.org_id, l.agent_id, l.connection_id,
                               l.next_at)
                              >= (e.partition, $6, e.org_id, e.agent_id, e.connection_id,
                                  '-infinity'::timestamptz)
                          and (l.partition, l.priority, l.org_id, l.agent_id, l.connection_id,
                               l.next_at)
                              <= (e.partition, $6, e.org_id, e.agent_id, e.connection_id, now())
                          and l.next_at < 'infinity'
                        order by l.partition, l.priority, l.org_id, l.agent_id, l.connection_id,
                              l.next_at
                        limit greatest(0, least(e.share, e.free, e.room, $7))) l),
             ranked as (
                 select h.*, row_number() over (partition by org_id, agent_id
                                                order by turn, luck) as nth
                   from (select h.*, row_number() over (partition by org_id, agent_id, connection_id
                                                        order by turn, luck)
                                    as of_connection from heads h) h
                  where of_connection <= share),
             fitting as (
                 select * from (
                     select r.*, row_number() over (partition by org_id order by turn, luck)
                                 as of_organization
                       from ranked r where nth <= free and (not open or nth = 1)) r
                  where of_organization <= room order by turn, luck limit $7),
             chosen as materialized (
                 select f.* from fitting f, lateral (
                     select from delivery_lanes l
                      where l.lane = f.lane and l.connection_id = f.connection_id
                        and l.next_at <= now()
                        and l.worker is null and l.priority = $6
                        -- Prevents the index by agent, which a plan of the empty table may prefer.
                        and l.org_id is not distinct from f.org_id
                        and l.agent_id is not distinct from f.agent_id
                        for update skip locked) l),
             slots as (
                 select w.org_id, w.agent_id, s.n,
                        row_number() over (partition by w.org_id, w.agent_id
                                           order by s.n desc) as nth
                   from (select org_id, agent_id, count(*) as wanted from chosen group by 1, 2) w,
                        lateral (
                       select n from agent_slots s
                        where s.org_id = w.org_id and s.agent_id = w.agent_id and s.lane is null
                          and s.n <= coalesce((select max_concurrent from agents a
                                                where a.org_id = w.org_id
                                                  and a.id = w.agent_id), s.n)
                          and (s.n > 0 or $6 = 0)
                        order by s.n desc limit w.wanted for update skip locked) s),
             granted as (
                 select c.*, s.n
                   from (select *, row_number() over (partition by org_id, agent_id
                                                      order by turn, luck) as place from chosen) c
                   join slots s on s.org_id = c.org_id and s.agent_id = c.agent_id
                    and s.nth = c.place),
             held as (
                 update agent_slots s set connection_id = g.connection_id, lane = g.lane,
                        worker = $1 from granted g
                  where s.org_id = g.org_id and s.agent_id = g.agent_id and s.n = g.n),
             taken as (
                 update delivery_lanes l
                    set worker = $1, claim = nextval('delivery_claims'), attempts = l.attempts + 1,
                        merged = case when l.attempts = 0 then 1 else l.merged end,
                        next_at = 'infinity',
                        first_attempt_at = coalesce(l.first_attempt_at, now())
                   from granted g where l.connection_id = g.connection_id and l.lane = g.lane
                 returning l.connection_id, l.lane, l.head, l.claim, l.attempts, l.faults, l.merged,
                           l.crashes, l.first_attempt_at,
                           l.told_at > now() - interval '1 hour' as told, g.org_id as queue_org,
                           g.agent_id as queue_agent, g.n, g.open as probe)
             select t.*, d.position, d.partition, d.org_id, d.agent_id, d.session, d.kind,
                    d.priority, d.dedup_key, d.size,
                    extract(epoch from now() - f.since - p.after_first)::float8 as age,
                    extract(epoch from now() - d.inserted_at - p.after_enqueue)::float8 as waited,
                    null::smallint as last_partition, null::text as last_org,
                    null::text as last_agent, null::text as last_connection,
                    null::boolean as contended
               from taken t
               left join deliveries d on d.connection_id = t.connection_id and d.lane = t.lane
                and d.position = t.head
                                     and d.part = 0
               cross join lateral (
                   select greatest(t.first_attempt_at, max(r.progressed_at)) as since from runs r
                    where r.connection_id = t.connection_id and r.lane = t.lane
                      and r.position = t.head) f
               left join lateral (
                   select coalesce(sum(coalesce(ended_at, now()) - greatest(started_at, f.since))
                                   filter (where coalesce(ended_at, now()) > f.since),
                                   '0') as after_first,
                          coalesce(sum(coalesce(ended_at, now()) - greatest(started_at,
                              d.inserted_at)), '0') as after_enqueue
                     from pauses
                    where org_id = d.org_id and agent_id = d.agent_id
                      and coalesce(ended_at, now()) > d.inserted_at) p on true
             union all
             select null, null, null, null, null, null, null, null, null, null, null, null, null, null,
                    null, null, null, null, null, null, null, null, null, null, null, partition,
                    org_id, agent_id, connection_id, contended
               from (select exists (
                         select from vacant f
                          where f.free <= (select count(*) from chosen c where c.org_id = f.org_id
                                              and c.agent_id = f.agent_id)
                            and exists (select from slot s where s.org_id = f.org_id
                                           and s.agent_id = f.agent_id and s.worker <> $1)
                     ) as contended) slots_left
               left join (select * from visited order by ord desc, org_id desc, agent_id desc,
                                 connection_id desc limit 1) last
                      on (select count(*) from visited) = $8
              where contended or last.partition is not null",
        )
        .bind(request.worker)
        .bind(request.partitions.iter().map(|p| p.number() as i16).collect::<Vec<_>>())
        .bind(&after.org)
        .bind(&after.agent)
        .bind(&after.connection)
        .bind(request.priority.number())
        .bind(request.limit)
        .bind(QUEUES_MAX)
        .bind(GATEWAY_ORG)
        .bind(&names)
        .bind(request.organizations.iter().map(|(_, room)| *room as i64).collect::<Vec<_>>())
        .bind(request.other_organizations as i64)
        .bind(&full)
        .fetch_all(&self.pool)
        .await?;
        let mut claimed = ClaimedDeliveries::default();
        for row in &rows {
            if let Some(contended) = row.try_get::<Option<bool>, _>("contended")? {
                claimed.is_contended = contended;
                let Some(partition) = row.try_get::<Option<i16>, _>("last_partition")? else {
                    continue;
                };
                let key = QueueKey {
                    org: row.try_get("last_org")?,
                    agent: row.try_get("last_agent")?,
                    connection: row.try_get("last_connection")?,
                };
                claimed.last_visited = Some((partition_of(partition)?, key));
            } else if let Some(delivery) = claimed_delivery(row, request)? {
                claimed.deliveries.push(delivery);
            } else {
                self.correct_lane(row, request.worker).await?;
            }
        }
        Ok(claimed)
    }

    /// Releases a lane whose head has another agent or priority than the lane's row, and corrects
    /// the row.
    async fn correct_lane(&self, row: &PgRow, worker: &str) -> Result<(), StoreError> {
        let (org, agent): (String, String) =
            (row.try_get("queue_org")?, row.try_get("queue_agent")?);
        sqlx::query(
            "-- deliveries.correct_lane
             with head as (
                 select d.* from deliveries d join delivery_lanes l using (connection_id, lane)
                  where connection_id = $1 and lane = $2 and d.position = l.head and d.part = 0),
             freed as (
                 update agent_slots set connection_id = null, lane = null, worker = null
                  where org_id = $4 and agent_id = $5 and n = $6 and lane = $2 and worker = $3)
             update delivery_lanes l
                set worker = null, attempts = l.attempts - 1,
                    first_attempt_at = case when l.attempts <= 1 then null
                        else l.first_attempt_at end,
                    org_id = coalesce(head.org_id, l.org_id),
                    agent_id = coalesce(head.agent_id, l.agent_id),
                    priority = coalesce(head.priority, l.priority),
                    -- A missing head was deleted with its connection, or skipped.
                    head = case when head.lane is null then l.head + 1 else l.head end,
                    next_at = case when head.lane is null and l.head + 1 > l.tail then 'infinity'
                        else now() end
               from (select 1) one left join head on true
              where l.connection_id = $1 and l.lane = $2 and l.worker = $3",
        )
        .bind(row.try_get::<String, _>("connection_id")?)
        .bind(row.try_get::<i64, _>("lane")?)
        .bind(worker)
        .bind(org)
        .bind(agent)
        .bind(row.try_get::<i32, _>("n")?)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
