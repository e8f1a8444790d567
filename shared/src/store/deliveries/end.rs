//! Ends of attempts. A finished delivery is deleted and the head of its lane raised. A postponed
//! delivery waits in its lane.
//!
//! One statement records many ends. The fence of each is (worker, claim) in the lane row: the end
//! of an attempt whose lane was freed and claimed again changes nothing.

use super::{
    super::{
        Change, Store, StoreError,
        outbox::{SealedMessages, enqueue_messages},
        pool::with_transaction_timeout,
        replace_nul,
        webhooks::apply_change,
    },
    ClaimedDelivery,
};
use crate::domain::{HeaderToken, OutgoingMessage};
use sqlx::{PgExecutor, Row};
use std::{collections::HashSet, time::Duration};

/// Finished delivery.
pub struct FinishedDelivery {
    /// Delivery with its attempt.
    pub delivery: ClaimedDelivery,
    /// Outcome.
    pub outcome: FinishedOutcome,
    /// Messages to Slack.
    pub messages: Vec<OutgoingMessage>,
    /// Trace context of the request.
    pub traceparent: Option<HeaderToken>,
}

/// Outcome of a finished delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishedOutcome {
    /// The agent accepted the delivery. The value is the outcome in `delivery_log`.
    Completed(&'static str),
    /// The delivery is given up.
    DeadLetter {
        /// Reason, without details of the attempt.
        reason: String,
        /// Failure of the last attempt.
        error: String,
    },
}

/// Delivery that waits for another attempt.
#[derive(Debug, Clone)]
pub struct PostponedDelivery {
    /// Delivery with its attempt.
    pub delivery: ClaimedDelivery,
    /// Wait before the next attempt.
    pub after: Duration,
    /// Failure.
    pub error: String,
    /// True if the attempt counts.
    pub counts: bool,
    /// True if the delivery caused the failure.
    pub fault: bool,
    /// True if the attempt panicked.
    pub crashed: bool,
}

const FINISH: &str = concat!(
    "-- deliveries.finish
     with u as (
         select * from unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[],
                              $6::text[], $7::text[], $8::integer[], $9::text[], $10::text[],
                              $11::text[])
                  as u (i, connection_id, lane, worker, claim, org_id, agent_id, slot, outcome,
                        reason, error)),
     locked as (
         select u.i, u.connection_id, u.lane, l.attempts, l.first_attempt_at, l.merged
           from (select * from u order by connection_id, lane) u, lateral (
               -- Prevents the index by worker, which has entries of all its earlier lanes.
               select l.attempts, l.first_attempt_at, l.merged from delivery_lanes l
                where l.lane = u.lane and l.connection_id = u.connection_id
                  and l.worker is not distinct from u.worker and l.claim = u.claim for update) l),
     ended as (
         update delivery_lanes l
            set head = l.head + k.merged, merged = 1, worker = null, claim = null, attempts = 0, faults = 0,
                crashes = 0, first_attempt_at = null, last_error = '', cancel_requested = false,
                next_at = case when l.head + k.merged > l.tail then 'infinity' else now() end
           from locked k where l.connection_id = k.connection_id and l.lane = k.lane
         returning k.i, k.attempts, k.first_attempt_at, k.merged, l.connection_id, l.lane,
                   l.head - k.merged as position),
     freed as (
         update agent_slots s set connection_id = null, lane = null, worker = null
           from ended join u using (i)
          where s.org_id = u.org_id and s.agent_id = u.agent_id and s.n = u.slot and s.lane = u.lane
            and s.worker = u.worker),
     gone as (
         delete from deliveries d using ended e
          where d.connection_id = e.connection_id and d.lane = e.lane and d.position >= e.position
            and d.position < e.position + e.merged
         returning d.*, e.i, e.attempts, e.first_attempt_at, d.position > e.position as is_merged),
     -- A later delivery of an emptied lane may have the same position.
     runs_gone as (
        delete from runs r using ended e
          where r.connection_id = e.connection_id and r.lane = e.lane and r.position = e.position
         returning r.connection_id, r.lane, r.position),
     parts_gone as (
        delete from run_parts p using runs_gone r
          where p.connection_id = r.connection_id and p.lane = r.lane
            and p.position = r.position),
     logged as (
         insert into delivery_log (slot, connection_id, partition, generation, sequence, lane,
                dedup_key, event_id, channel_id, ts, thread_ts, user_id, org_id, agent_id, kind,
                outcome, error, attempts, worker, received_at, stored_at, inserted_at,
                first_attempt_at)
         select extract(epoch from now())::bigint / 86400 % 32, g.connection_id, g.partition,
                g.generation, g.sequence, g.lane, g.dedup_key, g.event_id, g.channel_id, g.ts,
                g.thread_ts, g.user_id, g.org_id, g.agent_id, g.kind,
                case when g.is_merged and u.reason is null then 'merged' else u.outcome end, u.error,
                g.attempts, coalesce(w.name, ''), g.received_at, g.stored_at, g.inserted_at,
                g.first_attempt_at
           from gone g join u using (i) left join workers w on w.id = u.worker),
     dead as (
         insert into dead_letters (stage, partition, generation, sequence, subject, connection_id,
                lane, org_id, agent_id, session, kind, dedup_key, hops, event_id, team_id,
                channel_id, thread_ts, ts, user_id, traceparent, received_at, stored_at, replay,
                reason, last_error, attempts, payload)
         select 'dispatch', g.partition, g.generation, g.sequence,
                'slack.in.' || g.partition || '.' || g.connection_id, g.connection_id, g.lane,
                g.org_id, g.agent_id, g.session, g.kind, g.dedup_key, g.hops, g.event_id,
                g.team_id, g.channel_id, g.thread_ts, g.ts, g.user_id, g.traceparent,
                g.received_at, g.stored_at, g.replay, u.reason, u.error, g.attempts,
                case when not exists (select from connection_backlog b
                                       where b.connection_id = g.connection_id
                                         and b.dead_letters_full)
                     then g.payload end
           from gone g join u using (i) where u.reason is not null),
     messages as (
         select m.n, m.connection_id, m.lane, m.partition, m.channel_key, m.method, m.dedup_key,
                m.request
           from unnest($12::bigint[], $13::text[], $14::bigint[], $15::smallint[], $16::text[],
                       $17::text[], $18::text[],
                       $19::text[]) as m (n, connection_id, lane, partition, channel_key, method,
                                          dedup_key, request)
           join unnest($20::bigint[]) with ordinality as o (i, n1) on o.n1 = m.n + 1
           join ended on ended.i = o.i), ",
    enqueue_messages!(),
    " select i from ended"
);

