//! Statements of the commit of intake: a fence, and the inserts that select from it.

use super::{
    CommitOutcome,
    columns::{Columns, Parts},
};
use crate::store::{
    StoreError,
    maintenance::Replay,
    outbox::enqueue_messages,
    partitions::{FencingToken, LastMessage},
};
use sqlx::{PgExecutor, Postgres, Row, postgres::PgArguments, query::Query};
use time::OffsetDateTime;

/// First part of a commit statement. `$1` to `$3` are partition, epoch and generation.
pub(super) enum Fence<'a> {
    /// Moves the cursor.
    Cursor { from: u64, last: &'a LastMessage, messages: usize },
    /// Deletes a redriven dead letter. The cursor stays.
    DeadLetter { id: i64 },
    /// Checks the lease of a replay.
    Replay(&'a Replay),
    /// Expires an undecided approval.
    Expiry { approval: &'a str },
}

pub(super) fn fence_cursor<'q>(
    sql: &'static str,
    token: &FencingToken,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).bind(token.partition.number() as i16).bind(token.epoch).bind(token.generation)
}

/// Fence that moves the cursor.
macro_rules! move_cursor {
    () => {
        "with fence as (
             update partition_cursors
                set cursor = $5, last_sequence = $5, last_key = $6, last_stored_at = $7,
                    messages = messages + $8, read_through = greatest(read_through, $7), claims = 0,
                    suspect_sequence = null, suspect_count = 0
              where partition = $1 and epoch = $2 and generation = $3 and cursor = $4 returning 1)"
    };
}

/// Part of a commit statement: ignored webhooks.
macro_rules! ignored_part {
    () => {
        ",
             ignored as (
                 insert into ignored_webhooks (slot, connection_id, partition, generation, sequence,
                        dedup_key, event_id, channel_id, ts, user_id, reason)
                 select extract(epoch from now())::bigint / 86400 % 8, u.connection_id, $1, $3,
                        u.sequence, u.dedup_key, u.event_id, u.channel_id, u.ts, u.user_id, u.reason
                   from fence, unnest($9::text[], $10::bigint[], $11::text[], $12::text[],
                                      $13::text[], $14::text[],
                        $15::text[], $16::text[])
                        as u (connection_id, sequence, dedup_key, event_id, channel_id, ts, user_id,
                              reason))"
    };
}

