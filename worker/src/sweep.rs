//! Keeps ingest's directory true to Postgres.
//!
//! Whoever changes a connection writes its directory entry after the commit; a process that dies in between leaves
//! the entry old. So one worker at a time (the owner of one partition: as good a lock as any, since entries only get newer) hears every change by NOTIFY and projects it, and looks at all of them now and then.

use async_nats::jetstream;
use shared::{
    directory::{Directory, DirectoryError},
    store::{ChangeSubscription, Store, StoreError},
    telemetry::Chain,
    types::ConnectionId,
};
use std::{collections::HashMap, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Whoever owns this partition sweeps.
pub const LOCK: u16 = 0;
/// All connections are looked at this often.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
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
    loop {
        for (id, version) in store.connection_versions().await? {
            if projected.get(&id) != Some(&version) {
                project(store, &directory, id).await?;
                projected.insert(id, version);
            }
        }
        let look_again = tokio::time::sleep(SWEEP_EVERY);
        tokio::pin!(look_again);
        while let Some(id) = next_change(&mut changes, look_again.as_mut()).await? {
            project(store, &directory, id).await?;
        }
    }
}

/// The next connection that changed; `None` when it is time to look at all of them.
async fn next_change(
    changes: &mut ChangeSubscription,
    look_again: impl Future<Output = ()>,
) -> Result<Option<ConnectionId>, StoreError> {
    tokio::select! {
        changed = changes.next() => changed,
        () = look_again => Ok(None),
    }
}

async fn project(store: &Store, directory: &Directory, id: ConnectionId) -> Result<(), SweepError> {
    if let Some(entry) = store.directory_entry(id).await? {
        directory.project(id, &entry).await?;
    }
    Ok(())
}
