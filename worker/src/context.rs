//! Clients and shared state of a worker process, created once at start.

use crate::{
    agent_client::AgentClient,
    connection_cache::ConnectionCache,
    metrics::Metrics,
    probe::{Probe, Stage},
    slack::Slack,
    usage::UsageCounters,
};
use shared::{
    store::Store,
    stream::{Envelope, Partition},
};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

pub use crate::worker_lease::{WorkerLease, WorkerTerm};

/// Clients and state that the stages of a worker share.
pub struct Context {
    pub store: Store,
    /// NATS, for sync responses.
    pub nats: async_nats::Client,
    /// Slack's Web API and response_urls.
    pub slack: Slack,
    pub agents: AgentClient,
    /// Recently used connections, with their tokens. Never read for a decision that ends a webhook.
    pub connections: Arc<ConnectionCache>,
    pub metrics: Arc<Metrics>,
    pub usage: UsageCounters,
    pub worker_name: String,
    /// Lease of this process's row in `workers`.
    pub worker: WorkerLease,
    /// Partitions that this worker reads.
    pub partitions: OwnedPartitions,
    /// Wakes dispatch: a delivery was committed or an agent slot became free.
    pub wake_dispatch: Notify,
    /// Wakes the outbox: a message was committed.
    pub wake_outbox: Notify,
    /// Wakes the look-up of run controls: a change of a conversation was committed.
    pub wake_controls: Notify,
    /// Wakes the token refresh: Slack rejected a token as expired.
    pub token_expired: Arc<Notify>,
    /// Bytes of webhooks that are read and not committed.
    pub intake_budget: ByteBudget,
    /// Maximum bytes of a connection's committed webhooks in the stream.
    pub connection_bytes_max: u64,
    /// Envelopes that intake committed recently, which save dispatch a query.
    pub payloads: PayloadCache,
    /// Minimum interval between two messages posted to one channel.
    pub channel_min_interval: Duration,
    pub slash_command: String,
    /// Time for which entries of the audit log are kept.
    pub audit_log_retention: Duration,
    /// Time for which the data of uninstalled apps is kept.
    pub uninstalled_retention: Duration,
    /// Called in each stage. Only tests set one.
    pub probe: Option<Probe>,
}

impl Context {
    /// Calls the probe, if there is one.
    pub fn probe(&self, stage: Stage, subject: &[u8]) {
        if let Some(probe) = self.probe {
            probe(stage, subject);
        }
    }
}

/// Partitions that this worker reads, and for which it dispatches and sends. Not a fence: two
/// workers that share a partition for a moment claim different lanes.
#[derive(Clone, Default)]
pub struct OwnedPartitions(Arc<Mutex<BTreeSet<Partition>>>);

impl OwnedPartitions {
    /// Returns the partitions in order.
    pub fn all(&self) -> Vec<Partition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    pub fn insert(&self, partition: Partition) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(partition);
    }

    pub fn remove(&self, partition: Partition) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }
}

/// Maximum bytes in the payload cache; an entry counts its body and headers.
const PAYLOAD_CACHE_BYTES_MAX: usize = 32 << 20;
/// Lifetime of a cached payload. A delivery that begins later reads it from Postgres.
const PAYLOAD_CACHE_TTL: Duration = Duration::from_secs(5);

/// Cache of envelopes by dedup key, oldest evicted first.
#[derive(Default)]
pub struct PayloadCache(Mutex<Payloads>);

#[derive(Default)]
struct Payloads {
    by_key: HashMap<String, Envelope>,
    order: VecDeque<(Instant, String, usize)>,
    bytes: usize,
}

impl PayloadCache {
    pub fn insert(&self, envelope: &Envelope) {
        let (now, size) = (Instant::now(), envelope.body.len() + 1024);
        let mut payloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = envelope.dedup_key.as_str().to_owned();
        payloads.order.push_back((now, key.clone(), size));
        payloads.bytes += size;
        payloads.by_key.insert(key, envelope.clone());
        while let Some((at, _, _)) = payloads.order.front()
            && (payloads.bytes > PAYLOAD_CACHE_BYTES_MAX || now - *at > PAYLOAD_CACHE_TTL)
        {
            if let Some((_, key, size)) = payloads.order.pop_front() {
                payloads.bytes -= size;
                payloads.by_key.remove(&key);
            }
        }
    }

    pub fn take(&self, dedup_key: &str) -> Option<Envelope> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_key.remove(dedup_key)
    }
}

/// Limit of bytes in memory, shared by its clones.
#[derive(Clone)]
pub struct ByteBudget {
    free: Arc<Semaphore>,
    max: usize,
}

/// Bytes per permit of a budget.
const BUDGET_UNIT: usize = 1024;

impl ByteBudget {
    /// Creates an unused budget of `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(max / BUDGET_UNIT)), max }
    }

    /// Waits for room and returns a permit. A request above the limit takes the whole budget.
    pub async fn acquire(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_many_owned(self.units(bytes)).await.ok()
    }

    /// Returns a permit, or `None` if there is no room.
    pub fn try_acquire(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_many_owned(self.units(bytes)).ok()
    }

    pub fn in_use(&self) -> usize {
        self.max.saturating_sub(self.free.available_permits() * BUDGET_UNIT)
    }

    fn units(&self, bytes: usize) -> u32 {
        bytes.div_ceil(BUDGET_UNIT).clamp(1, self.max / BUDGET_UNIT) as u32
    }
}
