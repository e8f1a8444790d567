//! Commit of intake: effects, deliveries, messages and the partition's cursor, in one fenced
//! statement.
//!
//! The fence is the update of the partition's cursor row. Every other part of the statement selects
//! from it, so that a worker that lost its partition writes nothing. Dedup keys are inserted
//! without `on conflict`: a copy that was unknown when the batch was prepared fails the statement,
//! and the caller prepares the batch again. A webhook whose changes determine its replies is
//! committed alone: its changes come first, in one transaction with the statement.

use super::{
    super::{
        Store, StoreError,
        maintenance::Replay,
        organizations::consume_link_code,
        outbox::{SealedMessages, enqueue_messages},
        partitions::{FencingToken, LastMessage},
        pool::with_transaction_timeout,
        replace_nul,
    },
    DeadLetter, DecidedWebhook, Decision, Effects, NewDelivery, Priority, ProcessedAs,
    ProcessedKey, SealedPayload, effects,
};
use crate::{
    codec::envelope::{DedupeKey, SCHEMA},
    stream,
};
use sqlx::{PgExecutor, Postgres, Row, postgres::PgArguments, query::Query};
use time::OffsetDateTime;

/// Last webhook of a batch, to which the cursor moves.
pub type LastOfBatch = LastMessage;

/// Batch to commit.
pub struct BatchCommit<'a> {
    /// Right to commit.
    pub token: FencingToken,
    /// Cursor before the batch.
    pub from: u64,
    /// Last webhook of the batch. Its sequence is the new cursor.
    pub last: LastOfBatch,
    /// Webhooks in stream order, with the days of their dedup keys.
    pub webhooks: &'a [(i32, DecidedWebhook)],
}

/// Outcome of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    /// All effects are committed.
    Committed,
    /// The cursor row did not match, and nothing changed. The caller reads the row for the reason.
    NotMatched,
}

