//! A stream read from a sequence on, in order and without gaps, for as long as the process lives.
//!
//! In: stream, subjects, and the first sequence wanted. Out: messages, each once and in order, and word of
//! having caught up. Used for a partition (worker) and for the directory (ingest).
//!
//! The reader is an ack-less pull consumer of our own making, numbered by attempt, so that nobody else can
//! ever pull from it. JetStream numbers what it delivers; a number left out, a missed heartbeat, a lost
//! consumer or any error ends it, and a new one starts at the next sequence wanted. When nothing comes for
//! a while the consumer is asked how far it thinks it is: a delivery that got lost with nothing behind it
//! shows only there. Not the client's ordered consumer, which stood still for 17 s after a server restart.

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    stream::{LastRawMessageErrorKind, Stream},
};
use futures_util::{FutureExt, StreamExt};
use std::time::Duration;
use time::OffsetDateTime;
use tracing::{debug, warn};

/// A server that says nothing for this long is taken for gone. Twice the heartbeat is the client's rule.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long one pull request stays open.
const PULL_EXPIRES: Duration = Duration::from_secs(2);
/// Messages per pull request.
const BATCH: usize = 256;
/// Bytes per pull request. At least the largest message with its headers, or NATS answers 409 for ever; with a pull
/// under way while the one before is consumed, a reader holds about twice as much.
const BATCH_BYTES: usize = 3 * 512 * 1024;
const _: () =
    assert!(BATCH_BYTES > crate::stream::BODY_BYTES_MAX + crate::stream::HEADER_BYTES_MAX + 4096);
/// Without a message for this long, the consumer is asked how far it is.
const IDLE: Duration = Duration::from_secs(5);
/// The server forgets a consumer whose process is gone after this long.
const INACTIVE: Duration = Duration::from_secs(10);
/// Failures in a row before a warning: a server that restarts causes some.
const FAILURES_QUIET: u32 = 8;
/// Longest that the first message since a time may take to come.
const FIRST_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait before the next try after an error.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A stream being read.
pub struct Follow {
    js: jetstream::Context,
    stream: String,
    filter: String,
    name: String,
    /// Behind the last message of ours, and not behind others' that were skipped: a stream that loses its end may get one of
    /// ours in their place.
    next: u64,
    attempt: u32,
    failures: u32,
    open: Option<Open>,
}

struct Open {
    messages: pull::Stream,
    consumer: PullConsumer,
    delivered: u64,
    caught_up: Option<(u64, OffsetDateTime)>,
}

/// What following brings.
pub enum Followed {
    /// A reader was opened; this is the stream it reads.
    Opened(StreamState),
    /// The next message, and where in the stream it is.
    Message(Place, Box<jetstream::Message>),
    /// Every message of ours up to this sequence, and before this time of the server's clock, has been given out.
    CaughtUp(u64, OffsetDateTime),
}

/// Where in the stream a message is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its sequence.
    pub sequence: u64,
    /// When the stream got it, by the server's clock.
    pub stored_at: OffsetDateTime,
    /// How many of ours came after it, when it was delivered.
    pub waiting: u64,
}

/// The stream as it was when a reader was opened.
#[derive(Debug, Clone, Copy)]
pub struct StreamState {
    /// When it was made, in nanoseconds since 1970: another number is another stream.
    pub created_ns: i64,
    /// The oldest sequence it still holds.
    pub first_sequence: u64,
    /// The newest sequence it holds.
    pub last_sequence: u64,
}

/// Why reading ended: what NATS said.
pub type Broken = Box<dyn std::error::Error + Send + Sync>;

impl Follow {
    /// Reads `filter` of `stream` from sequence `next` on. `name` makes the consumer's name unique: say who
    /// reads, and under which epoch.
    pub fn new(
        js: jetstream::Context,
        stream: &str,
        filter: String,
        name: String,
        next: u64,
    ) -> Self {
        let stream = stream.to_owned();
        Self { js, stream, filter, name, next, attempt: 0, failures: 0, open: None }
    }

    /// Begins again at another sequence, when the stream is not the one that was read before.
    pub fn restart_at(&mut self, next: u64) {
        self.next = next;
        self.open = None;
    }

    /// The sequence from which on nothing was given out yet.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// How many messages of ours the stream holds that were not given out, asked now; `None` when nobody can say.
    pub async fn waiting(&mut self) -> Option<u64> {
        let open = self.open.as_mut()?;
        let given_out = open.delivered;
        let info = open.consumer.info().await.ok()?;
        Some(info.num_pending + info.delivered.consumer_sequence.saturating_sub(given_out))
    }

