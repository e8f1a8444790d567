//! Changes of connections in the directory, confirmed by every ingest.

use anyhow::Context;
use async_nats::jetstream;
use futures_util::TryStreamExt;
use shared::{
    directory::{Directory, Entry},
    store::Store,
    stream,
    types::ConnectionId,
};
use std::time::Duration;

/// Maximum time for ingests to apply a change. Then a command fails and names those that have not.
const APPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Copies connections from Postgres to the directory, and waits until every live ingest has them.
pub async fn publish(
    store: &Store,
    js: &jetstream::Context,
    connections: &[ConnectionId],
) -> anyhow::Result<()> {
    let directory = Directory::open(js).await?;
    let mut revision = 0;
    for &id in connections {
        let entry = store.directory_entry(id).await?;
        let entry = entry.with_context(|| format!("connection {id} not found"))?;
        revision = revision.max(directory.project(id, &entry).await?);
    }
    Ok(directory.applied_everywhere(revision, APPLY_TIMEOUT).await?)
}

/// Marks a connection as deleted and, when every live ingest has applied that, purges its webhooks
/// from the stream. Returns the number of purged webhooks.
///
/// Webhooks that intake has committed are purged first and recorded for `tidegate ledger verify`.
pub async fn publish_deletion(
    store: &Store,
    js: &jetstream::Context,
    connection: ConnectionId,
) -> anyhow::Result<u64> {
    let directory = Directory::open(js).await?;
    let entry = Entry::Deleted { version: store.next_connection_version().await? };
    let revision = directory.project(connection, &entry).await?;
    directory.applied_everywhere(revision, APPLY_TIMEOUT).await?;
    let mut purged = 0;
    let of_connection = format!("slack.in.*.{connection}");
    let webhooks = js.get_stream(stream::STREAM).await?;
    let mut subjects = webhooks.info_with_subjects(&of_connection).await?;
    let mut partitions = Vec::new();
    while let Some((subject, _)) = subjects.try_next().await? {
        partitions.extend(stream::parse_subject(&subject).map(|(partition, _)| partition));
    }
    for partition in partitions {
        let (removal, cursor) = store.record_connection_removal(partition, connection).await?;
        let subject = stream::subject(partition, connection);
        let purge = webhooks.purge().filter(subject).sequence(cursor + 1).await?;
        store.record_removed(removal, purge.purged).await?;
        purged += purge.purged;
    }
    Ok(purged + stream::purge_connection(js, connection).await?)
}