/// First part of a commit statement. `$1` to `$3` are partition, epoch and generation.
enum Fence<'a> {
    /// Moves the cursor.
    Cursor { from: u64, last: &'a LastMessage, messages: usize },
    /// Deletes a redriven dead letter. The cursor stays.
    DeadLetter { id: i64 },
    /// Checks the lease of a replay.
    Replay(&'a Replay),
}

impl Store {
    /// Commits a batch. A webhook with changes must be alone in its batch (see
    /// [`Effects::may_share_batch`]).
    pub async fn commit_batch(&self, batch: &BatchCommit<'_>) -> Result<CommitOutcome, StoreError> {
        let BatchCommit { token, from, last, webhooks } = batch;
        let fence = Fence::Cursor { from: *from, last, messages: webhooks.len() };
        self.commit_fenced(token, fence, webhooks).await
    }

    /// Deletes a redriven dead letter and commits its effects.
    pub async fn commit_redriven(
        &self,
        token: &FencingToken,
        dead_letter: i64,
        webhook: &(i32, DecidedWebhook),
    ) -> Result<CommitOutcome, StoreError> {
        let fence = Fence::DeadLetter { id: dead_letter };
        self.commit_fenced(token, fence, std::slice::from_ref(webhook)).await
    }

    /// Enqueues the delivery of a replayed webhook, with its dedup key and lane, without other
    /// effects. Idempotent. Returns false if another worker has the replay.
    pub async fn enqueue_replayed(
        &self,
        replay: &Replay,
        webhook: &DecidedWebhook,
    ) -> Result<bool, StoreError> {
        let Decision::Apply(effects) = &webhook.decision else { return Ok(true) };
        let Some(delivery) = &effects.delivery else { return Ok(true) };
        let partition = webhook.envelope.partition;
        let token = FencingToken { partition, epoch: 0, generation: 1 };
        let delivery =
            NewDelivery { priority: Priority::Background, tells: false, ..delivery.clone() };
        let day = (webhook.stored_at.unix_timestamp() / 86_400) as i32;
        let mut columns = Columns::default();
        let key = ProcessedKey::new(day, &webhook.envelope.dedupe);
        columns.keys.push(key, webhook.sequence, ProcessedAs::Delivery);
        columns.deliveries.push((webhook, &delivery, self.seal_payload(webhook)?));
        match run_commit(&self.pool, &token, Fence::Replay(replay), &columns).await {
            Ok(outcome) => Ok(outcome == CommitOutcome::Committed),
            Err(StoreError::Postgres(sqlx::Error::Database(error)))
                if error.is_unique_violation() =>
            {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    async fn commit_fenced(
        &self,
        token: &FencingToken,
        fence: Fence<'_>,
        webhooks: &[(i32, DecidedWebhook)],
    ) -> Result<CommitOutcome, StoreError> {
        let changes = match webhooks {
            [(_, DecidedWebhook { decision: Decision::Apply(effects), envelope, .. })]
                if !effects.may_share_batch() =>
            {
                Some((effects, &envelope.dedupe))
            }
            _ => None,
        };
        let Some((effects, dedup_key)) = changes else {
            let columns = self.columns(token, &fence, webhooks, &[])?;
            return run_commit(&self.pool, token, fence, &columns).await;
        };
        with_transaction_timeout(async {
            let mut tx = self.pool.begin().await?;
            let replies = apply_changes(&mut tx, effects, dedup_key).await?;
            let columns = self.columns(token, &fence, webhooks, &replies)?;
            let outcome = run_commit(&mut *tx, token, fence, &columns).await?;
            match outcome {
                CommitOutcome::Committed => tx.commit().await?,
                CommitOutcome::NotMatched => tx.rollback().await?,
            }
            Ok(outcome)
        })
        .await
    }

    fn columns<'a>(
        &self,
        token: &FencingToken,
        fence: &Fence<'_>,
        webhooks: &'a [(i32, DecidedWebhook)],
        replies: &[crate::types::Outgoing],
    ) -> Result<Columns<'a>, StoreError> {
        let mut columns = Columns::default();
        // The key of a dead letter was inserted when it was given up.
        let has_key = matches!(fence, Fence::DeadLetter { .. });
        for (day, webhook) in webhooks {
            match &webhook.decision {
                Decision::Ignore { reason, addressed: true } => {
                    columns.ignored.push((webhook, reason.as_str()));
                }
                Decision::Ignore { .. } => {}
                Decision::DeadLetter { reason, error } => {
                    let key = ProcessedKey::new(*day, &webhook.envelope.dedupe);
                    columns.keys.push(key, webhook.sequence, ProcessedAs::DeadLetter);
                    let payload = self.seal_payload(webhook)?;
                    columns.dead.push((webhook, reason, replace_nul(error).into_owned(), payload));
                }
                Decision::Apply(effects) => {
                    if !has_key {
                        let key = ProcessedKey::new(*day, &webhook.envelope.dedupe);
                        columns.keys.push(key, webhook.sequence, effects.processed_as);
                    }
                    self.add_effects(&mut columns, token, *day, webhook, effects, replies)?;
                }
            }
        }
        Ok(columns)
    }

    fn add_effects<'a>(
        &self,
        columns: &mut Columns<'a>,
        token: &FencingToken,
        day: i32,
        webhook: &'a DecidedWebhook,
        effects: &'a Effects,
        replies: &[crate::types::Outgoing],
    ) -> Result<(), StoreError> {
        let envelope = &webhook.envelope;
        if let Some(trigger) = &effects.trigger {
            let key = ProcessedKey::new(day, trigger);
            columns.keys.push(key, webhook.sequence, ProcessedAs::Trigger);
        }
        for message in effects.messages.iter().chain(replies) {
            columns.messages.push(
                &self.rings.tokens,
                token.partition,
                envelope.lane,
                envelope.connection,
                &envelope.dedupe,
                envelope.traceparent.as_ref(),
                message,
            )?;
        }
        if let Some(delivery) = &effects.delivery {
            columns.deliveries.push((webhook, delivery, self.seal_payload(webhook)?));
        }
        Ok(())
    }

    fn seal_payload(&self, webhook: &DecidedWebhook) -> Result<Vec<u8>, StoreError> {
        let envelope = &webhook.envelope;
        let headers = stream::headers_to_pairs(Some(&envelope.headers()));
        SealedPayload::seal(&self.rings.tokens, envelope.dedupe.as_str(), headers, &envelope.body)
    }

    /// Moves a message that is no envelope, or that ended the process, to the dead letters, and the
    /// cursor past it.
    pub async fn commit_dead_letter(
        &self,
        token: &FencingToken,
        from: u64,
        last: &LastMessage,
        dead: &DeadLetter,
        key: Option<&ProcessedKey>,
    ) -> Result<CommitOutcome, StoreError> {
        let row = dead.sealed_for(token);
        let payload =
            SealedPayload::seal(&self.rings.tokens, &row, dead.headers.clone(), &dead.body)?;
        let row = fence_cursor(
            "-- intake.dead_letter
             with fence as (
                 update partition_cursors
                    set cursor = $5, last_sequence = $5, last_key = $6, last_stored_at = $7,
                        messages = messages + 1, read_through = greatest(read_through, $7),
                        claims = 0, suspect_sequence = null, suspect_count = 0
                  where partition = $1 and epoch = $2 and generation = $3 and cursor = $4
                 returning 1),
             dead as (
                 insert into dead_letters (stage, partition, generation, sequence, subject,
                                           connection_id, dedup_key, reason, last_error, attempts,
                                           payload)
                 select 'intake', $1, $3, $5, $8, $9, $10, $11, $12, 0, $13 from fence),
             keys as (
                 insert into processed_keys (slot, partition, day, key, generation, sequence,
                                             outcome)
                 select $14::integer % 8, $1, $14, $15, $3, $5, $16 from fence
                  where $15::bytea is not null
                 on conflict do nothing)
             select count(*) as committed from fence",
            token,
        )
        .bind(from as i64)
        .bind(last.sequence as i64)
        .bind(&last.key)
        .bind(last.stored_at)
        .bind(replace_nul(&dead.subject))
        .bind(&dead.connection)
        .bind(dead.dedup_key.as_deref().map(replace_nul))
        .bind(&dead.reason)
        .bind(replace_nul(&dead.last_error))
        .bind(payload)
        .bind(key.map(|key| key.day))
        .bind(key.map(|key| key.key.as_slice()))
        .bind(ProcessedAs::DeadLetter.number())
        .fetch_one(&self.pool)
        .await?;
        commit_outcome(&row)
    }
}

fn fence_cursor<'q>(sql: &'static str, token: &FencingToken) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).bind(token.partition.number() as i16).bind(token.epoch).bind(token.generation)
}