/// Part of a commit statement: dedup keys, deliveries and counts of questions.
macro_rules! delivery_part {
    () => {
        ",
             keys as (
                 insert into processed_keys (slot, partition, day, key, generation, sequence,
                                             outcome)
                 select u.day % 8, $1, u.day, u.key, $3, u.sequence, u.outcome
                   from fence, unnest($17::integer[], $18::bytea[], $19::bigint[], $20::smallint[])
                            as u (day, key, sequence, outcome)),
             d as (
                 select u.*, count(*) over (partition by connection_id, lane) as of_lane,
                        row_number() over (partition by connection_id, lane order by n) as nth
                   from fence, unnest($21::text[], $22::bigint[], $23::bigint[], $24::text[],
                                      $25::text[], $26::bigint[],
                        $27::text[], $28::smallint[], $29::text[], $30::integer[], $31::text[],
                        $32::text[], $33::text[], $34::text[], $35::text[], $36::text[],
                        $37::text[], $38::timestamptz[], $39::timestamptz[], $40::bytea[],
                        $41::integer[], $42::boolean[]) with ordinality
                        as u (connection_id, lane, sequence, org_id, agent_id, session, kind,
                              priority, dedup_key, hops, event_id, team_id, channel_id, thread_ts,
                              ts, user_id, traceparent, received_at, stored_at, payload, size,
                              tells, n)),
             lanes as (
                 insert into delivery_lanes as l (connection_id, lane, partition, head, tail,
                                                  org_id, agent_id, priority, next_at, told_at)
                 select connection_id, lane, $1, 1, of_lane, org_id, agent_id, priority, now(),
                        case when tells then now() end
                   from d where nth = 1 order by connection_id, lane
                 on conflict (connection_id, lane) do update
                    set tail = l.tail + excluded.tail, partition = excluded.partition,
                        next_at = case when l.head > l.tail then now() else l.next_at end,
                        told_at = coalesce(excluded.told_at, l.told_at),
                        org_id = case when l.head > l.tail then excluded.org_id else l.org_id end,
                        agent_id = case when l.head > l.tail then excluded.agent_id
                            else l.agent_id end,
                        priority = case when l.head > l.tail then excluded.priority
                            else l.priority end
                 returning connection_id, lane, tail),
             enqueued as (
                 insert into deliveries (connection_id, lane, position, partition, generation,
                        sequence, org_id, agent_id, session, kind, priority, dedup_key, hops,
                        event_id, team_id, channel_id, thread_ts, ts, user_id, traceparent,
                        received_at, stored_at, payload, size, schema, replay)
                 select connection_id, lane, lanes.tail - d.of_lane + d.nth, $1, $3, sequence,
                        org_id, agent_id, session, kind, priority, dedup_key, hops, event_id,
                        team_id, channel_id, thread_ts, ts, user_id, traceparent, received_at,
                        stored_at, payload, size, $43, substring(dedup_key from ':replay:(.*)$')
                   from d join lanes using (connection_id, lane)),
             questions as (
                 insert into user_questions as q (connection_id, user_id, partition, minute, asked,
                                                  told)
                 select u.connection_id, u.user_id, $1, u.minute, u.asked, u.told
                   from fence, unnest($44::text[], $45::text[], $46::integer[], $47::integer[],
                                      $48::boolean[])
                        as u (connection_id, user_id, minute, asked, told)
                  order by 1, 2
                 on conflict (connection_id, user_id, partition) do update
                    set minute = excluded.minute,
                        asked = case when q.minute = excluded.minute then q.asked else 0 end
                                + excluded.asked,
                        told = excluded.told or (q.told and q.minute = excluded.minute),
                        at = case when q.minute = excluded.minute then q.at else now() end
                  where excluded.minute >= q.minute)"
    };
}

/// Part of a commit statement: dead letters, known channels and messages.
macro_rules! rare_part {
    () => {
        concat!(
            ",
             dead as (
                 insert into dead_letters (stage, partition, generation, sequence, subject,
                        connection_id, lane, dedup_key, event_id, channel_id, ts, user_id, reason,
                        last_error, attempts, payload)
                 select 'intake', $1, $3, u.sequence, u.subject, u.connection_id, u.lane,
                        u.dedup_key, u.event_id, u.channel_id, u.ts, u.user_id, u.reason, u.error,
                        0, case when not exists (select from connection_backlog b
                                                  where b.connection_id = u.connection_id
                                                    and b.dead_letters_full)
                                then u.payload end
                   from fence, unnest($49::bigint[], $50::text[], $51::text[], $52::bigint[],
                                      $53::text[], $54::text[],
                        $55::text[], $56::text[], $57::text[], $58::text[], $59::text[],
                        $60::bytea[])
                        as u (sequence, subject, connection_id, lane, dedup_key, event_id,
                              channel_id, ts, user_id, reason, error, payload)),
             known as (
                 insert into known_channels (connection_id, channel_id)
                 select distinct u.connection_id, u.channel_id
                   from fence, unnest($61::text[], $62::text[]) as u (connection_id, channel_id)
                  order by 1, 2 -- as in all statements that insert several
                 on conflict do nothing),
             messages as (
                 -- Delivery lanes are locked before outbox lanes, as by the end of a delivery.
                 select u.* from fence, (select count(*) from lanes) locked,
                        unnest($63::bigint[], $64::text[], $65::bigint[], $66::smallint[],
                               $67::text[], $68::text[], $69::text[], $70::text[])
                        as u (n, connection_id, lane, partition, channel_key, method, dedup_key,
                              request)),
             ",
            enqueue_messages!()
        )
    };
}

/// All parts of a commit statement after its fence.
macro_rules! all_parts {
    () => {
        concat!(
            ignored_part!(),
            delivery_part!(),
            rare_part!(),
            " select count(*) as committed from fence"
        )
    };
}

