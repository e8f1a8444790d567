//! The stream of a [`TestEnv`], for administrators, and the progress of workers.

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

/// Time without another message after which an index is complete.
const INDEXED: Duration = Duration::from_millis(30);
/// Maximum number of unconfirmed messages.
const UNCONFIRMED_MAX: usize = 256;
/// Maximum time to open a reader.
const OPENED: Duration = Duration::from_secs(1);

/// Position of a message.
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
    async fn read_on(&mut self) {
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
                    // Of several copies the first counts.
                    self.stored.entry(id.as_str().to_owned()).or_insert(stored);
                }
                Ok(ReaderEvent::CaughtUp(..)) | Err(_) => return,
            }
        }
    }
}

/// Work that is not done yet.
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
            "{unread} partitions are not read, {deliveries} deliveries and {messages} messages to Slack are open"
        )
    }
}

impl TestEnv {
    /// Returns JetStream, with the permissions of the tests.
    pub fn jetstream(&self) -> Context {
        jetstream::new(self.client().clone())
    }

    /// Returns the number of messages in the stream.
    pub async fn stored(&self) -> anyhow::Result<u64> {
        Ok(self.jetstream().get_stream(STREAM).await?.cached_info().state.messages)
    }

    /// Returns the number of webhooks of this stream generation that intake has committed and that
    /// have no open delivery.
    pub async fn finished(&self) -> anyhow::Result<u64> {
        let finished = "select (select sum(messages) from partition_cursors)::bigint - (select count(*) from deliveries)";
        let finished: i64 = sqlx::query_scalar(finished).fetch_one(&self.pool).await?;
        Ok(finished.max(0) as u64)
    }

    /// Returns the work that is not done yet.
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
        // After the stream, and in one snapshot: a message past a cursor afterwards is a newer one.
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

    /// Waits until every webhook is processed and every message is sent or given up.
    ///
    /// # Errors
    /// If that takes longer: the remaining work, and the logs.
    pub async fn wait_until_processed(&self, within: Duration) -> anyhow::Result<()> {
        let nothing = async || self.unfinished().await.ok().filter(Unfinished::is_empty);
        match try_eventually("what lies in the stream is worked off", within, nothing).await {
            Ok(_) => Ok(()),
            Err(late) => {
                let left = self.unfinished().await.context("NATS or Postgres is away")?;
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
        index.read_on().await;
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
        stored.await.context("publishing")
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