/// Applies the changes that determine the replies. Returns the replies.
async fn apply_changes(
    tx: &mut sqlx::PgConnection,
    effects: &Effects,
    dedup_key: &DedupeKey,
) -> Result<Vec<crate::types::Outgoing>, StoreError> {
    let mut replies = Vec::new();
    if let Some(consume) = &effects.consume {
        let result = consume_link_code(&mut *tx, consume, dedup_key).await?;
        replies.extend((consume.reply)(&result));
    }
    for change in &effects.changes {
        replies.extend((change.reply)(effects::apply_change(&mut *tx, &change.what).await?));
    }
    Ok(replies)
}

#[derive(Default)]
struct Columns<'a> {
    keys: Keys,
    deliveries: Vec<(&'a DecidedWebhook, &'a effects::NewDelivery, Vec<u8>)>,
    dead: Vec<(&'a DecidedWebhook, &'static str, String, Vec<u8>)>,
    ignored: Vec<(&'a DecidedWebhook, &'static str)>,
    messages: SealedMessages,
}

#[derive(Default)]
struct Keys {
    days: Vec<i32>,
    keys: Vec<Vec<u8>>,
    sequences: Vec<i64>,
    outcomes: Vec<i16>,
}

impl Keys {
    fn push(&mut self, key: ProcessedKey, sequence: u64, processed_as: ProcessedAs) {
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

async fn run_commit(
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

fn commit_outcome(row: &sqlx::postgres::PgRow) -> Result<CommitOutcome, StoreError> {
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
    rows: &'q [(&'q DecidedWebhook, &'q effects::NewDelivery, Vec<u8>)],
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