const WAITING_NOTICE: &str = concat!(
    "-- deliveries.enqueue_waiting_notice
     with told as (
         update delivery_lanes set told_at = now()
          where connection_id = $1 and lane = $2 and worker = $3 and claim = $4
            and (told_at is null or told_at < now() - interval '1 hour') returning 1),
     messages as (
         select m.* from told, unnest($5::bigint[], $6::text[], $7::bigint[], $8::smallint[],
                                      $9::text[], $10::text[], $11::text[], $12::text[])
                as m (n, connection_id, lane, partition, channel_key, method, dedup_key,
                      request)), ",
    enqueue_messages!(),
    " select count(*) as told from told"
);

impl Store {
    /// Enqueues a notice to the author of a running delivery that it waits, at most once per hour
    /// and conversation.
    pub async fn enqueue_waiting_notice(
        &self,
        delivery: &ClaimedDelivery,
        message: &OutgoingMessage,
    ) -> Result<(), StoreError> {
        let mut messages = SealedMessages::default();
        messages.push(
            &self.rings.tokens,
            delivery.partition,
            delivery.key.lane,
            delivery.key.connection,
            &delivery.dedup_key,
            None,
            message,
        )?;
        let query = sqlx::query(WAITING_NOTICE)
            .bind(delivery.key.connection.to_string())
            .bind(delivery.key.lane.to_bits())
            .bind(&delivery.worker)
            .bind(delivery.claim);
        messages.bind(query).fetch_one(&self.pool).await?;
        Ok(())
    }

    /// Ends finished deliveries. Returns for each whether its fence held.
    pub async fn finish_deliveries(
        &self,
        finished: &[&FinishedDelivery],
    ) -> Result<Vec<bool>, StoreError> {
        self.finish_in(&self.pool, finished).await
    }

    /// Ends a delivery and applies a change of its conversation with the change's reply, in one
    /// transaction.
    pub async fn finish_with_change(
        &self,
        mut finished: FinishedDelivery,
        change: &Change,
    ) -> Result<bool, StoreError> {
        with_transaction_timeout(async {
            let mut tx = self.pool.begin().await?;
            let changed = apply_change(&mut tx, &change.action).await?;
            finished.messages.extend((change.reply)(changed));
            let in_force = self.finish_in(&mut *tx, &[&finished]).await?;
            match in_force[..] {
                [true] => tx.commit().await?,
                _ => tx.rollback().await?,
            }
            Ok(in_force == [true])
        })
        .await
    }

