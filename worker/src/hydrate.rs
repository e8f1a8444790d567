//! The live connection of a webhook, or why there is none. The only way to one.
//!
//! In: a connection's id. Out: [`Hydrated`]. Any worker hydrates any connection, when it is needed. One query for a
//! connection however many webhooks wait for it; what it gave is kept for half a minute, and dropped as soon as
//! Postgres says that the row changed. Word of that can get lost, hence the half minute. The status is looked at for
//! every webhook. Never writes the row: hydrating must not change what it reads.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use shared::{
    store::{Connection, Store, StoreError},
    telemetry::Chain,
    types::{ConnectionId, Status},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::OnceCell, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A row is read again after this long, in case word of a change got lost.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// Connections kept at most; then those that are too old go, and if that is not enough all.
const KEPT_MAX: usize = 20_000;
/// Between two tries to listen.
const PAUSE: Duration = Duration::from_millis(250);

/// What a connection's row says.
pub enum Hydrated {
    /// It works: here it is.
    Live(Arc<Connection>),
    /// It is not to work any more; the webhook is dropped, and this is why.
    Gone(&'static str),
    /// Not yet; the webhook waits.
    Pending,
}

/// Connections that were needed lately.
pub struct Hydrator {
    store: Store,
    kept: Mutex<HashMap<ConnectionId, Arc<Kept>>>,
    asked: Family<AskedLabels, Counter>,
}

/// How a question for a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AskedLabels {
    result: &'static str,
}

struct Kept {
    since: Instant,
    row: OnceCell<Option<Arc<Connection>>>,
}

impl Hydrator {
    /// Nothing kept yet.
    pub fn new(store: Store) -> Self {
        Self { store, kept: Mutex::default(), asked: Family::default() }
    }

    /// The live connection, or why there is none.
    pub async fn hydrate(&self, id: ConnectionId) -> Result<Hydrated, StoreError> {
        let Some(connection) = self.connection(id).await? else {
            return Ok(Hydrated::Gone("the connection does not exist"));
        };
        Ok(match connection.status {
            // `error` hydrates: whatever was wrong may be over, and only trying tells.
            Status::Active | Status::Error => Hydrated::Live(connection),
            Status::Pending => Hydrated::Pending,
            Status::Stopped => Hydrated::Gone("the connection is stopped"),
            Status::Revoked => Hydrated::Gone("the connection is revoked"),
        })
    }

    /// The row, whatever its status; `None` when there is none.
    pub async fn connection(
        &self,
        id: ConnectionId,
    ) -> Result<Option<Arc<Connection>>, StoreError> {
        let kept = self.entry(id, Instant::now());
        let mut result = "hit";
        let read = async || {
            result = "miss";
            Ok(self.store.hydrate_connection(id).await?.map(Arc::new))
        };
        let row = kept.row.get_or_try_init(read).await.cloned();
        let result = if row.is_ok() { result } else { "failed" };
        self.asked.get_or_create(&AskedLabels { result }).inc();
        row
    }

    /// How often a connection was asked for: `hit` from memory, `miss` by a query, `failed`.
    pub fn asked(&self) -> Family<AskedLabels, Counter> {
        self.asked.clone()
    }

    /// The entry that everybody who asks now shares.
    fn entry(&self, id: ConnectionId, now: Instant) -> Arc<Kept> {
        let mut kept = self.kept();
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, kept| now.duration_since(kept.since) < KEPT_FOR);
            if kept.len() >= KEPT_MAX {
                kept.clear();
            }
        }
        if let Some(entry) = kept.get(&id)
            && now.duration_since(entry.since) < KEPT_FOR
        {
            return Arc::clone(entry);
        }
        let fresh = Arc::new(Kept { since: now, row: OnceCell::new() });
        kept.insert(id, Arc::clone(&fresh));
        fresh
    }

    /// Drops what changed, as Postgres tells of it, until told to stop.
    pub async fn listen(self: Arc<Self>, stop: CancellationToken) {
        let listening = async {
            loop {
                if let Err(error) = self.listen_once().await {
                    warn!(error = %Chain(&error), "changes of connections can't be heard");
                }
                // Whatever was said meanwhile was not heard.
                self.kept().clear();
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! { _ = stop.cancelled() => {}, () = listening => {} }
    }

    async fn listen_once(&self) -> Result<(), StoreError> {
        let mut changes = self.store.connection_changes().await?;
        self.kept().clear();
        loop {
            match changes.next().await? {
                // Who waits for a query that began before the change gets what that gives; who comes after begins another.
                Some(id) => drop(self.kept().remove(&id)),
                None => self.kept().clear(),
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<ConnectionId, Arc<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
