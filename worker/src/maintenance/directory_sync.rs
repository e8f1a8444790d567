//! Keeps ingest's directory true to Postgres.
//!
//! A process that changes a connection writes its directory entry after the commit; one that dies in between leaves the
//! entry old. So one worker at a time (the owner of one partition: as good a lock as any, since entries only get newer)
//! hears every change by NOTIFY and projects it, and compares all of them now and then.

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

/// All connections are compared this often.
const COMPARE_INTERVAL: Duration = Duration::from_secs(30);
/// In place of a version, for a connection whose tombstone is there.
const GONE: i64 = 0;
/// After a failure.
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
    tokio::select! { _ = until.cancelled() => {}, () = synchronizing => {} }
}

async fn synchronize(store: &Store, js: &jetstream::Context) -> Result<(), SyncError> {
    let directory = Directory::open(js).await?;
    let mut changes = store.connection_changes().await?;
    let mut projected = HashMap::new();
    let mut bucket = directory.identity().await?;
    loop {
        let (created, last) = directory.identity().await?;
        if created != bucket.0 || last < bucket.1 {
            warn!("directory was created anew or cut short; writing all entries again");
            projected.clear();
        }
        bucket = (created, last);
        compare_all(store, &directory, &mut projected).await?;
        let look_again = tokio::time::sleep(COMPARE_INTERVAL);
        tokio::pin!(look_again);
        while let Some(id) = next_change(&mut changes, look_again.as_mut()).await? {
            project(store, &directory, id).await;
        }
    }
}

/// Projects every connection whose version is not known to be there, and leaves a tombstone for every entry without a row.
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
        if projected.get(&id) != Some(&GONE) && project(store, directory, id).await {
            projected.insert(id, GONE);
        }
    }
    Ok(())
}

/// The next connection that changed; `None` when it is time to compare all of them.
async fn next_change(
    changes: &mut ChangeSubscription,
    look_again: impl Future<Output = ()>,
) -> Result<Option<ConnectionId>, StoreError> {
    tokio::select! {
        changed = changes.next() => changed,
        () = look_again => Ok(None),
    }
}

/// Writes what Postgres says of a connection now; that there is none, too.
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
