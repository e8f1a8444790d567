//! Decides the pending webhooks of a partition and commits them, one batch at a time.
//!
//! Called by the partition reader. Each commit moves the cursor and is fenced by the epoch of the
//! partition. A commit with an unknown result is compared with the cursor in Postgres, so no batch
//! is committed twice or skipped.

use super::{
    batch::{AfterRefusal, BatchHalving, PrepareLimit, batch_length, commit_length},
    connection_share::{ConnectionShares, OverShare},
    owned_partition::OwnedPartition,
    pending::{PendingMessage, PendingMessages},
};
use crate::{
    context::Context,
    decider::{Decider, ReadWebhook, may_share_batch, processed_key},
};
use shared::{
    runtime::telemetry::ErrorChain,
    store::{
        BatchCommit, CommitOutcome, DeadLetter, DecidedWebhook, Decision, LastMessage,
        ProcessedKey, StoreError,
    },
    stream,
};
use std::time::{Duration, Instant};
use tracing::{debug, error, info, warn};

/// Wait before a statement is retried.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Approximate size of the headers of a stored webhook.
const STORED_HEADER_BYTES: usize = 600;
/// Maximum number of marks of a webhook. A webhook is marked before it is decided alone. A mark
/// that remains means that the process crashed while it decided the webhook.
const SUSPECTED_MAX: i32 = 2;

/// Committer of one partition.
pub struct Committer<'a> {
    pub(super) context: &'a Context,
    pub(super) owned: &'a OwnedPartition,
    pub(super) decider: &'a Decider,
    /// Sequence up to which the partition is committed.
    pub(super) cursor: u64,
    pub(super) halving: BatchHalving,
    pub(super) prepare_limit: PrepareLimit,
    pub(super) shares: ConnectionShares,
    /// Messages to purge because their connections exceed their shares.
    pub(super) over_share: Vec<OverShare>,
}

