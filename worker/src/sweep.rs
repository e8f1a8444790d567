//! Keeps ingest's directory true to Postgres.
//!
//! Whoever changes a connection writes its directory entry after the commit; a process that dies in between leaves
//! the entry old. So one worker at a time (the owner of one partition: as good a lock as any, since entries only get
//! newer) hears every change by NOTIFY and projects it, and compares all of them now and then. One that can't be
//! projected is told in the log and holds up no other.

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

/// Whoever owns this partition sweeps.
pub const LOCK: u16 = 0;
/// All connections are compared this often.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// In place of a version, for a connection whose tombstone is there.
const GONE: i64 = 0;
/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Sweeps for as long as the partition that is the lock is ours.
pub async fn run(store: Store, js: jetstream::Context, until: CancellationToken) {
    let sweeping = async {
        loop {
            if let Err(error) = sweep(&store, &js).await {
                warn!(error = %Chain(&error), "the directory could not be swept");
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! { _ = until.cancelled() => {}, () = sweeping => {} }
}

async fn sweep(store: &Store, js: &jetstream::Context) -> Result<(), SweepError> {
    let directory = Directory::open(js).await?;
    let mut changes = store.connection_changes().await?;
    let mut projected = HashMap::new();
    let mut bucket = directory.identity().await?;
    loop {
        let (created, last) = directory.identity().await?;
        if created != bucket.0 || last < bucket.1 {
            warn!("the directory was made anew, or lost its end; writing all of it again");
            projected.clear();
        }
        bucket = (created, last);
        compare_all(store, &directory, &mut projected).await?;
        let look_again = tokio::time::sleep(SWEEP_EVERY);
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
) -> Result<(), SweepError> {
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
        Ok::<_, SweepError>(())
    };
    let projected = projected.await;
    if let Err(error) = &projected {
        error!(connection = %id, error = %Chain(error), "it could not be written to the directory");
    }
    projected.is_ok()
}
