//! A change of connections, told to every ingest: written to the directory, and waited for.

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

/// Longest the ingests may take to apply a change before a verb says which have not.
const APPLY_WITHIN: Duration = Duration::from_secs(10);

/// Tells what Postgres says of these connections now, and returns when every live ingest has it.
pub async fn announce(
    store: &Store,
    js: &jetstream::Context,
    connections: &[ConnectionId],
) -> anyhow::Result<()> {
    let directory = Directory::open(js).await?;
    let mut revision = 0;
    for &id in connections {
        let entry = store
            .directory_entry(id)
            .await?
            .with_context(|| format!("there is no connection {id}"))?;
        revision = revision.max(directory.project(id, &entry).await?);
    }
    Ok(directory.applied_everywhere(revision, APPLY_WITHIN).await?)
}

/// Tells that a connection is gone, and, when every live ingest knows, deletes what it sent from the stream. Returns the
/// number of webhooks. What intake has committed is purged first, and recorded, for `tidegate ledger verify`.
pub async fn bury(
    store: &Store,
    js: &jetstream::Context,
    connection: ConnectionId,
) -> anyhow::Result<u64> {
    let directory = Directory::open(js).await?;
    let entry = Entry::Deleted { version: store.next_connection_version().await? };
    let revision = directory.project(connection, &entry).await?;
    directory.applied_everywhere(revision, APPLY_WITHIN).await?;
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
