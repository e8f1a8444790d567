//! The stream of a [`World`], as its administrator has it: looked at, changed, deleted; and how far workers are in it.

use crate::{until::try_until, world::World};
use anyhow::Context as _;
use async_nats::jetstream::{self, context::Context, stream::LastRawMessageErrorKind};
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use shared::{
    codec::envelope::{DedupeKey, Envelope, MSG_ID},
    follow::{Follow, Followed},
    partition::Partition,
    stream::{STREAM, parse_subject, subjects_of},
};
use sqlx::Row;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};
use tokio::sync::Mutex;

/// Without another message for this long, an index has all of them.
const INDEXED: Duration = Duration::from_millis(30);
/// Webhooks that were published and are not confirmed, at most.
const UNCONFIRMED_MAX: usize = 256;
/// A reader is opened within this.
const OPENED: Duration = Duration::from_secs(1);

/// Where a message lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub partition: i16,
    pub sequence: i64,
    /// When the stream was made.
    pub created_ns: i64,
}

/// The messages of a stream by their dedup keys, read on with every question.
#[derive(Default)]
pub(crate) struct StreamIndex(Mutex<Option<Index>>);

struct Index {
    follow: Follow,
    created_ns: i64,
    stored: HashMap<String, Stored>,
}

impl Index {
    async fn read_on(&mut self) {
        loop {
            let within = if self.created_ns == 0 { OPENED } else { INDEXED };
            match tokio::time::timeout(within, self.follow.next()).await {
                Ok(Followed::Opened(state)) => {
                    if self.created_ns != state.created_ns {
                        self.stored.clear();
                        self.created_ns = state.created_ns;
                        self.follow.restart_at(1);
                    }
                }
                Ok(Followed::Message(place, message)) => {
                    let id = message.headers.as_ref().and_then(|headers| headers.get(MSG_ID));
                    let (Some(id), Some((partition, _))) = (id, parse_subject(&message.subject))
                    else {
                        continue;
                    };
                    let stored = Stored {
                        partition: partition.number() as i16,
                        sequence: place.sequence as i64,
                        created_ns: self.created_ns,
                    };
                    // Of several copies the first is the one that counts.
                    self.stored.entry(id.as_str().to_owned()).or_insert(stored);
                }
                Ok(Followed::CaughtUp(..)) | Err(_) => return,
            }
        }
    }
}

/// What is not handled yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Partitions with messages past their cursors.
    pub unread: usize,
    /// Deliveries that wait or run.
    pub deliveries: i64,
    /// Messages to Slack that are not sent.
    pub messages: i64,
}

impl Unfinished {
    /// Whether there is nothing.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unread, deliveries, messages } = self;
        write!(
            f,
            "{unread} partitions are not read, {deliveries} deliveries and {messages} messages to Slack are open"
        )
    }
}

impl World {
    /// JetStream, for what a test wants to do with it.
    pub fn jetstream(&self) -> Context {
        jetstream::new(self.client().clone())
    }

    /// Messages in the stream.
    pub async fn stored(&self) -> anyhow::Result<u64> {
        Ok(self.jetstream().get_stream(STREAM).await?.cached_info().state.messages)
    }

    /// How many webhooks are handled, whatever came of them: committed by intake, and without an open delivery. Of this
    /// generation of the stream.
    pub async fn finished(&self) -> anyhow::Result<u64> {
        let finished = "select (select sum(messages) from partition_cursors)::bigint - (select count(*) from deliveries)";
        let finished: i64 = sqlx::query_scalar(finished).fetch_one(&self.pool).await?;
        Ok(finished.max(0) as u64)
    }

    /// What of the stream is not handled, or not said, yet.
    pub async fn unfinished(&self) -> anyhow::Result<Unfinished> {
        let stream = self.jetstream().get_stream_no_info(STREAM).await?;
        let last = Partition::all().map(async |partition| {
            match stream.get_last_raw_message_by_subject(&subjects_of(partition)).await {
                Ok(message) => Ok((partition.number() as i16, message.sequence as i64)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    Ok((partition.number() as i16, 0))
                }
                Err(error) => Err(error),
            }
        });
        let last: BTreeMap<i16, i64> = try_join_all(last).await?.into_iter().collect();
        // After the stream, and all in one snapshot: what is past its cursor later was not there before.
        let rows = sqlx::query(
            "select partition, cursor, (select count(*) from deliveries) as deliveries,
                    (select count(*) from outbox) as messages from partition_cursors",
        )
        .fetch_all(&self.pool)
        .await?;
        let unread = rows.iter().filter(|row| last[&row.get("partition")] > row.get("cursor"));
        let first = rows.first().context("64 partitions")?;
        Ok(Unfinished {
            unread: unread.count(),
            deliveries: first.get("deliveries"),
            messages: first.get("messages"),
        })
    }

    /// Waits until everything in the stream is handled, and everything that is to be said is said or was given up.
    ///
    /// # Errors
    /// When that takes longer: what is left, and what the processes logged.
    pub async fn worked_off(&self, within: Duration) -> anyhow::Result<()> {
        let nothing = async || self.unfinished().await.ok().filter(Unfinished::is_nothing);
        match try_until("what lies in the stream is worked off", within, nothing).await {
            Ok(_) => Ok(()),
            Err(late) => {
                let left = self.unfinished().await.context("NATS or Postgres is away")?;
                Err(late.context(left.to_string()).context(self.logs()))
            }
        }
    }

    /// Where a webhook lies in the stream.
    pub(crate) async fn stored_as(&self, dedupe: &DedupeKey) -> Option<Stored> {
        let mut index = self.index.0.lock().await;
        let index = index.get_or_insert_with(|| {
            let (js, all) = (self.jetstream(), "slack.in.*.*".to_owned());
            let follow = Follow::new(js, STREAM, all, format!("index-{}", self.slack.unique()), 1);
            Index { follow, created_ns: 0, stored: HashMap::new() }
        });
        index.read_on().await;
        index.stored.get(dedupe.as_str()).copied()
    }

    /// Stores webhooks in the stream as ingest would, in this order; gives the sequence of the last.
    pub async fn publish(
        &self,
        envelopes: impl IntoIterator<Item = Envelope>,
    ) -> anyhow::Result<u64> {
        let js = &self.jetstream();
        let sent = stream::iter(envelopes).then(async |envelope: Envelope| {
            let (subject, headers) = (envelope.subject(), envelope.headers());
            js.publish_with_headers(subject, headers, envelope.body).await
        });
        let confirmed = sent.map(async |sent| anyhow::Ok(sent?.await?.sequence));
        let stored = confirmed.buffered(UNCONFIRMED_MAX).try_fold(0, async |_, last| Ok(last));
        stored.await.context("publishing")
    }

    /// Changes what the stream is configured to.
    pub async fn change_stream(
        &self,
        change: impl FnOnce(&mut jetstream::stream::Config),
    ) -> anyhow::Result<()> {
        let mut config = self.jetstream().get_stream(STREAM).await?.cached_info().config.clone();
        change(&mut config);
        self.jetstream().update_stream(config).await?;
        Ok(())
    }
}
