//! Works one partition: reads it from its cursor on, decides in batches, commits one batch at a time.
//!
//! The reader acknowledges nothing in the stream: what is committed is in Postgres. A message that is no envelope becomes a
//! dead letter; one that a newer release wrote makes the worker give the partition back. A Postgres that is away is waited
//! for. The next batch is prepared when the outcome of the one before is known.

use super::{
    batch::{AfterRefusal, BatchHalving, batch_length, commit_length},
    owned_partition::OwnedPartition,
    redrive,
    stream_reset::{self, StreamReset},
    stream_retention,
};
use crate::{
    context::Context,
    decider::{Decider, ReadWebhook, may_share_batch, processed_key},
};
use async_nats::jetstream;
use shared::{
    codec::envelope::{Envelope, MSG_ID, NotDecoded},
    follow::{Follow, Followed, Place},
    store::{
        BatchCommit, CommitOutcome, CursorState, DeadLetter, DecidedWebhook, Decision, LastMessage,
        ProcessedKey, StoreError,
    },
    stream::{self, STREAM, subjects_of},
    telemetry::Chain,
};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant as Clock},
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tracing::{debug, error, info, warn};

/// A body is held, split, sealed and sent: it counts so often.
const BODY_COUNTS: usize = 4;
/// Wait before a statement is sent again.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// An idle partition records how far it is read this often, and looks whether the stream needs room.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);
/// How often a webhook may be marked before it is decided alone, before it is given up: its process ended each time.
const SUSPECTED_MAX: i32 = 2;

/// Why a reader ended.
enum Ended {
    /// It was told to stop, or the partition was lost.
    Stopped,
    /// The stream is another one.
    Reset(StreamReset),
}

/// A message that was read and is not committed.
struct Pending {
    message: PendingMessage,
    /// Its part of the byte budget.
    _permit: OwnedSemaphorePermit,
}

enum PendingMessage {
    Webhook(Box<ReadWebhook>),
    Undecodable { last: LastMessage, dead: Box<DeadLetter> },
    Newer { sequence: u64, schema: u16 },
}

struct Reader<'a> {
    context: &'a Context,
    part: &'a OwnedPartition,
    decider: &'a Decider,
    follow: Follow,
    cursor: u64,
    halving: BatchHalving,
    pending: VecDeque<Pending>,
    /// Read, but there was no room for it.
    unread: Option<(Place, Box<jetstream::Message>)>,
    waiting: u64,
}

/// Works a partition until it is to stop or is lost.
pub async fn run(
    context: Arc<Context>,
    js: jetstream::Context,
    part: Arc<OwnedPartition>,
    state: CursorState,
    decider: Decider,
) {
    let name = format!("p{}-e{}-{}", part.partition(), part.token.epoch, context.worker_name);
    let next = state.cursor + 1;
    let follow = Follow::new(js.clone(), STREAM, subjects_of(part.partition()), name, next);
    let mut reader = Reader {
        context: &context,
        part: &part,
        decider: &decider,
        follow,
        cursor: state.cursor,
        halving: BatchHalving::new(part.alone),
        pending: VecDeque::new(),
        unread: None,
        waiting: 0,
    };
    let redriving = redrive::run(&context, &part, &decider);
    let ended = tokio::select! {
        _ = part.lost.cancelled() => Ended::Stopped,
        ended = reader.work(&js, state.clone()) => ended,
        () = redriving => Ended::Stopped,
    };
    part.progress.record(0, None);
    if let Ended::Reset(reset) = ended {
        stream_reset::bump_generation(&context, &js, &part, &state, reset).await;
    }
}

