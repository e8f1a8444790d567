//! Names, subjects, limits and configuration of JetStream.
//!
//! The stream `SLACK_IN` is a log: limits retention keeps webhooks for replays, and with `discard:
//! new` a full stream rejects a webhook instead of dropping an accepted one. Its readers do not
//! acknowledge messages. An operator's job (`tidegate migrate`) creates the stream. Ingest and
//! worker only check that it exists.

mod envelope;
mod partition;
mod reader;

pub use envelope::{
    DEDUP_KEY_HEADER, DecodeError, DedupKey, ENVELOPE_SCHEMA, Envelope, FORWARDED_DELIVERY,
    RESPONSE_LATE, RESPONSE_RELAYED, RetryHeaders, SyncResponseWindow,
};
pub use partition::{
    Conversation, Lane, PARTITIONS, PARTITIONS_PER_CONNECTION, Partition, PartitionRangeError,
};
pub use reader::{BoxError, ReaderEvent, StreamPosition, StreamReader, StreamState, first_since};

use crate::domain::ConnectionId;
use async_nats::jetstream::{
    self, ErrorCode,
    context::GetStreamErrorKind,
    kv,
    stream::{Compression, Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;

/// Name of the stream of webhooks.
pub const STREAM: &str = "SLACK_IN";

/// Maximum size of a body: 1 MiB. Slack documents no maximum. Its bodies are far smaller.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Room for headers beside the largest body. NATS `max_payload` and the stream's `max_msg_size`
/// exceed the body's maximum by this size.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;

/// Period in which JetStream drops a second copy of a dedup key. Covers Slack's retries (at once, 1
/// min, 5 min). `processed_keys` covers later copies. Costs about 185 bytes of server memory per
/// id.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(30 * 60);

/// Retention of webhooks, committed or not.
pub const MAX_AGE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Bucket with the directory.
pub const DIRECTORY_BUCKET: &str = "connections";

/// Bucket with the directory revision that each live ingest has applied.
pub const INGESTS_BUCKET: &str = "ingests";

/// Time without an update after which an ingest counts as gone.
pub const INGEST_TTL: Duration = Duration::from_secs(5);

/// Prefix of the subjects for sync responses, one per ingest. Workers publish, one ingest listens.
pub const REPLY_SUBJECTS: &str = "slack.reply";

/// Operator's settings of the stream. `None` keeps the current value.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamSize {
    /// Replicas: 3 in production, 1 on one machine.
    pub replicas: Option<usize>,
    /// Maximum size in bytes. Publishing fails when the stream is full.
    pub max_bytes: Option<i64>,
}

/// Default replicas of a new stream.
const DEFAULT_REPLICAS: usize = 1;
/// Default size of a new stream in bytes.
const DEFAULT_MAX_BYTES: i64 = 1 << 30;

/// Returns `slack.in.<partition>.<connection>`.
pub fn subject(partition: Partition, connection: ConnectionId) -> String {
    format!("slack.in.{partition}.{connection}")
}

/// Returns the subject filter of a partition.
pub fn subject_filter(partition: Partition) -> String {
    format!("slack.in.{partition}.*")
}

/// Parses a result of [`subject`].
pub fn parse_subject(subject: &str) -> Option<(Partition, ConnectionId)> {
    let (partition, connection) = subject.strip_prefix("slack.in.")?.split_once('.')?;
    let number: u16 = partition.parse().ok()?;
    // `parse` would also accept `+7` and `07`.
    let partition = Partition::try_from(number).ok().filter(|p| p.to_string() == partition)?;
    Some((partition, connection.parse().ok()?))
}

/// Converts headers to the form stored in Postgres.
pub fn headers_to_pairs(headers: Option<&HeaderMap>) -> Vec<(String, String)> {
    let pairs = headers.into_iter().flat_map(|headers| headers.iter());
    pairs
        .flat_map(|(name, values)| values.iter().map(move |v| (name.to_string(), v.to_string())))
        .collect()
}

/// Reverses [`headers_to_pairs`]. Omits invalid headers. Decoding reports what is missing.
pub fn pairs_to_headers(pairs: &[(String, String)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.append(name, value);
        }
    }
    headers
}