/// Commits of a cursor. Postgres initializes every part of a statement, even without rows, which
/// takes longer than the rest of a small batch. A batch therefore uses the first statement that has
/// the parts it needs. Each is a prefix of the next, so that parameters have the same numbers.
const COMMIT_CURSOR: &str = concat!(
    "-- intake.commit_cursor\n ",
    move_cursor!(),
    " select count(*) as committed from fence"
);
const COMMIT_IGNORED: &str = concat!(
    "-- intake.commit_ignored\n ",
    move_cursor!(),
    ignored_part!(),
    " select count(*) as committed from fence"
);
const COMMIT_DELIVERIES: &str = concat!(
    "-- intake.commit_deliveries\n ",
    move_cursor!(),
    ignored_part!(),
    delivery_part!(),
    " select count(*) as committed from fence"
);
const COMMIT: &str = concat!("-- intake.commit\n ", move_cursor!(), all_parts!());

/// Returns the statement that moves the cursor and has these parts.
fn statement_of(parts: Parts) -> &'static str {
    match parts {
        Parts::None => COMMIT_CURSOR,
        Parts::Ignored => COMMIT_IGNORED,
        Parts::Deliveries => COMMIT_DELIVERIES,
        Parts::All => COMMIT,
    }
}

/// Statement of a redrive. References the cursor's parameters, because the statements share their
/// numbers.
const REDRIVE: &str = concat!(
    "-- intake.commit_redriven
     with fence as (
         delete from dead_letters d using (
             select partition from partition_cursors where partition = $1 and epoch = $2
                and generation = $3 for share) c
          where d.id = $4 and d.redrive_at is not null
            and $5::bigint is null and $6::text is null and $7::timestamptz is null
            and $8::bigint is null returning 1)",
    all_parts!()
);

const REPLAY: &str = concat!(
    "-- intake.enqueue_replayed
     with fence as (
         select 1 from replays where id = $4 and epoch = $5 and state = 'open'
            and lease_until > clock_timestamp()
            and $2::bigint is not null and $6::text is null and $7::timestamptz is null
            and $8::bigint is null
            for share)",
    all_parts!()
);

const EXPIRE: &str = concat!(
    "-- approvals.expire
     with fence as (
         update approvals set state = 'expired'
          where id = $4 and state = 'open' and expires_at <= now()
            and $2::bigint is not null and $5::bigint is null and $6::text is null
            and $7::timestamptz is null and $8::bigint is null returning 1)",
    all_parts!()
);

pub(super) async fn run_commit(
    executor: impl PgExecutor<'_>,
    token: &FencingToken,
    fence: Fence<'_>,
    columns: &Columns<'_>,
) -> Result<CommitOutcome, StoreError> {
    let parts = columns.parts();
    let query = match &fence {
        Fence::Cursor { from, last, messages } => fence_cursor(statement_of(parts), token)
            .bind(*from as i64)
            .bind(Some(last.sequence as i64))
            .bind(Some(&*last.key))
            .bind(Some(last.stored_at))
            .bind(Some(*messages as i64)),
        Fence::DeadLetter { id } => fence_cursor(REDRIVE, token)
            .bind(*id)
            .bind(None::<i64>)
            .bind(None::<&str>)
            .bind(None::<OffsetDateTime>)
            .bind(None::<i64>),
        Fence::Replay(replay) => fence_cursor(REPLAY, token)
            .bind(&replay.id)
            .bind(replay.epoch)
            .bind(None::<&str>)
            .bind(None::<OffsetDateTime>)
            .bind(None::<i64>),
        Fence::Expiry { approval } => fence_cursor(EXPIRE, token)
            .bind(*approval)
            .bind(None::<i64>)
            .bind(None::<&str>)
            .bind(None::<OffsetDateTime>)
            .bind(None::<i64>),
    };
    let parts = if matches!(fence, Fence::Cursor { .. }) { parts } else { Parts::All };
    commit_outcome(&columns.bind(query, parts).fetch_one(executor).await?)
}

pub(super) fn commit_outcome(row: &sqlx::postgres::PgRow) -> Result<CommitOutcome, StoreError> {
    Ok(match row.try_get::<i64, _>("committed")? {
        0 => CommitOutcome::NotMatched,
        _ => CommitOutcome::Committed,
    })
}
