//! Synchronizes ingest's directory with Postgres.
//!
//! A process that changes a connection writes the directory entry after its commit. If it crashes
//! in between, the entry is old. So one worker (the owner of partition 0) projects every change
//! that Postgres notifies, and compares all entries every 30 seconds. Two such workers do no harm,
//! since versions of entries only grow.

use async_nats::jetstream;
use shared::{
    directory::{Directory, DirectoryError, Entry},
    store::{ChangeSubscription, Store, StoreError},
    telemetry::Chain,
    types::ConnectionId,
};
use std::{collections::HashMap, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// Interval at which all connections are compared.
const COMPARE_INTERVAL: Duration = Duration::from_secs(30);
/// Version of a connection whose tombstone is written.
const TOMBSTONE: i64 = 0;
/// Wait after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Synchronizes until cancelled.
pub async fn run(store: Store, js: jetstream::Context, until: CancellationToken) {
    let synchronizing = async {
        loop {
            if let Err(error) = synchronize(&store, &js).await {
                warn!(error = %Chain(&error), "failed to synchronize the directory");
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    };
    until.run_until_cancelled(synchronizing).await;
}

async fn synchronize(store: &Store, js: &jetstream::Context) -> Result<(), SyncError> {
    let directory = Directory::open(js).await?;
    let mut changes = store.connection_changes().await?;
    let mut projected = HashMap::new();
    let mut bucket = directory.identity().await?;
    loop {
        let (created, last) = directory.identity().await?;
        if created != bucket.0 || last < bucket.1 {
            warn!("directory recreated or truncated; writing all entries");
            projected.clear();
        }
        bucket = (created, last);
        compare_all(store, &directory, &mut projected).await?;
        let next_comparison = tokio::time::sleep(COMPARE_INTERVAL);
        tokio::pin!(next_comparison);
        while let Some(id) = next_change(&mut changes, next_comparison.as_mut()).await? {
            project(store, &directory, id).await;
        }
    }
}

/// Projects connections whose version is not known to be in the directory, and writes a tombstone
/// for entries without a row.
async fn compare_all(
    store: &Store,
    directory: &Directory,
    projected: &mut HashMap<ConnectionId, i64>,
) -> Result<(), SyncError> {
    let entries = directory.connections().await?;
    let rows: HashMap<_, _> = store.connection_versions().await?.into_iter().collect();
    for (&id, &version) in &rows {
        if projected.get(&id) != Some(&version) && project(store, directory, id).await {
            projected.insert(id, version);
        }
    }
    for id in entries.into_iter().filter(|id| !rows.contains_key(id)) {
        if projected.get(&id) != Some(&TOMBSTONE) && project(store, directory, id).await {
            projected.insert(id, TOMBSTONE);
        }
    }
    Ok(())
}

/// Returns the next connection that changed, `None` when it is time to compare all.
async fn next_change(
    changes: &mut ChangeSubscription,
    next_comparison: impl Future<Output = ()>,
) -> Result<Option<ConnectionId>, StoreError> {
    tokio::select! {
        changed = changes.next() => changed,
        () = next_comparison => Ok(None),
    }
}

/// Writes the entry of a connection, or its tombstone, from Postgres. Returns whether it succeeded.
async fn project(store: &Store, directory: &Directory, id: ConnectionId) -> bool {
    let projected = async {
        let entry = match store.directory_entry(id).await? {
            Some(entry) => entry,
            None if matches!(directory.entry(id).await?, Some(Entry::Known(_))) => {
                Entry::Deleted { version: store.next_connection_version().await? }
            }
            None => return Ok(()),
        };
        directory.project(id, &entry).await?;
        Ok::<_, SyncError>(())
    };
    let projected = projected.await;
    if let Err(error) = &projected {
        error!(connection = %id, error = %Chain(error), "failed to write directory entry");
    }
    projected.is_ok()
}