    async fn finish_in(
        &self,
        executor: impl PgExecutor<'_>,
        finished: &[&FinishedDelivery],
    ) -> Result<Vec<bool>, StoreError> {
        let (mut messages, mut message_of) = (SealedMessages::default(), Vec::new());
        for (i, item) in finished.iter().enumerate() {
            for message in &item.messages {
                let delivery = &item.delivery;
                messages.push(
                    &self.rings.tokens,
                    delivery.partition,
                    delivery.key.lane,
                    delivery.key.connection,
                    &delivery.dedup_key,
                    item.traceparent.as_ref(),
                    message,
                )?;
                message_of.push(i as i64);
            }
        }
        let deliveries: Vec<&ClaimedDelivery> = finished.iter().map(|f| &f.delivery).collect();
        let outcomes = finished.iter().map(|item| match &item.outcome {
            FinishedOutcome::Completed(outcome) => (*outcome, None, ""),
            FinishedOutcome::DeadLetter { reason, error } => {
                ("dead_letter", Some(reason.as_str()), error.as_str())
            }
        });
        let query = bind_attempts(sqlx::query(FINISH), &deliveries)
            .bind(outcomes.clone().map(|(outcome, ..)| outcome).collect::<Vec<_>>())
            .bind(
                outcomes.clone().map(|(_, reason, _)| reason.map(replace_nul)).collect::<Vec<_>>(),
            )
            .bind(outcomes.map(|(.., error)| replace_nul(error)).collect::<Vec<_>>());
        let rows = messages.bind(query).bind(message_of).fetch_all(executor).await?;
        fences_held(&rows, finished.len())
    }

    /// Puts deliveries back into their lanes. Returns for each whether its fence held.
    pub async fn postpone_deliveries(
        &self,
        postponed: &[PostponedDelivery],
    ) -> Result<Vec<bool>, StoreError> {
        let deliveries: Vec<&ClaimedDelivery> = postponed.iter().map(|p| &p.delivery).collect();
        let query = sqlx::query(
            "-- deliveries.postpone
             with u as (
                 select * from unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[],
                                      $5::bigint[], $6::text[], $7::text[], $8::integer[],
                                      $9::float8[], $10::text[], $11::boolean[], $12::boolean[],
                                      $13::boolean[])
                          as u (i, connection_id, lane, worker, claim, org_id, agent_id, slot,
                                after, error, counts, crashed, fault)),
             locked as (
                 select u.connection_id, u.lane
                   from (select * from u order by connection_id, lane) u, lateral (
                       select from delivery_lanes l
                        where l.lane = u.lane and l.connection_id = u.connection_id
                          and l.worker is not distinct from u.worker and l.claim = u.claim
                          for update) l),
             ended as (
                 update delivery_lanes l
                    set worker = null, claim = null, attempts = l.attempts - case when u.counts
                        then 0 else 1 end,
                        crashes = l.crashes + u.crashed::integer,
                        faults = l.faults + u.fault::integer,
                        first_attempt_at = case when not u.counts and l.attempts = 1 then null
                                                else l.first_attempt_at end,
                        last_error = u.error, next_at = now() + make_interval(secs => u.after)
                   from locked join u using (connection_id, lane)
                  where l.connection_id = locked.connection_id and l.lane = locked.lane
                 returning u.i),
             freed as (
                 update agent_slots s set connection_id = null, lane = null, worker = null
                   from ended join u using (i)
                  where s.org_id = u.org_id and s.agent_id = u.agent_id and s.n = u.slot
                    and s.lane = u.lane
                    and s.worker = u.worker)
             select i from ended",
        );
        let rows = bind_attempts(query, &deliveries)
            .bind(postponed.iter().map(|p| p.after.as_secs_f64()).collect::<Vec<_>>())
            .bind(postponed.iter().map(|p| replace_nul(&p.error)).collect::<Vec<_>>())
            .bind(postponed.iter().map(|p| p.counts).collect::<Vec<_>>())
            .bind(postponed.iter().map(|p| p.crashed).collect::<Vec<_>>())
            .bind(postponed.iter().map(|p| p.fault).collect::<Vec<_>>())
            .fetch_all(&self.pool)
            .await?;
        fences_held(&rows, postponed.len())
    }
}

type Statement<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Binds the attempts, `$1` to `$8`.
fn bind_attempts<'q>(query: Statement<'q>, deliveries: &[&ClaimedDelivery]) -> Statement<'q> {
    query
        .bind((0..deliveries.len() as i64).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|d| d.key.connection.to_string()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|d| d.key.lane.to_bits()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|d| d.worker.clone()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|d| d.claim).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|d| d.org.clone()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|d| d.agent.clone()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|d| d.slot).collect::<Vec<_>>())
}

fn fences_held(rows: &[sqlx::postgres::PgRow], count: usize) -> Result<Vec<bool>, StoreError> {
    let ended: HashSet<i64> = rows.iter().map(|row| row.try_get("i")).collect::<Result<_, _>>()?;
    Ok((0..count as i64).map(|i| ended.contains(&i)).collect())
}
