//! What every process agrees on about JetStream: names, subjects, limits.
//!
//! One stream, `SLACK_IN`, is a log and nothing else: limits retention, so that it can be replayed;
//! `discard: new`, so that a full stream refuses a webhook instead of dropping an older, accepted one.
//! Nobody acknowledges anything in it. It is made by an operator's job (`tidegate migrate`), never by
//! ingest or worker, which only look whether it is there.

use crate::{partition::Partition, types::ConnectionId};
use async_nats::jetstream::{
    self, ErrorCode,
    context::GetStreamErrorKind,
    kv,
    stream::{Compression, Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;

/// The stream of webhooks.
pub const STREAM: &str = "SLACK_IN";

/// Largest body taken, in bytes: 1 MiB. Slack documents no maximum; its own are far smaller.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Room for headers beside the largest body: NATS `max_payload` and the stream's `max_msg_size` are this
/// much above it.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;

/// JetStream drops a second copy of a dedupe key for this long. Covers Slack's quick retries (at once,
/// 1 min, 5 min); `processed_keys` covers later copies. About 185 bytes of server memory an id.
pub const DEDUPE_WINDOW: Duration = Duration::from_secs(30 * 60);

/// Webhooks stay this long, committed or not.
pub const MAX_AGE: Duration = Duration::from_secs(14 * 24 * 3600);

/// The bucket in which ingest finds every connection.
pub const DIRECTORY_BUCKET: &str = "connections";

/// The bucket in which every live ingest says how far it has read the directory.
pub const INGESTS_BUCKET: &str = "ingests";

/// An ingest that said nothing for this long is gone.
pub const INGEST_TTL: Duration = Duration::from_secs(5);

/// Below it lies a subject per ingest, on which it hears answers: workers publish, only that ingest listens.
pub const REPLY_SUBJECTS: &str = "slack.reply";

/// What an operator decides about the stream. What is left open stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sizing {
    /// Copies of everything: 3 in production, 1 on one machine.
    pub replicas: Option<usize>,
    /// Room in bytes. Publishing fails when it is used up.
    pub max_bytes: Option<i64>,
}

/// A new stream's copies, when nobody says otherwise.
const REPLICAS: usize = 1;
/// A new stream's room in bytes, when nobody says otherwise.
const MAX_BYTES: i64 = 1 << 30;

/// `slack.in.<partition>.<connection>`.
pub fn subject(partition: Partition, connection: ConnectionId) -> String {
    format!("slack.in.{partition}.{connection}")
}

/// The subjects of one partition.
pub fn subjects_of(partition: Partition) -> String {
    format!("slack.in.{partition}.*")
}

/// The inverse of [`subject`].
pub fn parse_subject(subject: &str) -> Option<(Partition, ConnectionId)> {
    let (partition, connection) = subject.strip_prefix("slack.in.")?.split_once('.')?;
    let number: u16 = partition.parse().ok()?;
    // One spelling: `parse` would also take `+7` and `07`.
    let partition = Partition::try_from(number).ok().filter(|p| p.to_string() == partition)?;
    Some((partition, connection.parse().ok()?))
}

/// Headers as they are kept in Postgres.
pub fn headers_to_pairs(headers: Option<&HeaderMap>) -> Vec<(String, String)> {
    let pairs = headers.into_iter().flat_map(|headers| headers.iter());
    pairs
        .flat_map(|(name, values)| values.iter().map(move |v| (name.to_string(), v.to_string())))
        .collect()
}

/// The inverse of [`headers_to_pairs`]. A pair that is no header is left out; decoding reports what is missing.
pub fn pairs_to_headers(pairs: &[(String, String)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.append(name, value);
        }
    }
    headers
}

