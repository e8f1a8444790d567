//! Statements of the commit of intake: a fence, and the inserts that select from it.

use super::{CommitOutcome, DecidedWebhook, NewDelivery, ProcessedAs, ProcessedKey};
use crate::codec::envelope::SCHEMA;
use crate::store::{
    StoreError,
    maintenance::Replay,
    outbox::{SealedMessages, enqueue_messages},
    partitions::{FencingToken, LastMessage},
    replace_nul,
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
}

pub(super) fn fence_cursor<'q>(
    sql: &'static str,
    token: &FencingToken,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).bind(token.partition.number() as i16).bind(token.epoch).bind(token.generation)
}

/// Arrays of a commit statement.
#[derive(Default)]
pub(super) struct Columns<'a> {
    pub keys: Keys,
    pub deliveries: Vec<(&'a DecidedWebhook, &'a NewDelivery, Vec<u8>)>,
    pub dead: Vec<(&'a DecidedWebhook, &'static str, String, Vec<u8>)>,
    pub ignored: Vec<(&'a DecidedWebhook, &'static str)>,
    pub messages: SealedMessages,
}

/// Rows of `processed_keys`, by column.
#[derive(Default)]
pub(super) struct Keys {
    days: Vec<i32>,
    keys: Vec<Vec<u8>>,
    sequences: Vec<i64>,
    outcomes: Vec<i16>,
}

impl Keys {
    pub fn push(&mut self, key: ProcessedKey, sequence: u64, processed_as: ProcessedAs) {
        self.days.push(key.day);
        self.keys.push(key.key.to_vec());
        self.sequences.push(sequence as i64);
        self.outcomes.push(processed_as.number());
    }
}

/// Rest of a commit statement after its fence: keys, deliveries, dead letters, ignored webhooks and
/// messages.
macro_rules! commit_rest {
    () => {
        concat!(
            ", keys as (
                 insert into processed_keys (slot, partition, day, key, generation, sequence,
                                             outcome)
                 select u.day % 8, $1, u.day, u.key, $3, u.sequence, u.outcome
                   from fence, unnest($9::integer[], $10::bytea[], $11::bigint[], $12::smallint[])
                            as u (day, key, sequence, outcome)),
             d as (
                 select u.*, count(*) over (partition by connection_id, lane) as of_lane,
                        row_number() over (partition by connection_id, lane order by n) as nth
                   from fence, unnest($13::text[], $14::bigint[], $15::bigint[], $16::text[],
                                      $17::text[], $18::bigint[],
                        $19::text[], $20::smallint[], $21::text[], $22::integer[], $23::text[],
                        $24::text[], $25::text[], $26::text[], $27::text[], $28::text[],
                        $29::text[], $30::timestamptz[], $31::timestamptz[], $32::bytea[],
                        $33::integer[], $63::boolean[]) with ordinality
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
                        stored_at, payload, size, $34, substring(dedup_key from ':replay:(.*)$')
                   from d join lanes using (connection_id, lane)),
             dead as (
                 insert into dead_letters (stage, partition, generation, sequence, subject,
                        connection_id, lane, dedup_key, event_id, channel_id, ts, user_id, reason,
                        last_error, attempts, payload)
                 select 'intake', $1, $3, u.sequence, u.subject, u.connection_id, u.lane,
                        u.dedup_key, u.event_id, u.channel_id, u.ts, u.user_id, u.reason, u.error,
                        0, u.payload
                   from fence, unnest($35::bigint[], $36::text[], $37::text[], $38::bigint[],
                                      $39::text[], $40::text[],
                        $41::text[], $42::text[], $43::text[], $44::text[], $45::text[],
                        $46::bytea[])
                        as u (sequence, subject, connection_id, lane, dedup_key, event_id,
                              channel_id, ts, user_id, reason, error, payload)),
             ignored as (
                 insert into ignored_webhooks (slot, connection_id, partition, generation, sequence,
                        dedup_key, event_id, channel_id, ts, user_id, reason)
                 select extract(epoch from now())::bigint / 86400 % 8, u.connection_id, $1, $3,
                        u.sequence, u.dedup_key, u.event_id, u.channel_id, u.ts, u.user_id, u.reason
                   from fence, unnest($47::text[], $48::bigint[], $49::text[], $50::text[],
                                      $51::text[], $52::text[],
                        $53::text[], $54::text[])
                        as u (connection_id, sequence, dedup_key, event_id, channel_id, ts, user_id,
                              reason)),
             messages as (
                 -- Delivery lanes are locked before outbox lanes, as by the end of a delivery.
                 select u.* from fence, (select count(*) from lanes) locked,
                        unnest($55::bigint[], $56::text[], $57::bigint[], $58::smallint[],
                               $59::text[], $60::text[], $61::text[], $62::text[])
                        as u (n, connection_id, lane, partition, channel_key, method, dedup_key,
                              request)), ",
            enqueue_messages!(),
            " select count(*) as committed from fence"
        )
    };
}

const COMMIT: &str = concat!(
    "-- intake.commit
     with fence as (
         update partition_cursors
            set cursor = $5, last_sequence = $5, last_key = $6, last_stored_at = $7,
                messages = messages + $8, read_through = greatest(read_through, $7), claims = 0,
                suspect_sequence = null, suspect_count = 0
          where partition = $1 and epoch = $2 and generation = $3 and cursor = $4 returning 1)",
    commit_rest!()
);
/// Statement of a redrive. Mentions the cursor's parameters, because the statements share their
/// numbering.
const REDRIVE: &str = concat!(
    "-- intake.commit_redriven
     with fence as (
         delete from dead_letters d using (
             select partition from partition_cursors where partition = $1 and epoch = $2
                and generation = $3 for share) c
          where d.id = $4 and d.redrive_at is not null
            and $5::bigint is null and $6::text is null and $7::timestamptz is null
            and $8::bigint is null returning 1)",
    commit_rest!()
);