    /// Waits for what comes next, however long the server is away. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Followed {
        loop {
            match self.step().await {
                Ok(followed) => {
                    // To open is no success: what opens and then never reads must not be tried at full speed.
                    if !matches!(followed, Followed::Opened(_)) {
                        self.failures = 0;
                    }
                    return followed;
                }
                Err(error) if self.failures == FAILURES_QUIET => {
                    warn!(reader = %self.name, next = self.next, %error, "reading fails again and again");
                    self.retreat().await;
                }
                Err(error) => {
                    debug!(reader = %self.name, next = self.next, %error, "reader ended; opening another");
                    self.retreat().await;
                }
            }
        }
    }

    /// The next message, if it has already come; a report of having caught up before it is dropped. Nothing is waited for.
    pub async fn ready(&mut self) -> Option<Followed> {
        let open = self.open.as_mut()?;
        let message = open.messages.next().now_or_never()?;
        match self.received(message.ok_or("the pull ended".into()).and_then(|m| Ok(m?))) {
            Ok(followed) => Some(followed),
            Err(error) => {
                debug!(reader = %self.name, next = self.next, %error, "reader ended; opening another");
                self.open = None;
                None
            }
        }
    }

    async fn retreat(&mut self) {
        self.open = None;
        let wait = Duration::from_millis(20 << self.failures.min(6)).min(BACKOFF_MAX);
        self.failures += 1;
        tokio::time::sleep(wait).await;
    }

    async fn step(&mut self) -> Result<Followed, Broken> {
        let Some(open) = &mut self.open else {
            return self.reopen().await.map(Followed::Opened);
        };
        if let Some((through, at)) = open.caught_up.take() {
            return Ok(Followed::CaughtUp(through, at));
        }
        let Ok(next) = tokio::time::timeout(IDLE, open.messages.next()).await else {
            return self.look_whether_idle().await;
        };
        self.received(next.ok_or("the pull ended".into()).and_then(|message| Ok(message?)))
    }

    fn received(
        &mut self,
        message: Result<jetstream::Message, Broken>,
    ) -> Result<Followed, Broken> {
        let message = message?;
        let open = self.open.as_mut().ok_or("not open")?;
        let (place, delivered) = {
            let info = message.info()?;
            let (sequence, stored_at) = (info.stream_sequence, info.published);
            (Place { sequence, stored_at, waiting: info.pending }, info.consumer_sequence)
        };
        let sequence = place.sequence;
        open.delivered += 1;
        if delivered != open.delivered || sequence < self.next {
            return Err(
                format!("delivery {delivered} came where {} was due", open.delivered).into()
            );
        }
        open.caught_up = (place.waiting == 0).then_some((sequence, place.stored_at));
        self.next = sequence + 1;
        Ok(Followed::Message(place, Box::new(message)))
    }

    async fn reopen(&mut self) -> Result<StreamState, Broken> {
        self.attempt += 1;
        let stream = self.js.get_stream(&self.stream).await?;
        let info = stream.cached_info();
        let state = StreamState {
            created_ns: info.created.unix_timestamp_nanos() as i64, // good until 2262
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
                inactive_threshold: INACTIVE,
                ..pull::Config::default()
            })
            .await?;
        let caught_up = self.end_of_idle(&stream).await?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .max_bytes_per_batch(BATCH_BYTES)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await?;
        self.open = Some(Open { messages, consumer, delivered: 0, caught_up });
        Ok(state)
    }

    async fn look_whether_idle(&mut self) -> Result<Followed, Broken> {
        let stream = self.js.get_stream(&self.stream).await?;
        let end = self.end_of_idle(&stream).await?;
        let open = self.open.as_mut().ok_or("not open")?;
        let info = open.consumer.info().await?;
        match end {
            Some((through, at)) if info.delivered.consumer_sequence == open.delivered => {
                Ok(Followed::CaughtUp(through, at))
            }
            _ => Err("deliveries were lost".into()),
        }
    }

    /// The stream's end, if nothing of ours lies between what was given out and there. Both facts are the leader's,
    /// and its end is looked at first: the consumer may sit on a replica that lags behind, and would claim too much.
    async fn end_of_idle(&self, stream: &Stream) -> Result<Option<(u64, OffsetDateTime)>, Broken> {
        let state = stream.get_info().await?.state;
        let (end, time) = (state.last_sequence, state.last_timestamp);
        let ours = match stream.get_last_raw_message_by_subject(&self.filter).await {
            Ok(message) => message.sequence,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
            Err(error) => return Err(error.into()),
        };
        Ok((ours < self.next).then_some((end, time)))
    }
}

/// The first sequence of `filter` that the stream got at or after a time; `None` when there is none. `reader` makes the
/// name of the consumer that is asked; it goes by itself.
///
/// # Errors
/// What NATS said.
pub async fn first_since(
    stream: &Stream,
    filter: String,
    since: OffsetDateTime,
    reader: String,
) -> Result<Option<u64>, Broken> {
    let mut consumer = stream
        .create_consumer(pull::Config {
            name: Some(reader),
            filter_subject: filter.clone(),
            deliver_policy: DeliverPolicy::ByStartTime { start_time: since },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: INACTIVE,
            ..pull::Config::default()
        })
        .await?;
    if consumer.info().await?.num_pending == 0 {
        // Its replica may lag behind; the leader knows.
        return match stream.get_last_raw_message_by_subject(&filter).await {
            Ok(last) if last.time < since => Ok(None),
            Ok(_) => Err("the consumer lags behind the stream".into()),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        };
    }
    let batch = consumer.batch().max_messages(1).expires(FIRST_WITHIN);
    let first = batch.messages().await?.next().await.ok_or("it did not come in time")??;
    Ok(Some(first.info()?.stream_sequence))
}
