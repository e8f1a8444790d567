//! Reader of a stream: every message from a sequence on, in order and without gaps.
//!
//! Workers read partitions with it, ingest reads the directory. The caller gives stream, subject
//! filter and first sequence, and gets messages and reports that the reader has caught up.
//!
//! The reader is a pull consumer without acknowledgements, with a name per attempt, so that no
//! other reader pulls from it. JetStream numbers deliveries: a skipped number, a missed heartbeat,
//! a lost consumer or any error ends the consumer, and a new one starts at the next sequence. When
//! no message arrives for a while, the reader compares the consumer's position with its own: only
//! that shows a lost last delivery. The client's ordered consumer is not used because it stalled
//! for 17 s after a server restart.

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    stream::{LastRawMessageErrorKind, Stream},
};
use futures_util::{FutureExt, StreamExt};
use std::time::Duration;
use time::OffsetDateTime;
use tracing::{debug, warn};

/// Interval of the server's heartbeats. The client reports a lost consumer after two intervals
/// without one.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Lifetime of a pull request.
const PULL_EXPIRES: Duration = Duration::from_secs(2);
/// Maximum number of messages per pull request.
const BATCH: usize = 256;
/// Maximum bytes per pull request. At least the largest message with its headers: otherwise NATS
/// rejects each pull with 409. A reader holds about twice this size, because it pulls while it
/// consumes.
const BATCH_BYTES: usize = 3 * 512 * 1024;
const _: () =
    assert!(BATCH_BYTES > crate::stream::BODY_BYTES_MAX + crate::stream::HEADER_BYTES_MAX + 4096);
/// Time without a message after which the reader checks the consumer's position.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which the server deletes a consumer whose process is gone.
const CONSUMER_TTL: Duration = Duration::from_secs(10);
/// Consecutive failures before a warning. A restarting server causes a few.
const QUIET_FAILURES_MAX: u32 = 8;
/// Maximum wait for the first message since a time.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum wait before the next attempt after an error.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Reader of a stream.
pub struct StreamReader {
    js: jetstream::Context,
    stream: String,
    filter: String,
    name: String,
    /// Sequence after the last returned message. Messages that the filter skips do not advance it:
    /// a stream that loses its end may store a matching message in their place.
    next: u64,
    attempt: u32,
    failures: u32,
    consumer: Option<OpenConsumer>,
}

struct OpenConsumer {
    messages: pull::Stream,
    consumer: PullConsumer,
    delivered: u64,
    caught_up: Option<(u64, OffsetDateTime)>,
}

/// Event of a reader.
pub enum ReaderEvent {
    /// A consumer was created on this stream.
    Opened(StreamState),
    /// Next message and its position.
    Message(StreamPosition, Box<jetstream::Message>),
    /// Every matching message up to this sequence, and before this time of the server's clock, was
    /// returned.
    CaughtUp(u64, OffsetDateTime),
}

/// Position of a message in the stream.
#[derive(Debug, Clone, Copy)]
pub struct StreamPosition {
    /// Sequence.
    pub sequence: u64,
    /// Time at which the stream stored the message, by the server's clock.
    pub stored_at: OffsetDateTime,
    /// Number of matching messages after this one at the time of delivery.
    pub waiting: u64,
}

/// State of the stream when a consumer was created.
#[derive(Debug, Clone, Copy)]
pub struct StreamState {
    /// Creation time in nanoseconds since 1970. A different value means a different stream.
    pub created_ns: i64,
    /// Oldest stored sequence.
    pub first_sequence: u64,
    /// Newest stored sequence.
    pub last_sequence: u64,
}