/// Returns the required configuration.
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
        duplicate_window: DEDUP_WINDOW,
        allow_direct: true,
        // An erasure deletes single messages, which overwrites them. Only operators and workers
        // have the right.
        deny_delete: false,
        compression: Some(Compression::S2),
        ..Config::default()
    }
}

/// Returns the configuration of the directory's bucket. The client's `kv::Config` allows messages
/// that expire only with markers of their expiry, which writers of a key would have to replace.
fn directory_config(replicas: usize) -> Config {
    Config {
        name: format!("KV_{DIRECTORY_BUCKET}"),
        description: Some("Directory: connections for ingest".into()),
        subjects: vec![format!("$KV.{DIRECTORY_BUCKET}.>")],
        storage: StorageType::File,
        num_replicas: replicas,
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_message_ttl: true,
        allow_direct: true,
        allow_rollup: true,
        deny_delete: true,
        ..Config::default()
    }
}

/// Returns the names of the settings of a stream that differ from the required configuration,
/// except for replicas and size.
pub fn differences(current: &Config) -> Vec<&'static str> {
    let wanted = config(current.num_replicas, current.max_bytes);
    [
        ("subjects", current.subjects == wanted.subjects),
        ("maximum age", current.max_age == wanted.max_age),
        ("discard policy", current.discard == wanted.discard),
        ("retention", current.retention == wanted.retention),
        ("storage", current.storage == wanted.storage),
        ("maximum message size", current.max_message_size == wanted.max_message_size),
        ("duplicate window", current.duplicate_window == wanted.duplicate_window),
        ("deletion of single messages", current.deny_delete == wanted.deny_delete),
        ("direct reads", current.allow_direct == wanted.allow_direct),
    ]
    .into_iter()
    .filter_map(|(name, same)| (!same).then_some(name))
    .collect()
}

/// Creates or updates the stream and the buckets. Idempotent.
///
/// # Errors
/// Failure of JetStream, with the name of the resource.
pub async fn provision(js: &jetstream::Context, sizing: StreamSize) -> Result<(), ProvisionError> {
    let current = match js.get_stream(STREAM).await {
        Ok(stream) => Some(stream.cached_info().config.clone()),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                None
            }
            _ => return Err(failed("query stream SLACK_IN")(error)),
        },
    };
    let (replicas, max_bytes) =
        current.map_or((DEFAULT_REPLICAS, DEFAULT_MAX_BYTES), |c| (c.num_replicas, c.max_bytes));
    let replicas = sizing.replicas.unwrap_or(replicas);
    let stream = config(replicas, sizing.max_bytes.unwrap_or(max_bytes));
    js.create_or_update_stream(stream).await.map_err(failed("create stream SLACK_IN"))?;
    js.create_or_update_stream(directory_config(replicas))
        .await
        .map_err(failed("create bucket connections"))?;
    js.create_or_update_key_value(kv::Config {
        bucket: INGESTS_BUCKET.into(),
        description: "Applied directory revision of each ingest".into(),
        history: 1,
        max_age: INGEST_TTL,
        num_replicas: replicas,
        ..kv::Config::default()
    })
    .await
    .map_err(failed("create bucket ingests"))?;
    Ok(())
}

/// Deletes all webhooks of a connection from the stream. Returns their number.
///
/// # Errors
/// Failure of JetStream.
pub async fn purge_connection(
    js: &jetstream::Context,
    connection: ConnectionId,
) -> Result<u64, ProvisionError> {
    let stream = js.get_stream(STREAM).await.map_err(failed("query stream SLACK_IN"))?;
    let purge = stream.purge().filter(format!("slack.in.*.{connection}"));
    Ok(purge.await.map_err(failed("purge a connection"))?.purged)
}

fn failed<E>(action: &'static str) -> impl FnOnce(E) -> ProvisionError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| ProvisionError { action, source: error.into() }
}

/// Failure to create or change a resource of JetStream.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct ProvisionError {
    action: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_subjects() {
        let connection: ConnectionId = format!("{:032x}", 7).parse().expect("an id");
        let partition = Partition::try_from(63).expect("below 64");
        assert_eq!(parse_subject(&subject(partition, connection)), Some((partition, connection)));
        assert_eq!(parse_subject(&format!("slack.in.64.{connection}")), None);
    }
}
