//! Administration of the stream of a [`TestEnv`], and the progress of workers.

use crate::{eventually::try_eventually, test_env::TestEnv};
use anyhow::Context as _;
use async_nats::jetstream::{self, context::Context, stream::LastRawMessageErrorKind};
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use shared::stream::{
    DEDUP_KEY_HEADER, DedupKey, Envelope, Partition, ReaderEvent, STREAM, StreamReader,
    parse_subject, subject_filter,
};
use sqlx::Row;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};
use tokio::sync::Mutex;

/// Time without another message after which an index counts as complete.
const INDEXED: Duration = Duration::from_millis(30);
/// Maximum number of unconfirmed messages.
const UNCONFIRMED_MAX: usize = 256;
/// Maximum time to open a reader.
const OPENED: Duration = Duration::from_secs(1);

/// Position of a message in the stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub partition: i16,
    pub sequence: i64,
    /// Time at which the stream was created.
    pub created_ns: i64,
}

/// Messages of a stream by dedup key, updated with each query.
#[derive(Default)]
pub(crate) struct StreamIndex(Mutex<Option<Index>>);

struct Index {
    reader: StreamReader,
    created_ns: i64,
    stored: HashMap<String, Stored>,
}

impl Index {
    async fn update(&mut self) {
        loop {
            let within = if self.created_ns == 0 { OPENED } else { INDEXED };
            match tokio::time::timeout(within, self.reader.next()).await {
                Ok(ReaderEvent::Opened(state)) => {
                    if self.created_ns != state.created_ns {
                        self.stored.clear();
                        self.created_ns = state.created_ns;
                        self.reader.restart_at(1);
                    }
                }
                Ok(ReaderEvent::Message(place, message)) => {
                    let id =
                        message.headers.as_ref().and_then(|headers| headers.get(DEDUP_KEY_HEADER));
                    let (Some(id), Some((partition, _))) = (id, parse_subject(&message.subject))
                    else {
                        continue;
                    };
                    let stored = Stored {
                        partition: partition.number() as i16,
                        sequence: place.sequence as i64,
                        created_ns: self.created_ns,
                    };
                    // The first of several copies is processed.
                    self.stored.entry(id.as_str().to_owned()).or_insert(stored);
                }
                Ok(ReaderEvent::CaughtUp(..)) | Err(_) => return,
            }
        }
    }
}

/// Remaining work of the workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Partitions with messages past their cursors.
    pub unread: usize,
    /// Open deliveries: waiting or running.
    pub deliveries: i64,
    /// Messages in the outbox.
    pub messages: i64,
}

impl Unfinished {
    /// Returns true if there is no work left.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unread, deliveries, messages } = self;
        write!(
            f,
            "{unread} partitions are unread; {deliveries} deliveries and {messages} outbox messages are open"
        )
    }
}

impl TestEnv {
    /// Returns JetStream, with all permissions.
    pub fn jetstream(&self) -> Context {
        jetstream::new(self.client().clone())
    }

    /// Returns the number of messages in the stream.
    pub async fn stored(&self) -> anyhow::Result<u64> {
        Ok(self.jetstream().get_stream(STREAM).await?.cached_info().state.messages)
    }

    /// Returns the number of webhooks of this stream generation that intake has committed, minus
    /// the open deliveries.
    pub async fn finished(&self) -> anyhow::Result<u64> {
        let finished = "select (select sum(messages) from partition_cursors)::bigint - (select count(*) from deliveries)";
        let finished: i64 = sqlx::query_scalar(finished).fetch_one(&self.pool).await?;
        Ok(finished.max(0) as u64)
    }

    /// Returns the remaining work.
    pub async fn unfinished(&self) -> anyhow::Result<Unfinished> {
        let stream = self.jetstream().get_stream_no_info(STREAM).await?;
        let last = Partition::all().map(async |partition| {
            match stream.get_last_raw_message_by_subject(&subject_filter(partition)).await {
                Ok(message) => Ok((partition.number() as i16, message.sequence as i64)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    Ok((partition.number() as i16, 0))
                }
                Err(error) => Err(error),
            }
        });
        let last: BTreeMap<i16, i64> = try_join_all(last).await?.into_iter().collect();
        // Read after the stream, and in one snapshot: work that starts later belongs to newer
        // messages.
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

    /// Waits until every webhook is processed and every outbox message is sent or has failed.
    ///
    /// # Errors
    /// If that takes longer than `within`; names the remaining work, and has the logs.
    pub async fn wait_until_processed(&self, within: Duration) -> anyhow::Result<()> {
        let empty = async || self.unfinished().await.ok().filter(Unfinished::is_empty);
        match try_eventually("all webhooks and outbox messages are processed", within, empty).await
        {
            Ok(_) => Ok(()),
            Err(late) => {
                let left = self.unfinished().await.context("failed to query NATS or Postgres")?;
                Err(late.context(left.to_string()).context(self.logs()))
            }
        }
    }

    /// Returns the position of a webhook in the stream.
    pub(crate) async fn find_stored(&self, dedup_key: &DedupKey) -> Option<Stored> {
        let mut index = self.index.0.lock().await;
        let index = index.get_or_insert_with(|| {
            let (js, all) = (self.jetstream(), "slack.in.*.*".to_owned());
            let reader =
                StreamReader::new(js, STREAM, all, format!("index-{}", self.slack.unique()), 1);
            Index { reader, created_ns: 0, stored: HashMap::new() }
        });
        index.update().await;
        index.stored.get(dedup_key.as_str()).copied()
    }

    /// Publishes webhooks as ingest does, in order. Returns the sequence of the last.
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
        stored.await.context("failed to publish webhooks")
    }

    /// Changes the configuration of the stream.
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