/// Failure of NATS.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl StreamReader {
    /// Returns a reader of `filter` in `stream` from sequence `next` on. `name` makes the
    /// consumer's name unique: reader and epoch.
    pub fn new(
        js: jetstream::Context,
        stream: &str,
        filter: String,
        name: String,
        next: u64,
    ) -> Self {
        let stream = stream.to_owned();
        Self { js, stream, filter, name, next, attempt: 0, failures: 0, consumer: None }
    }

    /// Continues at another sequence, after a stream reset.
    pub fn restart_at(&mut self, next: u64) {
        self.next = next;
        self.consumer = None;
    }

    /// Returns the sequence after the last returned message.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Waits for the next event, without a time limit. Cancellation-safe.
    pub async fn next(&mut self) -> ReaderEvent {
        loop {
            match self.step().await {
                Ok(event) => {
                    // Creating a consumer does not count as success: otherwise a consumer that can
                    // be created but not read would be retried without backoff.
                    if !matches!(event, ReaderEvent::Opened(_)) {
                        self.failures = 0;
                    }
                    return event;
                }
                Err(error) if self.failures == QUIET_FAILURES_MAX => {
                    warn!(reader = %self.name, next = self.next, %error, "failed to read stream");
                    self.back_off().await;
                }
                Err(error) => {
                    debug!(reader = %self.name, next = self.next, %error, "stream reader closed");
                    self.back_off().await;
                }
            }
        }
    }

    /// Returns the next message if it has already arrived, without waiting. Drops an earlier
    /// caught-up report.
    pub async fn next_if_ready(&mut self) -> Option<ReaderEvent> {
        let open = self.consumer.as_mut()?;
        let message = open.messages.next().now_or_never()?;
        match self.accept(message.ok_or("the pull ended".into()).and_then(|m| Ok(m?))) {
            Ok(event) => Some(event),
            Err(error) => {
                debug!(reader = %self.name, next = self.next, %error, "stream reader closed");
                self.consumer = None;
                None
            }
        }
    }

    async fn back_off(&mut self) {
        self.consumer = None;
        let wait = Duration::from_millis(20 << self.failures.min(6)).min(BACKOFF_MAX);
        self.failures += 1;
        tokio::time::sleep(wait).await;
    }

    async fn step(&mut self) -> Result<ReaderEvent, BoxError> {
        let Some(open) = &mut self.consumer else {
            return self.reopen().await.map(ReaderEvent::Opened);
        };
        if let Some((through, at)) = open.caught_up.take() {
            return Ok(ReaderEvent::CaughtUp(through, at));
        }
        let Ok(next) = tokio::time::timeout(IDLE_TIMEOUT, open.messages.next()).await else {
            return self.check_idle().await;
        };
        self.accept(next.ok_or("the pull ended".into()).and_then(|message| Ok(message?)))
    }

    fn accept(
        &mut self,
        message: Result<jetstream::Message, BoxError>,
    ) -> Result<ReaderEvent, BoxError> {
        let message = message?;
        let open = self.consumer.as_mut().ok_or("the consumer is closed")?;
        let (position, delivered) = {
            let info = message.info()?;
            let (sequence, stored_at) = (info.stream_sequence, info.published);
            (StreamPosition { sequence, stored_at, waiting: info.pending }, info.consumer_sequence)
        };
        let sequence = position.sequence;
        open.delivered += 1;
        if delivered != open.delivered || sequence < self.next {
            return Err(
                format!("expected delivery {}, received {delivered}", open.delivered).into()
            );
        }
        open.caught_up = (position.waiting == 0).then_some((sequence, position.stored_at));
        self.next = sequence + 1;
        Ok(ReaderEvent::Message(position, Box::new(message)))
    }

    async fn reopen(&mut self) -> Result<StreamState, BoxError> {
        self.attempt += 1;
        let stream = self.js.get_stream(&self.stream).await?;
        let info = stream.cached_info();
        let state = StreamState {
            created_ns: info.created.unix_timestamp_nanos() as i64, // valid until 2262
            first_sequence: info.state.first_sequence,
            last_sequence: info.state.last_sequence,
        };
        let consumer = stream
            .create_consumer(pull::Config {
                name: Some(format!("{}-{}", self.name, self.attempt)),
                filter_subject: self.filter.clone(),
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next.max(1) },
                ack_policy: AckPolicy::None,
                memory_storage: true,
                num_replicas: 1,
                inactive_threshold: CONSUMER_TTL,
                ..pull::Config::default()
            })
            .await?;
        let caught_up = self.end_if_idle(&stream).await?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .max_bytes_per_batch(BATCH_BYTES)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await?;
        self.consumer = Some(OpenConsumer { messages, consumer, delivered: 0, caught_up });
        Ok(state)
    }

    async fn check_idle(&mut self) -> Result<ReaderEvent, BoxError> {
        let stream = self.js.get_stream(&self.stream).await?;
        let end = self.end_if_idle(&stream).await?;
        let open = self.consumer.as_mut().ok_or("the consumer is closed")?;
        let info = open.consumer.info().await?;
        match end {
            Some((through, at)) if info.delivered.consumer_sequence == open.delivered => {
                Ok(ReaderEvent::CaughtUp(through, at))
            }
            _ => Err("deliveries were lost".into()),
        }
    }

    /// Returns the last sequence and time of the stream if every matching message was returned.
    /// Queries the leader, the last sequence first: otherwise a message that a lagging replica
    /// lacks, or that arrives between the queries, would be skipped.
    async fn end_if_idle(
        &self,
        stream: &Stream,
    ) -> Result<Option<(u64, OffsetDateTime)>, BoxError> {
        let state = stream.get_info().await?.state;
        let (end, time) = (state.last_sequence, state.last_timestamp);
        let last_matching = match stream.get_last_raw_message_by_subject(&self.filter).await {
            Ok(message) => message.sequence,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
            Err(error) => return Err(error.into()),
        };
        Ok((last_matching < self.next).then_some((end, time)))
    }
}

/// Returns the first sequence of `filter` that was stored at or after a time, or `None` without
/// one. `reader` names a temporary consumer, which the server deletes.
///
/// # Errors
/// Any failure of NATS.
pub async fn first_since(
    stream: &Stream,
    filter: String,
    since: OffsetDateTime,
    reader: String,
) -> Result<Option<u64>, BoxError> {
    let mut consumer = stream
        .create_consumer(pull::Config {
            name: Some(reader),
            filter_subject: filter.clone(),
            deliver_policy: DeliverPolicy::ByStartTime { start_time: since },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: CONSUMER_TTL,
            ..pull::Config::default()
        })
        .await?;
    if consumer.info().await?.num_pending == 0 {
        // The consumer's replica may lag. The leader's state is authoritative.
        return match stream.get_last_raw_message_by_subject(&filter).await {
            Ok(last) if last.time < since => Ok(None),
            Ok(_) => Err("the consumer lags behind the stream".into()),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        };
    }
    let batch = consumer.batch().max_messages(1).expires(FIRST_MESSAGE_TIMEOUT);
    let first = batch.messages().await?.next().await.ok_or("the first message timed out")??;
    Ok(Some(first.info()?.stream_sequence))
}