/// The stream as it has to be.
fn config(replicas: usize, max_bytes: i64) -> Config {
    Config {
        name: STREAM.into(),
        subjects: vec!["slack.in.*.*".into()],
        storage: StorageType::File,
        num_replicas: replicas,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        max_age: MAX_AGE,
        max_bytes,
        max_message_size: (BODY_BYTES_MAX + HEADER_BYTES_MAX) as i32,
        duplicate_window: DEDUPE_WINDOW,
        allow_direct: true,
        deny_delete: true,
        compression: Some(Compression::S2),
        ..Config::default()
    }
}

/// In which respects a stream is not as it has to be; its copies and its room are the operator's to decide.
pub fn differences(there: &Config) -> Vec<&'static str> {
    let wanted = config(there.num_replicas, there.max_bytes);
    [
        ("its subjects", there.subjects == wanted.subjects),
        ("how long it keeps", there.max_age == wanted.max_age),
        ("what it does when it is full", there.discard == wanted.discard),
        ("its retention", there.retention == wanted.retention),
        ("its storage", there.storage == wanted.storage),
        ("its largest message", there.max_message_size == wanted.max_message_size),
        ("its window for duplicates", there.duplicate_window == wanted.duplicate_window),
        ("whether single messages may be deleted", there.deny_delete == wanted.deny_delete),
        ("direct reads", there.allow_direct == wanted.allow_direct),
    ]
    .into_iter()
    .filter_map(|(what, same)| (!same).then_some(what))
    .collect()
}

/// Makes the stream and the buckets, or brings what is there to this shape. Safe to run again.
///
/// # Errors
/// What JetStream said, with the thing it said it about.
pub async fn ensure(js: &jetstream::Context, sizing: Sizing) -> Result<(), NotEnsured> {
    let there = match js.get_stream(STREAM).await {
        Ok(stream) => Some(stream.cached_info().config.clone()),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                None
            }
            _ => return Err(failed("question whether there is a stream")(error)),
        },
    };
    let (replicas, max_bytes) =
        there.map_or((REPLICAS, MAX_BYTES), |c| (c.num_replicas, c.max_bytes));
    let replicas = sizing.replicas.unwrap_or(replicas);
    let stream = config(replicas, sizing.max_bytes.unwrap_or(max_bytes));
    js.create_or_update_stream(stream).await.map_err(failed("stream SLACK_IN"))?;
    js.create_or_update_key_value(kv::Config {
        bucket: DIRECTORY_BUCKET.into(),
        description: "What ingest knows of every connection".into(),
        history: 1,
        num_replicas: replicas,
        ..kv::Config::default()
    })
    .await
    .map_err(failed("bucket connections"))?;
    js.create_or_update_key_value(kv::Config {
        bucket: INGESTS_BUCKET.into(),
        description: "How far every live ingest has read the directory".into(),
        history: 1,
        max_age: INGEST_TTL,
        num_replicas: replicas,
        ..kv::Config::default()
    })
    .await
    .map_err(failed("bucket ingests"))?;
    Ok(())
}

/// Deletes everything that a connection sent from the stream; gives how many webhooks that were.
///
/// # Errors
/// What JetStream said.
pub async fn purge_connection(
    js: &jetstream::Context,
    connection: ConnectionId,
) -> Result<u64, NotEnsured> {
    let stream = js.get_stream(STREAM).await.map_err(failed("look at stream SLACK_IN"))?;
    let purge = stream.purge().filter(format!("slack.in.*.{connection}"));
    Ok(purge.await.map_err(failed("purge of a connection"))?.purged)
}

fn failed<E>(what: &'static str) -> impl FnOnce(E) -> NotEnsured
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| NotEnsured { what, source: error.into() }
}

/// JetStream did not make something we need.
#[derive(Debug, thiserror::Error)]
#[error("JetStream refused the {what}")]
pub struct NotEnsured {
    what: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_one_reading() {
        let connection: ConnectionId = format!("{:032x}", 7).parse().expect("an id");
        let partition = Partition::try_from(63).expect("below 64");
        assert_eq!(parse_subject(&subject(partition, connection)), Some((partition, connection)));
        assert_eq!(parse_subject(&format!("slack.in.64.{connection}")), None);
    }
}
