//! Synchronizes ingest's directory with Postgres.
//!
//! A process that changes a connection writes the directory entry after its commit. If it crashes
//! in between, the entry is outdated. So one worker (the owner of partition 0) projects changes,
//! that is, writes entries from rows: each change that Postgres notifies, and, every 30 seconds,
//! first apps that changed, then connections with a newer version than the last one projected, in
//! pages by version, then tombstones for entries without a row. It begins with all connections. Two
//! such workers do no harm, since versions of entries only grow.

use async_nats::jetstream;
use shared::{
    directory::{AppEntry, Directory, DirectoryEntry, DirectoryError},
    domain::{AppId, ConnectionId},
    runtime::telemetry::ErrorChain,
    store::{ChangeSubscription, Store, StoreError},
};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// Interval at which connections are compared. Longer than any transaction.
const COMPARE_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum number of connections per query.
const PAGE: usize = 1_000;
/// Wait after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Synchronizes the directory until cancelled.
pub async fn run(store: Store, js: jetstream::Context, until: CancellationToken) {
    let synchronizing = async {
        loop {
            if let Err(error) = synchronize(&store, &js).await {
                warn!(error = %ErrorChain(&error), "failed to synchronize the directory");
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    };
    until.run_until_cancelled(synchronizing).await;
}

async fn synchronize(store: &Store, js: &jetstream::Context) -> Result<(), SyncError> {
    let directory = Directory::open(js).await?;
    let mut changes = store.subscribe_connection_changes().await?;
    let mut progress = Progress::default();
    let mut bucket = directory.identity().await?;
    loop {
        let (created, last) = directory.identity().await?;
        if created != bucket.0 || last < bucket.1 {
            warn!("directory recreated or truncated; writing all entries");
            progress = Progress::default();
        }
        bucket = (created, last);
        project_apps(store, &directory, &mut progress).await?;
        project_changes(store, &directory, &mut progress).await?;
        project_deletions(store, &directory, &mut progress).await?;
        let next_comparison = tokio::time::sleep(COMPARE_INTERVAL);
        tokio::pin!(next_comparison);
        while let Some(id) = next_change(&mut changes, next_comparison.as_mut()).await? {
            project(store, &directory, id).await;
        }
    }
}

/// Progress of the comparisons with one bucket.
#[derive(Default)]
struct Progress {
    /// Highest version of the comparison before the last. A transaction that had a lower version
    /// then has ended since.
    settled: i64,
    /// Highest version of the last comparison.
    newest: i64,
    /// Versions above `settled` that are projected.
    projected: HashMap<ConnectionId, i64>,
    /// Tombstones of the directory, which are not compared again. NATS removes them in time.
    tombstones: HashSet<ConnectionId>,
    /// Versions of apps that are projected.
    apps: HashMap<AppId, i64>,
}

/// Projects apps that changed, and writes tombstones for entries without a row. There are few apps.
async fn project_apps(
    store: &Store,
    directory: &Directory,
    progress: &mut Progress,
) -> Result<(), SyncError> {
    let apps = store.app_entries().await?;
    for id in directory.apps().await? {
        if !apps.iter().any(|(app, _)| *app == id) {
            let entry = AppEntry::Deleted { version: store.next_connection_version().await? };
            directory.project_app(&id, &entry).await?;
        }
    }
    for (id, entry) in apps {
        if progress.apps.get(&id) != Some(&entry.version()) {
            directory.project_app(&id, &entry).await?;
            progress.apps.insert(id, entry.version());
        }
    }
    Ok(())
}

/// Projects connections whose version is above those that are known to be in the directory.
async fn project_changes(
    store: &Store,
    directory: &Directory,
    progress: &mut Progress,
) -> Result<(), SyncError> {
    let (mut after, mut failed) = (progress.settled, false);
    loop {
        let page = store.connection_versions(after, PAGE as i64).await?;
        for &(id, version) in &page {
            after = version;
            if progress.projected.get(&id) != Some(&version) {
                if project(store, directory, id).await {
                    progress.projected.insert(id, version);
                    progress.tombstones.remove(&id);
                } else {
                    failed = true;
                }
            }
        }
        if page.len() < PAGE {
            break;
        }
    }
    if !failed {
        progress.settled = progress.newest.max(progress.settled);
        progress.newest = after.max(progress.newest);
        progress.projected.retain(|_, version| *version > progress.settled);
    }
    Ok(())
}

/// Writes a tombstone for entries without a row.
async fn project_deletions(
    store: &Store,
    directory: &Directory,
    progress: &mut Progress,
) -> Result<(), SyncError> {
    let mut entries: HashSet<ConnectionId> = directory.connections().await?.into_iter().collect();
    progress.tombstones.retain(|id| entries.remove(id));
    let entries: Vec<ConnectionId> = entries.into_iter().collect();
    for page in entries.chunks(PAGE) {
        for id in store.missing_connections(page).await? {
            if project(store, directory, id).await {
                progress.tombstones.insert(id);
            }
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
            None if matches!(directory.entry(id).await?, Some(DirectoryEntry::Known(_))) => {
                DirectoryEntry::Deleted { version: store.next_connection_version().await? }
            }
            None => return Ok(()),
        };
        directory.project(id, &entry).await?;
        Ok::<_, SyncError>(())
    };
    let projected = projected.await;
    if let Err(error) = &projected {
        error!(connection = %id, error = %ErrorChain(error), "failed to write directory entry");
    }
    projected.is_ok()
}
