//! Commit of intake: effects, deliveries, messages and the partition's cursor, in one fenced
//! statement.
//!
//! The fence is the update of the partition's cursor row. Every other part of the statement selects
//! from it, so that a worker that lost its partition writes nothing. Dedup keys are inserted
//! without `on conflict`: a copy that was unknown when the batch was prepared fails the statement,
//! and the caller prepares the batch again. A webhook whose changes determine its replies is
//! committed alone: its changes come first, in one transaction with the statement.

use super::{
    DeadLetter, DecidedWebhook, Decision, Effects, IgnoreReason, NewDelivery, Priority,
    ProcessedAs, ProcessedKey, QuestionEffect, SealedPayload, apply_change,
    columns::Columns,
    fence::{Fence, commit_outcome, fence_cursor, run_commit},
};
use crate::store::{
    Store, StoreError,
    approvals::decide_approval,
    deliveries::cancel_unanswered,
    maintenance::Replay,
    organizations::consume_link_code,
    partitions::{FencingToken, LastMessage},
    pool::with_transaction_timeout,
    replace_nul,
};
use crate::{
    domain::OutgoingMessage,
    stream::{self, DedupKey, Envelope},
};

/// Batch to commit.
pub struct BatchCommit<'a> {
    /// Right to commit.
    pub token: FencingToken,
    /// Cursor before the batch.
    pub from: u64,
    /// Last webhook of the batch. Its sequence is the new cursor.
    pub last: LastMessage,
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
        // The replay reads the stream of this generation.
        let generation = self.current_generation(partition).await?;
        let token = FencingToken { partition, epoch: 0, generation };
        let delivery = NewDelivery {
            priority: Priority::Background,
            has_waiting_notice: false,
            ..delivery.clone()
        };
        let day = (webhook.stored_at.unix_timestamp() / 86_400) as i32;
        let mut columns = Columns::default();
        let key = ProcessedKey::new(day, &webhook.envelope.dedup_key);
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

    /// Expires an approval. Enqueues a message, and the delivery of the webhook, if it has one,
    /// unless the approval was decided meanwhile.
    pub(in crate::store) async fn expire_approval(
        &self,
        approval: &str,
        message: Option<&OutgoingMessage>,
        webhook: &DecidedWebhook,
    ) -> Result<(), StoreError> {
        let Envelope { partition, lane, connection, dedup_key, .. } = &webhook.envelope;
        let token = FencingToken { partition: *partition, epoch: 0, generation: 1 };
        let mut columns = Columns::default();
        if let Some(message) = message {
            let ring = &self.rings.tokens;
            let messages = &mut columns.messages;
            messages.push(ring, *partition, *lane, *connection, dedup_key, None, message)?;
        }
        if let Decision::Apply(effects) = &webhook.decision
            && let Some(delivery) = &effects.delivery
        {
            columns.deliveries.push((webhook, delivery, self.seal_payload(webhook)?));
        }
        run_commit(&self.pool, &token, Fence::Expiry { approval }, &columns).await?;
        Ok(())
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
                Some((effects, &envelope.dedup_key))
            }
            _ => None,
        };
        let Some((effects, dedup_key)) = changes else {
            let applied = AppliedChanges::default();
            let columns = self.columns(token, &fence, webhooks, &applied)?;
            return run_commit(&self.pool, token, fence, &columns).await;
        };
        with_transaction_timeout(async {
            let mut tx = self.pool.begin().await?;
            let applied = self.apply_changes(&mut tx, effects, dedup_key).await?;
            let columns = self.columns(token, &fence, webhooks, &applied)?;
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
        applied: &'a AppliedChanges,
    ) -> Result<Columns<'a>, StoreError> {
        let mut columns = Columns::default();
        // The key of a dead letter was inserted when it was given up.
        let has_key = matches!(fence, Fence::DeadLetter { .. });
        for (day, webhook) in webhooks {
            if let Some(channel) = &webhook.ids.new_channel {
                columns.known_channels.push((webhook.envelope.connection, channel));
            }
            match &webhook.decision {
                Decision::Ignore { reason, addressed: true } => {
                    columns.ignored.push((webhook, reason.as_str()));
                }
                Decision::Ignore { .. } => {}
                Decision::DeadLetter { reason, error } => {
                    let key = ProcessedKey::new(*day, &webhook.envelope.dedup_key);
                    columns.keys.push(key, webhook.sequence, ProcessedAs::DeadLetter);
                    let payload = Some(self.seal_payload(webhook)?);
                    columns.dead.push((webhook, reason, replace_nul(error).into_owned(), payload));
                }
                Decision::Overflow => {
                    let key = ProcessedKey::new(*day, &webhook.envelope.dedup_key);
                    columns.keys.push(key, webhook.sequence, ProcessedAs::DeadLetter);
                    columns.dead.push((webhook, Decision::OVERFLOW, String::new(), None));
                }
                Decision::Apply(effects) => {
                    if !has_key {
                        let key = ProcessedKey::new(*day, &webhook.envelope.dedup_key);
                        columns.keys.push(key, webhook.sequence, effects.processed_as);
                    }
                    self.add_effects(&mut columns, token, *day, webhook, effects, applied)?;
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
        applied: &'a AppliedChanges,
    ) -> Result<(), StoreError> {
        let envelope = &webhook.envelope;
        if let Some(trigger) = &effects.trigger {
            let key = ProcessedKey::new(day, trigger);
            columns.keys.push(key, webhook.sequence, ProcessedAs::Trigger);
        }
        let mut messages = effects.messages.iter().chain(&applied.replies).peekable();
        if effects.drops_messages && messages.peek().is_some() {
            columns.ignored.push((webhook, IgnoreReason::TooManyMessages.as_str()));
        } else {
            for message in messages {
                columns.messages.push(
                    &self.rings.tokens,
                    token.partition,
                    envelope.lane,
                    envelope.connection,
                    &envelope.dedup_key,
                    envelope.traceparent.as_ref(),
                    message,
                )?;
            }
        }
        let decided = effects.delivery.as_ref().filter(|_| !applied.drops_delivery);
        if let Some(delivery) = decided.or(applied.delivery.as_ref()) {
            columns.deliveries.push((webhook, delivery, self.seal_payload(webhook)?));
        }
        if let Some(effect) = effects.question {
            columns.questions.add(webhook, effect);
            if effect == QuestionEffect::Refused {
                columns.ignored.push((webhook, IgnoreReason::TooManyQuestions.as_str()));
            }
        }
        Ok(())
    }

    fn seal_payload(&self, webhook: &DecidedWebhook) -> Result<Vec<u8>, StoreError> {
        let envelope = &webhook.envelope;
        let headers = stream::headers_to_pairs(Some(&envelope.headers()));
        SealedPayload::seal(
            &self.rings.tokens,
            envelope.dedup_key.as_str(),
            headers,
            &envelope.body,
        )
    }

    /// Moves a message that is not an envelope, or that ended the process, to the dead letters, and
    /// moves the cursor past it.
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
                 select 'intake', $1, $3, $5, $8, $9, $10, $11, $12, 0,
                        case when not exists (select from connection_backlog
                                               where connection_id = $9 and dead_letters_full)
                             then $13::bytea end
                   from fence),
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
        .bind(replace_nul(&last.key))
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

/// Results of changes that were applied before the statement of the commit.
#[derive(Default)]
struct AppliedChanges {
    replies: Vec<OutgoingMessage>,
    /// Delivery of a decision.
    delivery: Option<NewDelivery>,
    /// True if the delivery of the effects is not enqueued.
    drops_delivery: bool,
}

impl Store {
    /// Applies the changes that determine replies and deliveries.
    async fn apply_changes(
        &self,
        tx: &mut sqlx::PgConnection,
        effects: &Effects,
        dedup_key: &DedupKey,
    ) -> Result<AppliedChanges, StoreError> {
        let mut applied = AppliedChanges::default();
        if let Some(consume) = &effects.consume {
            let result = consume_link_code(&mut *tx, consume, dedup_key).await?;
            applied.replies.extend((consume.reply)(&result));
        }
        if let Some(click) = &effects.decide {
            let (result, delivery) = decide_approval(&mut *tx, &self.rings.tokens, click).await?;
            applied.replies.extend((click.reply)(&result));
            applied.delivery = delivery;
        }
        if let Some(edit) = &effects.edit {
            applied.drops_delivery = !cancel_unanswered(&mut *tx, edit).await?;
        }
        for change in &effects.changes {
            applied.replies.extend((change.reply)(apply_change(&mut *tx, &change.action).await?));
        }
        Ok(applied)
    }
}