impl Committer<'_> {
    /// Commits the next batch. Returns `None` if the partition is lost or must be released.
    pub async fn commit_next(&mut self, pending: &mut PendingMessages) -> Option<LastMessage> {
        match pending.first()? {
            PendingMessage::Newer { sequence, schema } => {
                let partition = self.owned.partition();
                warn!(
                    %partition, sequence, schema,
                    "webhook written by a newer release; partition released"
                );
                self.owned.needs_newer.cancel();
                None
            }
            PendingMessage::Undecodable { last, dead } => {
                let (last, dead) = (last.clone(), dead.clone());
                self.commit_dead_letter(pending, last, &dead, None).await
            }
            PendingMessage::Webhook(_) => self.commit_webhooks(pending).await,
        }
    }

    async fn commit_webhooks(&mut self, pending: &mut PendingMessages) -> Option<LastMessage> {
        loop {
            let suspected = self.halving.is_alone();
            if suspected {
                let sequence = pending.webhooks().next()?.sequence;
                let Some(count) = self.suspect(sequence).await else {
                    self.withdraw_suspect(sequence).await;
                    return None;
                };
                if count > SUSPECTED_MAX {
                    let reason = "the process ended during the decision";
                    return self.give_up(pending, reason, "").await;
                }
            }
            let sizes = pending.webhooks().map(|read| read.envelope.body.len());
            let limit = self.halving.limit().min(self.prepare_limit.get());
            let batch: Vec<&ReadWebhook> =
                pending.webhooks().take(batch_length(sizes, limit)).collect();
            let (partition, decider) = (self.owned.partition(), self.decider);
            let decide = || decider.decide(partition, batch.iter().copied());
            let Some(decided) = self.retry("prepare batch", decide).await else {
                if suspected {
                    self.withdraw_suspect(batch[0].sequence).await;
                }
                return None;
            };
            if suspected {
                // A crash from here on is not caused by the decision.
                let (store, token) = (&self.context.store, &self.owned.token);
                if self.retry("clear mark", || store.clear_suspect(token)).await.is_none() {
                    self.withdraw_suspect(batch[0].sequence).await;
                    return None;
                }
            }
            let length = commit_length(decided.iter().map(|(_, w)| may_share_batch(&w.decision)));
            let (prepared, decided) = (decided.len(), &decided[..length]);
            match self.commit(decided).await? {
                Ok(last) => {
                    self.prepare_limit.on_committed(length, prepared);
                    self.record_committed(pending, decided, &last);
                    return Some(last);
                }
                Err(refusal) => {
                    self.context.metrics.record_refused_batch();
                    warn!(
                        %partition, sequence = decided[0].1.sequence, length,
                        error = %ErrorChain(&refusal), "failed to commit batch"
                    );
                    let next = self.halving.on_refused(length, refusal.is_statement_timeout());
                    if next == AfterRefusal::DeadLetter {
                        let error = ErrorChain(&refusal).to_string();
                        return self.give_up(pending, "Postgres rejects the effects", &error).await;
                    }
                }
            }
        }
    }

    /// Marks a webhook before it is decided alone. Returns how often it was marked without a
    /// commit.
    async fn suspect(&self, sequence: u64) -> Option<i32> {
        let (store, token) = (&self.context.store, &self.owned.token);
        self.retry("mark webhook", || store.suspect_webhook(token, sequence)).await?
    }

    /// Withdraws the mark after the loss of the lease: the process did not crash.
    async fn withdraw_suspect(&self, sequence: u64) {
        let partition = self.owned.partition();
        if let Err(error) = self.context.store.withdraw_suspect(partition, sequence).await {
            warn!(%partition, sequence, error = %ErrorChain(&error), "failed to withdraw mark");
        }
    }

    /// Commits decided webhooks. The inner error is Postgres's refusal of their contents.
    async fn commit(
        &self,
        decided: &[(i32, DecidedWebhook)],
    ) -> Option<Result<LastMessage, StoreError>> {
        let last = &decided.last()?.1;
        let last = LastMessage {
            sequence: last.sequence,
            key: last.envelope.dedup_key.as_str().to_owned(),
            stored_at: last.stored_at,
        };
        let (token, from) = (self.owned.token, self.cursor);
        let batch = BatchCommit { token, from, last: last.clone(), webhooks: decided };
        let began = Instant::now();
        let commit = || self.context.store.commit_batch(&batch);
        let committed = self.commit_until_known(last.sequence, commit).await;
        self.context.metrics.record_batch(decided.len(), began.elapsed());
        Some(committed?.map(|()| last))
    }

    async fn commit_dead_letter(
        &mut self,
        pending: &mut PendingMessages,
        last: LastMessage,
        dead: &DeadLetter,
        key: Option<&ProcessedKey>,
    ) -> Option<LastMessage> {
        let (store, token, from) = (&self.context.store, &self.owned.token, self.cursor);
        let (partition, sequence) = (self.owned.partition(), last.sequence);
        let commit = || store.commit_dead_letter(token, from, &last, dead, key);
        if let Err(error) = self.commit_until_known(sequence, commit).await? {
            error!(
                %partition, sequence, error = %ErrorChain(&error), "failed to write dead letter"
            );
            return None;
        }
        let (reason, error) = (&dead.reason, &dead.last_error);
        error!(sequence, reason, error, "webhook moved to the dead letters");
        self.context.metrics.record_dead_letters(1);
        self.cursor = sequence;
        self.owned.record_committed(self.cursor);
        pending.remove(1);
        self.record_progress(pending);
        Some(last)
    }

    /// Moves the first pending webhook to the dead letters.
    async fn give_up(
        &mut self,
        pending: &mut PendingMessages,
        reason: &str,
        last_error: &str,
    ) -> Option<LastMessage> {
        let read = pending.webhooks().next()?.clone();
        let envelope = &read.envelope;
        let key = envelope.dedup_key.as_str().to_owned();
        let dead = DeadLetter {
            sequence: read.sequence as i64,
            subject: envelope.subject(),
            connection: Some(envelope.connection.to_string()),
            dedup_key: Some(key.clone()),
            reason: reason.to_owned(),
            last_error: last_error.to_owned(),
            headers: stream::headers_to_pairs(Some(&envelope.headers())),
            body: envelope.body.to_vec(),
            ..DeadLetter::default()
        };
        let last = LastMessage { sequence: read.sequence, key, stored_at: read.stored_at };
        let processed = processed_key(&read);
        let last = self.commit_dead_letter(pending, last, &dead, Some(&processed)).await?;
        self.halving.on_committed();
        Some(last)
    }

    fn record_committed(
        &mut self,
        pending: &mut PendingMessages,
        decided: &[(i32, DecidedWebhook)],
        last: &LastMessage,
    ) {
        self.cursor = last.sequence;
        self.owned.record_committed(self.cursor);
        self.halving.on_committed();
        pending.remove(decided.len());
        let (context, metrics) = (self.context, &self.context.metrics);
        let (mut deliveries, mut messages, mut changes) = (false, false, false);
        for (_, DecidedWebhook { sequence, envelope, decision, .. }) in decided {
            let (connection, kind) = (envelope.connection, envelope.kind);
            match decision {
                Decision::Apply(effects) => {
                    changes |= !effects.changes.is_empty() || effects.edit.is_some();
                    deliveries |= effects.decide.is_some();
                    messages |= !effects.messages.is_empty() || !effects.may_share_batch();
                    if effects.delivery.is_some() {
                        deliveries = true;
                        context.payloads.insert(envelope);
                    }
                    let outcome = effects.processed_as.as_str();
                    debug!(sequence, %connection, %kind, outcome, "webhook committed");
                    metrics.record_decision(kind, outcome);
                }
                Decision::Ignore { reason, .. } => {
                    let reason = reason.as_str();
                    debug!(sequence, %connection, %kind, reason, "webhook ignored");
                    metrics.record_decision(kind, "ignored");
                }
                Decision::Overflow => {
                    debug!(sequence, %connection, %kind, "webhook exceeds the backlog limit");
                    metrics.record_decision(kind, "overflow");
                }
                Decision::DeadLetter { reason, error } => {
                    error!(
                        sequence, %connection, reason, error, "webhook moved to the dead letters"
                    );
                    metrics.record_decision(kind, "dead_letter");
                    metrics.record_dead_letters(1);
                }
            }
            context.usage.record_webhook(connection, decision);
            let bytes = envelope.body.len() + STORED_HEADER_BYTES;
            self.over_share.extend(self.shares.record(connection, *sequence, bytes));
        }
        if deliveries {
            context.wake_dispatch.notify_one();
        }
        if messages {
            context.wake_outbox.notify_one();
        }
        if changes {
            context.wake_controls.notify_one();
        }
        self.record_progress(pending);
    }

    /// Records the lag of the partition for the metrics page.
    pub fn record_progress(&self, pending: &PendingMessages) {
        let (lag, oldest) = pending.lag();
        self.owned.progress.record(lag, oldest);
    }

    /// Repeats a commit until its result is known. After an unknown result, and after a commit that
    /// changed nothing, the cursor in Postgres decides. Returns `None` if the partition is lost.
    /// The inner error is a refusal of the contents or the duration.
    async fn commit_until_known<F>(
        &self,
        to: u64,
        commit: impl Fn() -> F,
    ) -> Option<Result<(), StoreError>>
    where
        F: Future<Output = Result<CommitOutcome, StoreError>>,
    {
        let (partition, token) = (self.owned.partition(), &self.owned.token);
        for attempt in 0.. {
            if attempt > 1 {
                self.wait_to_retry().await?; // not a lost response, but an outage of Postgres
            }
            match commit().await {
                Ok(CommitOutcome::Committed) => return Some(Ok(())),
                Err(error) if error.is_content_rejection() || error.is_statement_timeout() => {
                    return Some(Err(error));
                }
                Ok(CommitOutcome::NotMatched) => {}
                Err(error) => {
                    let error = ErrorChain(&error);
                    warn!(%partition, %error, "commit has an unknown result; reading the cursor");
                }
            }
            let store = &self.context.store;
            let state = self.retry("read cursor", || store.settled_cursor(partition)).await?;
            let is_owner = (state.epoch, state.generation) == (token.epoch, token.generation);
            if is_owner && state.cursor == to {
                return Some(Ok(()));
            }
            if !is_owner || state.cursor != self.cursor {
                self.context.metrics.record_fenced_commit();
                info!(%partition, epoch = token.epoch, "commit fenced; partition lost");
                self.owned.lost.cancel();
                return None;
            }
        }
        None
    }

    /// Repeats a statement until it succeeds. Returns `None` if the partition is lost or released
    /// meanwhile. `action` names the statement in the log.
    pub async fn retry<T, F>(&self, action: &str, run: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        loop {
            match run().await {
                Ok(result) => return Some(result),
                Err(error) => {
                    let (partition, error) = (self.owned.partition(), ErrorChain(&error));
                    warn!(%partition, action, %error, "failed to run statement of intake");
                }
            }
            self.wait_to_retry().await?;
        }
    }

    /// Waits for the retry interval. Returns `None` if the partition is lost or released meanwhile.
    async fn wait_to_retry(&self) -> Option<()> {
        tokio::select! {
            _ = self.owned.lost.cancelled() => None,
            _ = self.owned.stop.cancelled() => None,
            _ = tokio::time::sleep(RETRY_INTERVAL) => Some(()),
        }
    }
}
