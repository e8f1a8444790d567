//! Clients and shared state of a worker process. Made once at start; every stage gets a clone of the `Arc`.

use crate::{
    agent_client::AgentClient,
    connection_cache::ConnectionCache,
    metrics::Metrics,
    probe::{Probe, Stage},
    slack::Slack,
    usage::UsageCounters,
};
use shared::{codec::envelope::Envelope, partition::Partition, store::Store};
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

/// What the stages of a worker share.
pub struct Context {
    /// Postgres.
    pub store: Store,
    /// NATS, for responses that go into Slack's own HTTP request.
    pub nats: async_nats::Client,
    /// Slack's Web API and response_urls.
    pub slack: Slack,
    /// Agents' endpoints.
    pub agents: AgentClient,
    /// Connections that were needed lately, with their tokens. Never used for a decision that ends a webhook.
    pub connections: Arc<ConnectionCache>,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Figures per connection, for people.
    pub usage: UsageCounters,
    /// This worker's name among the others.
    pub worker_name: String,
    /// The right of this process to run lanes.
    pub worker: WorkerLease,
    /// Partitions that this worker reads.
    pub partitions: OwnedPartitions,
    /// Wakes dispatch: a delivery was committed, a slot became free.
    pub wake_dispatch: Notify,
    /// Wakes the outbox: a message was committed.
    pub wake_outbox: Notify,
    /// Wakes the token refresh: Slack called a token expired.
    pub token_expired: Arc<Notify>,
    /// Bytes of webhooks that are read and not committed.
    pub intake_budget: ByteBudget,
    /// Webhooks that intake committed a moment ago, so that dispatch need not read them from Postgres.
    pub payloads: PayloadCache,
    /// Least time between two messages posted to one channel.
    pub channel_min_interval: Duration,
    /// The slash command, with its slash.
    pub slash_command: String,
    /// Called in each stage; none but in tests.
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

/// Partitions that this worker reads, and so dispatches and sends for. Ownership is no fence here: two workers that take
/// from one partition for a moment take different lanes.
#[derive(Clone, Default)]
pub struct OwnedPartitions(Arc<Mutex<BTreeSet<Partition>>>);

impl OwnedPartitions {
    /// All of them, in order.
    pub fn all(&self) -> Vec<Partition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// Adds a partition just claimed.
    pub fn insert(&self, partition: Partition) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(partition);
    }

    /// Removes a partition that was lost or given back.
    pub fn remove(&self, partition: Partition) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }
}

/// Bytes that the cache of payloads holds at most; a body counts with its decoded headers.
const PAYLOAD_CACHE_BYTES_MAX: usize = 32 << 20;
/// Time after which a cached payload is of no use: its lane waits.
const PAYLOAD_CACHE_TTL: Duration = Duration::from_secs(5);

/// Envelopes by dedup key, oldest evicted first.
#[derive(Default)]
pub struct PayloadCache(Mutex<Payloads>);

#[derive(Default)]
struct Payloads {
    by_key: HashMap<String, Envelope>,
    order: VecDeque<(Instant, String, usize)>,
    bytes: usize,
}

impl PayloadCache {
    /// Keeps an envelope for a moment.
    pub fn insert(&self, envelope: &Envelope) {
        let (now, size) = (Instant::now(), envelope.body.len() + 1024);
        let mut payloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = envelope.dedupe.as_str().to_owned();
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

    /// Takes an envelope out.
    pub fn take(&self, dedup_key: &str) -> Option<Envelope> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_key.remove(dedup_key)
    }
}

/// A bound on bytes in memory, shared by everything that takes from it.
#[derive(Clone)]
pub struct ByteBudget {
    free: Arc<Semaphore>,
    max: usize,
}

/// Unit of a byte budget.
const BUDGET_UNIT: usize = 1024;

impl ByteBudget {
    /// All of it is free.
    pub fn new(max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(max / BUDGET_UNIT)), max }
    }

    /// Waits until there is room. More than all of it is taken as all of it.
    pub async fn acquire(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_many_owned(self.units(bytes)).await.ok()
    }

    /// Takes room if there is some.
    pub fn try_acquire(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_many_owned(self.units(bytes)).ok()
    }

    /// Bytes in use.
    pub fn in_use(&self) -> usize {
        self.max.saturating_sub(self.free.available_permits() * BUDGET_UNIT)
    }

    fn units(&self, bytes: usize) -> u32 {
        bytes.div_ceil(BUDGET_UNIT).clamp(1, self.max / BUDGET_UNIT) as u32
    }
}
