//! Changes of connections in the directory, confirmed by every ingest.

use super::{OperationError, Result};
use crate::{
    directory::{AppEntry, Directory, DirectoryEntry},
    domain::{AppId, ConnectionId},
    store::Store,
    stream,
};
use async_nats::jetstream;
use futures_util::TryStreamExt;
use std::time::Duration;

/// Maximum time for ingests to apply a change. After it an operation fails and names those that
/// have not.
const APPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Copies connections from Postgres to the directory, and waits until every live ingest has them.
pub(super) async fn publish(
    store: &Store,
    js: &jetstream::Context,
    connections: &[ConnectionId],
) -> Result<()> {
    match publish_existing(store, js, connections).await?.first() {
        None => Ok(()),
        Some(missing) => Err(OperationError::NotFound(format!("connection {missing}"))),
    }
}

/// Does the same, and returns the connections that do not exist. The others are published.
pub(super) async fn publish_existing(
    store: &Store,
    js: &jetstream::Context,
    connections: &[ConnectionId],
) -> Result<Vec<ConnectionId>> {
    let directory = Directory::open(js).await?;
    let (mut revision, mut missing) = (0, Vec::new());
    for &id in connections {
        match store.directory_entry(id).await? {
            Some(entry) => revision = revision.max(directory.project(id, &entry).await?),
            None => missing.push(id),
        }
    }
    directory.wait_until_applied(revision, APPLY_TIMEOUT).await?;
    Ok(missing)
}

/// Copies apps from Postgres to the directory, marks others as deleted, and waits until every live
/// ingest has them.
pub(super) async fn publish_apps(
    store: &Store,
    js: &jetstream::Context,
    apps: &[AppId],
    deleted: &[AppId],
) -> Result<()> {
    if apps.is_empty() && deleted.is_empty() {
        return Ok(());
    }
    let directory = Directory::open(js).await?;
    let mut revision = 0;
    for (id, entry) in store.app_entries().await? {
        if apps.contains(&id) {
            revision = revision.max(directory.project_app(&id, &entry).await?);
        }
    }
    for id in deleted {
        let entry = AppEntry::Deleted { version: store.next_connection_version().await? };
        revision = revision.max(directory.project_app(id, &entry).await?);
    }
    Ok(directory.wait_until_applied(revision, APPLY_TIMEOUT).await?)
}

/// Marks a connection as deleted, and waits until every live ingest has applied the change.
pub(super) async fn publish_tombstone(
    store: &Store,
    js: &jetstream::Context,
    connection: ConnectionId,
) -> Result<()> {
    let directory = Directory::open(js).await?;
    let entry = DirectoryEntry::Deleted { version: store.next_connection_version().await? };
    let revision = directory.project(connection, &entry).await?;
    Ok(directory.wait_until_applied(revision, APPLY_TIMEOUT).await?)
}

/// Purges the webhooks of a deleted connection from the stream. Returns their number.
///
/// Webhooks that intake has committed are purged first and recorded for `tidegate ledger verify`.
pub async fn purge_webhooks(
    store: &Store,
    js: &jetstream::Context,
    connection: ConnectionId,
) -> Result<u64> {
    let mut purged = 0;
    let of_connection = format!("slack.in.*.{connection}");
    let webhooks = js.get_stream(stream::STREAM).await.map_err(failed)?;
    let mut subjects = webhooks.info_with_subjects(&of_connection).await.map_err(failed)?;
    let mut partitions = Vec::new();
    while let Some((subject, _)) = subjects.try_next().await.map_err(failed)? {
        partitions.extend(stream::parse_subject(&subject).map(|(partition, _)| partition));
    }
    for partition in partitions {
        let (removal, cursor) = store.record_connection_removal(partition, connection).await?;
        let subject = stream::subject(partition, connection);
        let purge = webhooks.purge().filter(subject).sequence(cursor + 1).await.map_err(failed)?;
        store.record_removed(removal, purge.purged).await?;
        purged += purge.purged;
    }
    Ok(purged + stream::purge_connection(js, connection).await.map_err(failed)?)
}

pub(super) fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    error: E,
) -> OperationError {
    OperationError::Stream(error.into())
}