const REPLAY: &str = concat!(
    "-- intake.enqueue_replayed
     with fence as (
         select 1 from replays where id = $4 and epoch = $5 and state = 'open'
            and lease_until > clock_timestamp()
            and $2::bigint is not null and $6::text is null and $7::timestamptz is null
            and $8::bigint is null
            for share)",
    commit_rest!()
);

pub(super) async fn run_commit(
    executor: impl PgExecutor<'_>,
    token: &FencingToken,
    fence: Fence<'_>,
    columns: &Columns<'_>,
) -> Result<CommitOutcome, StoreError> {
    let query = match fence {
        Fence::Cursor { from, last, messages } => fence_cursor(COMMIT, token)
            .bind(from as i64)
            .bind(Some(last.sequence as i64))
            .bind(Some(last.key.clone()))
            .bind(Some(last.stored_at))
            .bind(Some(messages as i64)),
        Fence::DeadLetter { id } => fence_cursor(REDRIVE, token)
            .bind(id)
            .bind(None::<i64>)
            .bind(None::<String>)
            .bind(None::<OffsetDateTime>)
            .bind(None::<i64>),
        Fence::Replay(replay) => fence_cursor(REPLAY, token)
            .bind(&replay.id)
            .bind(replay.epoch)
            .bind(None::<String>)
            .bind(None::<OffsetDateTime>)
            .bind(None::<i64>),
    };
    let keys = &columns.keys;
    let query = query.bind(&keys.days).bind(&keys.keys).bind(&keys.sequences).bind(&keys.outcomes);
    let query = bind_deliveries(query, &columns.deliveries);
    let query = bind_dead_letters(query, &columns.dead);
    let query = bind_ignored(query, &columns.ignored);
    let tells = column(&columns.deliveries, |(_, delivery, _)| delivery.tells);
    commit_outcome(&columns.messages.bind(query).bind(tells).fetch_one(executor).await?)
}

pub(super) fn commit_outcome(row: &sqlx::postgres::PgRow) -> Result<CommitOutcome, StoreError> {
    Ok(match row.try_get::<i64, _>("committed")? {
        0 => CommitOutcome::NotMatched,
        _ => CommitOutcome::Committed,
    })
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Returns a column of the rows as an array.
fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}

fn received_at(webhook: &DecidedWebhook) -> OffsetDateTime {
    let ns = i128::from(webhook.envelope.received_at_ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(ns).unwrap_or(webhook.stored_at)
}

fn bind_deliveries<'q>(
    query: Statement<'q>,
    rows: &'q [(&'q DecidedWebhook, &'q NewDelivery, Vec<u8>)],
) -> Statement<'q> {
    query
        .bind(column(rows, |(w, ..)| w.envelope.connection.to_string()))
        .bind(column(rows, |(w, ..)| w.envelope.lane.to_bits()))
        .bind(column(rows, |(w, ..)| w.sequence as i64))
        .bind(column(rows, |(_, d, _)| d.org.as_str()))
        .bind(column(rows, |(_, d, _)| d.agent.as_str()))
        .bind(column(rows, |(_, d, _)| d.session))
        .bind(column(rows, |(w, ..)| w.envelope.kind.as_str()))
        .bind(column(rows, |(_, d, _)| d.priority.number()))
        .bind(column(rows, |(w, ..)| w.envelope.dedupe.as_str()))
        .bind(column(rows, |(_, d, _)| d.hops))
        .bind(column(rows, |(w, ..)| w.ids.event_id.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.team.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.channel.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.thread_ts.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.ts.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.user.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.envelope.traceparent.as_ref().map(|word| word.as_str())))
        .bind(column(rows, |(w, ..)| received_at(w)))
        .bind(column(rows, |(w, ..)| w.stored_at))
        .bind(column(rows, |(.., payload)| payload.as_slice()))
        .bind(column(rows, |(.., payload)| payload.len() as i32))
        .bind(SCHEMA as i16)
}

fn bind_dead_letters<'q>(
    query: Statement<'q>,
    rows: &'q [(&'q DecidedWebhook, &'static str, String, Vec<u8>)],
) -> Statement<'q> {
    query
        .bind(column(rows, |(w, ..)| w.sequence as i64))
        .bind(column(rows, |(w, ..)| w.envelope.subject()))
        .bind(column(rows, |(w, ..)| w.envelope.connection.to_string()))
        .bind(column(rows, |(w, ..)| w.envelope.lane.to_bits()))
        .bind(column(rows, |(w, ..)| w.envelope.dedupe.as_str()))
        .bind(column(rows, |(w, ..)| w.ids.event_id.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.channel.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.ts.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.user.as_deref().map(replace_nul)))
        .bind(column(rows, |(_, reason, ..)| *reason))
        .bind(column(rows, |(_, _, error, _)| error.as_str()))
        .bind(column(rows, |(.., payload)| payload.as_slice()))
}

fn bind_ignored<'q>(
    query: Statement<'q>,
    rows: &'q [(&'q DecidedWebhook, &'static str)],
) -> Statement<'q> {
    query
        .bind(column(rows, |(w, _)| w.envelope.connection.to_string()))
        .bind(column(rows, |(w, _)| w.sequence as i64))
        .bind(column(rows, |(w, _)| w.envelope.dedupe.as_str()))
        .bind(column(rows, |(w, _)| w.ids.event_id.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, _)| w.ids.channel.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, _)| w.ids.ts.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, _)| w.ids.user.as_deref().map(replace_nul)))
        .bind(column(rows, |(_, reason)| *reason))
}