impl Reader<'_> {
    async fn work(&mut self, js: &jetstream::Context, mut state: CursorState) -> Ended {
        let mut recorded = Instant::now();
        loop {
            let read = tokio::select! {
                biased;
                _ = self.part.stop.cancelled() => return Ended::Stopped,
                read = self.read() => read,
            };
            match read {
                Read::Messages => {}
                Read::Opened(opened) => {
                    if let Some(reset) = stream_reset::check(js, &opened, &state, self.cursor).await
                    {
                        return Ended::Reset(reset);
                    }
                    self.record_stream(&mut state, opened.created_ns).await;
                    continue;
                }
                Read::CaughtUp(through) => {
                    self.waiting = 0;
                    if recorded.elapsed() > IDLE_INTERVAL && self.pending.is_empty() {
                        recorded = Instant::now();
                        let advanced =
                            self.context.store.advance_read_through(&self.part.token, through);
                        if let Err(error) = advanced.await {
                            warn!(partition = %self.part.partition(), error = %Chain(&error), "failed to record read-through time");
                        }
                        stream_retention::make_room(self.context, js, self.part, &state).await;
                    }
                }
            }
            while !self.pending.is_empty() {
                match self.commit_next().await {
                    Some(last) => state.last = Some(last),
                    None => return Ended::Stopped,
                }
                if self.part.stop.is_cancelled() {
                    return Ended::Stopped;
                }
            }
            if recorded.elapsed() > IDLE_INTERVAL {
                recorded = Instant::now();
                stream_retention::make_room(self.context, js, self.part, &state).await;
            }
        }
    }

    /// Reads what is there, at most a batch; waits for the first of it.
    async fn read(&mut self) -> Read {
        match self.unread.take() {
            Some((at, message)) => self.add(at, message).await,
            None => match self.follow.next().await {
                Followed::Opened(state) => return Read::Opened(state),
                Followed::CaughtUp(_, at) => return Read::CaughtUp(at),
                Followed::Message(at, message) => self.add(at, message).await,
            },
        }
        while self.pending.len() < super::batch::BATCH_WEBHOOKS_MAX {
            // What else comes is looked at after these are committed.
            let Some(Followed::Message(at, message)) = self.follow.ready().await else { break };
            let bytes = message.payload.len() * BODY_COUNTS;
            match self.context.intake_budget.try_acquire(bytes) {
                Some(permit) => self.push(at, &message, permit),
                None => {
                    self.unread = Some((at, message));
                    break;
                }
            }
        }
        self.record_progress();
        Read::Messages
    }

    async fn add(&mut self, at: Place, message: Box<jetstream::Message>) {
        let bytes = message.payload.len() * BODY_COUNTS;
        // Kept while it waits: nothing is lost when this future is dropped.
        self.unread = Some((at, message));
        let permit = self.context.intake_budget.acquire(bytes).await;
        if let (Some(permit), Some((at, message))) = (permit, self.unread.take()) {
            self.push(at, &message, permit);
        }
    }

    fn push(&mut self, at: Place, message: &jetstream::Message, permit: OwnedSemaphorePermit) {
        let Place { sequence, stored_at, waiting } = at;
        self.waiting = waiting;
        let decoded =
            Envelope::decode(&message.subject, message.headers.as_ref(), message.payload.clone());
        let message = match decoded {
            Ok(envelope) => {
                PendingMessage::Webhook(Box::new(ReadWebhook { sequence, stored_at, envelope }))
            }
            Err(NotDecoded::Newer(schema)) => PendingMessage::Newer { sequence, schema },
            Err(undecodable) => {
                let id = message.headers.as_ref().and_then(|headers| headers.get(MSG_ID));
                let key = id.map(|id| id.as_str().to_owned()).unwrap_or_default();
                let dead = DeadLetter {
                    sequence: sequence as i64,
                    subject: message.subject.to_string(),
                    connection: stream::parse_subject(&message.subject)
                        .map(|(_, connection)| connection.to_string()),
                    reason: undecodable.to_string(),
                    headers: stream::headers_to_pairs(message.headers.as_ref()),
                    body: message.payload.to_vec(),
                    ..DeadLetter::default()
                };
                let last = LastMessage { sequence, key, stored_at };
                PendingMessage::Undecodable { last, dead: Box::new(dead) }
            }
        };
        self.pending.push_back(Pending { message, _permit: permit });
    }

    /// Commits the next batch of what is pending; `None` when the partition is not to be worked any further.
    async fn commit_next(&mut self) -> Option<LastMessage> {
        let partition = self.part.partition();
        match &self.pending.front()?.message {
            PendingMessage::Newer { sequence, schema } => {
                warn!(%partition, sequence, schema, "webhook written by a newer release; partition given back");
                self.part.needs_newer.cancel();
                None
            }
            PendingMessage::Undecodable { last, dead } => {
                let (last, dead) = (last.clone(), dead.clone());
                self.commit_dead_letter(last, &dead, None).await
            }
            PendingMessage::Webhook(_) => self.commit_webhooks().await,
        }
    }

    async fn commit_webhooks(&mut self) -> Option<LastMessage> {
        loop {
            if self.halving.is_alone() && !self.suspect_next().await? {
                let first = self.webhooks().next()?.clone();
                return self.give_up(&first, "its process ended when it was decided", "").await;
            }
            let sizes = self.webhooks().map(|read| read.envelope.body.len());
            let length = batch_length(sizes, self.halving.limit());
            let prepared = self.prepare(length).await?;
            let length = commit_length(
                prepared.iter().map(|(_, webhook)| may_share_batch(&webhook.decision)),
            );
            let prepared = &prepared[..length];
            match self.commit(prepared).await? {
                Ok(last) => {
                    self.committed(prepared, &last);
                    return Some(last);
                }
                Err(refusal) => {
                    self.context.metrics.batch_refused();
                    let first = prepared[0].1.sequence;
                    warn!(partition = %self.part.partition(), sequence = first, length, error = %Chain(&refusal), "failed to commit batch");
                    if self.halving.on_refused(length) == AfterRefusal::DeadLetter {
                        let first = self.webhooks().next()?.clone();
                        let error = Chain(&refusal).to_string();
                        return self.give_up(&first, "Postgres refuses its effects", &error).await;
                    }
                }
            }
        }
    }

    /// The webhooks at the front of what is pending.
    fn webhooks(&self) -> impl Iterator<Item = &ReadWebhook> + Clone {
        self.pending.iter().map_while(|pending| match &pending.message {
            PendingMessage::Webhook(read) => Some(&**read),
            _ => None,
        })
    }

    /// Marks the next webhook before it is decided alone. Returns false when its process ended too often with the mark set.
    async fn suspect_next(&mut self) -> Option<bool> {
        let sequence = self.webhooks().next()?.sequence;
        let (store, token) = (&self.context.store, &self.part.token);
        let count = self.retry("mark webhook", || store.suspect_webhook(token, sequence)).await??;
        Some(count <= SUSPECTED_MAX)
    }

    async fn prepare(&mut self, length: usize) -> Option<Vec<(i32, DecidedWebhook)>> {
        let batch: Vec<&ReadWebhook> = self.webhooks().take(length).collect();
        let (partition, decider) = (self.part.partition(), self.decider);
        self.retry("prepare batch", || decider.decide(partition, batch.iter().copied())).await
    }

    /// Commits decided webhooks; the inner error is Postgres's refusal of their contents.
    async fn commit(
        &self,
        prepared: &[(i32, DecidedWebhook)],
    ) -> Option<Result<LastMessage, StoreError>> {
        let last = &prepared.last()?.1;
        let last = LastMessage {
            sequence: last.sequence,
            key: last.envelope.dedupe.as_str().to_owned(),
            stored_at: last.stored_at,
        };
        let batch = BatchCommit {
            token: self.part.token,
            from: self.cursor,
            last: last.clone(),
            webhooks: prepared,
        };
        let began = Clock::now();
        let committed =
            self.settle(last.sequence, || self.context.store.commit_batch(&batch)).await;
        self.context.metrics.batch_committed(prepared.len(), began.elapsed());
        Some(committed?.map(|()| last))
    }

    async fn commit_dead_letter(
        &mut self,
        last: LastMessage,
        dead: &DeadLetter,
        key: Option<&ProcessedKey>,
    ) -> Option<LastMessage> {
        let (store, token, from) = (&self.context.store, &self.part.token, self.cursor);
        let committed = self
            .settle(last.sequence, || store.commit_dead_letter(token, from, &last, dead, key))
            .await?;
        if let Err(error) = committed {
            error!(partition = %self.part.partition(), sequence = last.sequence, error = %Chain(&error), "failed to write dead letter");
            return None;
        }
        error!(
            sequence = last.sequence,
            reason = dead.reason,
            error = dead.last_error,
            "webhook moved to the dead letters"
        );
        self.context.metrics.dead_lettered(1);
        self.cursor = last.sequence;
        self.pending.pop_front();
        self.record_progress();
        Some(last)
    }

    /// Moves the first pending webhook to the dead letters.
    async fn give_up(
        &mut self,
        read: &ReadWebhook,
        reason: &str,
        last_error: &str,
    ) -> Option<LastMessage> {
        let envelope = &read.envelope;
        let dead = DeadLetter {
            sequence: read.sequence as i64,
            subject: envelope.subject(),
            connection: Some(envelope.connection.to_string()),
            dedup_key: Some(envelope.dedupe.as_str().to_owned()),
            reason: reason.to_owned(),
            last_error: last_error.to_owned(),
            headers: stream::headers_to_pairs(Some(&envelope.headers())),
            body: envelope.body.to_vec(),
            ..DeadLetter::default()
        };
        let key = envelope.dedupe.as_str().to_owned();
        let last = LastMessage { sequence: read.sequence, key, stored_at: read.stored_at };
        let last = self.commit_dead_letter(last, &dead, Some(&processed_key(read))).await?;
        self.halving.on_committed();
        Some(last)
    }

    fn committed(&mut self, prepared: &[(i32, DecidedWebhook)], last: &LastMessage) {
        self.cursor = last.sequence;
        self.halving.on_committed();
        self.pending.drain(..prepared.len());
        let (mut deliveries, mut messages) = (false, false);
        for (_, DecidedWebhook { sequence, envelope, decision, .. }) in prepared {
            let (connection, kind) = (envelope.connection, envelope.kind);
            match decision {
                Decision::Apply(effects) => {
                    messages |= !effects.messages.is_empty() || !effects.may_share_batch();
                    if effects.delivery.is_some() {
                        deliveries = true;
                        self.context.payloads.insert(envelope);
                    }
                    debug!(sequence, %connection, %kind, outcome = effects.processed_as.as_str(), "webhook committed");
                    self.context.metrics.decided(kind, effects.processed_as.as_str());
                }
                Decision::Ignore { reason, .. } => {
                    debug!(sequence, %connection, %kind, reason = reason.as_str(), "webhook ignored");
                    self.context.metrics.decided(kind, "ignored");
                }
                Decision::DeadLetter { reason, error } => {
                    error!(sequence, %connection, reason, error, "webhook moved to the dead letters");
                    self.context.metrics.decided(kind, "dead_letter");
                    self.context.metrics.dead_lettered(1);
                }
            }
            self.context.usage.webhook(connection, decision);
        }
        if deliveries {
            self.context.wake_dispatch.notify_one();
        }
        if messages {
            self.context.wake_outbox.notify_one();
        }
        self.record_progress();
    }

    fn record_progress(&self) {
        let oldest = self.webhooks().next().map(|read| read.stored_at);
        self.part.progress.record(self.waiting + self.pending.len() as u64, oldest);
    }

    /// Sends a commit until its outcome is known: after an unknown result, and after one without a row, the cursor row says
    /// whether it is in force. `None` when the partition is lost; the inner error is a refusal of the contents.
    async fn settle<F>(&self, to: u64, commit: impl Fn() -> F) -> Option<Result<(), StoreError>>
    where
        F: Future<Output = Result<CommitOutcome, StoreError>>,
    {
        let partition = self.part.partition();
        loop {
            match commit().await {
                Ok(CommitOutcome::Committed) => return Some(Ok(())),
                Err(error) if error.refuses_contents() => return Some(Err(error)),
                Ok(CommitOutcome::NotMatched) => {}
                Err(error) => {
                    warn!(%partition, error = %Chain(&error), "commit has an unknown result; reading the cursor");
                }
            }
            let store = &self.context.store;
            let state = self.retry("read cursor", || store.settled_cursor(partition)).await?;
            let ours = (state.epoch, state.generation)
                == (self.part.token.epoch, self.part.token.generation);
            if ours && state.cursor == to {
                return Some(Ok(()));
            }
            if !ours || state.cursor != self.cursor {
                self.context.metrics.commit_fenced();
                info!(%partition, epoch = self.part.token.epoch, "commit fenced; partition lost");
                self.part.lost.cancel();
                return None;
            }
        }
    }

    /// Repeats a statement until it succeeds; `None` when the partition is lost meanwhile.
    async fn retry<T, F>(&self, what: &str, run: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        loop {
            match run().await {
                Ok(result) => return Some(result),
                Err(error) => {
                    warn!(partition = %self.part.partition(), error = %Chain(&error), "failed to {what}");
                }
            }
            tokio::select! {
                _ = self.part.lost.cancelled() => return None,
                _ = self.part.stop.cancelled() => return None,
                _ = tokio::time::sleep(RETRY_INTERVAL) => {}
            }
        }
    }

    /// Before anything of a stream is committed its creation is recorded, or another would not be told from it.
    async fn record_stream(&self, state: &mut CursorState, created_ns: i64) {
        if state.stream_created_ns.is_none() {
            let (store, token) = (&self.context.store, &self.part.token);
            self.retry("record stream", || store.record_stream(token, created_ns)).await;
            state.stream_created_ns = Some(created_ns);
        }
    }
}

enum Read {
    Messages,
    Opened(shared::follow::StreamState),
    CaughtUp(time::OffsetDateTime),
}
