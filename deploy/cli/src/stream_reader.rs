//! Access to the stream for commands that read or count webhooks.

use anyhow::Context;
use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use shared::{
    domain::ConnectionId,
    stream::{self, Partition, STREAM},
};
use std::time::Duration;

/// Opens the stream of webhooks.
pub async fn open(js: &jetstream::Context) -> anyhow::Result<Stream> {
    js.get_stream(STREAM).await.with_context(|| {
        format!("failed to open stream {STREAM}; check TIDEGATE_NATS_URL, and run tidegate migrate")
    })
}

/// Returns the number of webhooks of a partition in the stream after a sequence.
///
/// Creates a consumer and deletes it.
pub async fn count_after(
    stream: &Stream,
    partition: Partition,
    sequence: u64,
) -> anyhow::Result<u64> {
    let name = consumer_name("lag")?;
    let consumer = stream
        .create_consumer(pull::Config {
            name: Some(name.clone()),
            filter_subject: stream::subject_filter(partition),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: sequence + 1 },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: Duration::from_secs(5),
            ..pull::Config::default()
        })
        .await
        .with_context(|| format!("failed to create a consumer for partition {partition}"))?;
    // All commands and workers share the maximum number of consumers of the stream.
    let deleted = stream.delete_consumer(&name).await;
    deleted.with_context(|| format!("failed to delete the consumer of partition {partition}"))?;
    Ok(consumer.cached_info().num_pending)
}

/// Returns a unique name for a consumer of a command.
pub fn consumer_name(command: &str) -> anyhow::Result<String> {
    Ok(format!("operator-{command}-{}", ConnectionId::random()?))
}
