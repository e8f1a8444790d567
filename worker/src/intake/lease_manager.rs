//! Owns the partitions of this worker and its row in `workers`, under which lanes run.
//!
//! The worker claims up to `ceil(64 / live workers that read)` partitions and renews them every
//! sixth of the TTL. It looks for free partitions more often, so that a released partition is
//! without a reader only briefly. It releases partitions when more workers join, when only this
//! worker cannot read from NATS, and on shutdown. It loses partitions that it fails to renew.
//! Postgres decides ownership: every commit is fenced by epoch. The local deadline, counted from
//! before the renewal was sent, only ends needless work.

use super::{
    owned_partition::OwnedPartition,
    partition_reader,
    stream_access::StreamAccess,
    turn::{TurnError, run_turn},
};
use crate::{context::Context, decider::Decider, metrics::LeaseTransition};
use async_nats::{connection::State, jetstream};
use shared::{
    runtime::telemetry::ErrorChain,
    store::{FencingToken, StoreError},
    stream::{PARTITIONS, Partition},
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Interval of looking for a free partition.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Timeout of a turn while no partition is held, including a new connection to Postgres.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a partition that needs a newer release is claimed again: the newer worker may
/// have stopped.
const NEEDS_NEWER_PERIOD: Duration = Duration::from_secs(30);

pub struct LeaseManager {
    context: Arc<Context>,
    js: jetstream::Context,
    decider: Decider,
    ttl: Duration,
    access: StreamAccess,
    partitions: BTreeMap<Partition, Arc<OwnedPartition>>,
    /// Time since which only this worker cannot read from NATS.
    nats_lost_at: Option<Instant>,
    /// Partitions that need a newer release, with the time of detection.
    needs_newer: Vec<(Partition, Instant)>,
    /// Notified when a reader ended and its partition has to be released.
    ended: Arc<Notify>,
    renewal: watch::Sender<Option<Instant>>,
}

/// Time of the last renewal, which decides readiness.
#[derive(Clone)]
pub struct LeaseRenewal {
    at: watch::Receiver<Option<Instant>>,
    ttl: Duration,
}

impl LeaseRenewal {
    /// Returns whether the last renewal is within the TTL.
    pub fn is_recent(&self) -> bool {
        self.at.borrow().is_some_and(|at| at.elapsed() < self.ttl)
    }
}

impl LeaseManager {
    pub fn new(
        context: Arc<Context>,
        js: jetstream::Context,
        decider: Decider,
        ttl: Duration,
        access: StreamAccess,
    ) -> Self {
        Self {
            context,
            js,
            decider,
            ttl,
            access,
            partitions: BTreeMap::new(),
            nats_lost_at: None,
            needs_newer: Vec::new(),
            ended: Arc::default(),
            renewal: watch::Sender::new(None),
        }
    }

    /// Returns the time of the last renewal.
    pub fn renewal(&self) -> LeaseRenewal {
        LeaseRenewal { at: self.renewal.subscribe(), ttl: self.ttl }
    }

    /// Owns partitions until `stop`, then releases them. Keeps the worker's row until `finished`,
    /// since calls to agents and Slack may end after the partitions are released.
    pub async fn run(mut self, stop: CancellationToken, finished: CancellationToken) {
        self.access.wait_for_first_result().await;
        let mut tick = tokio::time::interval(self.ttl / 6);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A free partition may exceed this worker's share. Then the next look is after a tick.
        let mut looks = true;
        loop {
            tokio::select! {
                _ = tick.tick() => looks = true,
                _ = look.tick(), if looks && !stop.is_cancelled() => {
                    if !self.sees_free_partition().await {
                        continue;
                    }
                    looks = false;
                }
                _ = self.ended.notified() => {}
                _ = stop.cancelled(), if self.reads_any() => {}
                _ = finished.cancelled(), if self.partitions.is_empty() => break,
            }
            if stop.is_cancelled() {
                self.partitions.values().for_each(|owned| owned.stop.cancel());
            }
            let held = self.partitions.len();
            match self.renew_in_time(&stop).await {
                Ok(wanted) => {
                    let _ = self.renewal.send(Some(Instant::now()));
                    // Its own timeout: a claim that is cut off may be committed and held for a TTL.
                    let timeout = self.ttl / 2;
                    match tokio::time::timeout(timeout, self.claim(wanted)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            warn!(error = %ErrorChain(&error), "failed to claim partitions");
                        }
                        Err(_) => warn!("failed to claim partitions in time"),
                    }
                }
                Err(TurnError::Store(error)) => {
                    warn!(error = %ErrorChain(&error), "failed to renew leases");
                }
                Err(TurnError::Timeout) => warn!("failed to renew leases in time"),
                Err(TurnError::Stopped) => {}
            }
            looks |= self.partitions.len() > held;
            self.drop_expired();
            if self.context.worker.end_if_expired() {
                warn!("worker row expired; its attempts and sends are cancelled");
            }
        }
        if let Some(term) = self.context.worker.term()
            && let Err(error) = self.retire(&term.id).await
        {
            warn!(error = %ErrorChain(&error), "failed to delete worker row");
        }
    }

    async fn sees_free_partition(&self) -> bool {
        let free = self.context.store.has_free_partition();
        matches!(tokio::time::timeout(self.ttl / 3, free).await, Ok(Ok(true)))
    }

    /// Runs a turn with a timeout. Returns the number of partitions to claim. A turn that hangs must
    /// not extend leases that it did not renew. Without partitions there is no lease to lose, so the
    /// timeout is long enough for a new connection to a distant Postgres, and a stop ends the turn.
    async fn renew_in_time(&mut self, stop: &CancellationToken) -> Result<usize, TurnError> {
        let stopping = stop.is_cancelled();
        let is_idle = self.partitions.is_empty() && !stopping;
        let timeout = if is_idle { CONNECT_TIMEOUT.max(self.ttl / 2) } else { self.ttl / 2 };
        run_turn(self.turn(stopping), timeout, is_idle.then_some(stop)).await
    }

    async fn retire(&self, id: &str) -> Result<(), StoreError> {
        self.context.store.retire_worker(id).await?;
        self.context.store.free_worker(id, false).await?;
        Ok(())
    }

    /// Renews the worker's row and its partitions, and releases partitions that ended or exceed the
    /// share. Returns the number of partitions to claim.
    async fn turn(&mut self, stopping: bool) -> Result<usize, StoreError> {
        let is_connected = self.js.client().connection_state() == State::Connected;
        let reads = is_connected && self.access.works();
        let share = self.renew_worker(reads, stopping).await?;
        self.renew().await?;
        self.release_ended().await?;
        if stopping {
            return Ok(0);
        }
        self.notify_redrives().await?;
        let working: Vec<_> =
            self.partitions.values().filter(|owned| !owned.stop.is_cancelled()).collect();
        if working.len() > share {
            working[share..].iter().for_each(|owned| owned.stop.cancel());
            return Ok(0);
        }
        Ok(share.saturating_sub(self.partitions.len()))
    }

    /// Renews the worker's row or creates another one. Returns this worker's share of partitions.
    async fn renew_worker(&mut self, reads: bool, stopping: bool) -> Result<usize, StoreError> {
        let (store, before) = (&self.context.store, Instant::now());
        let live = match self.context.worker.term() {
            Some(term) => store.renew_worker(&term.id, reads, stopping, self.ttl).await?,
            None => None,
        };
        let Some(live) = live else {
            let id = random_id();
            store.register_worker(&id, &self.context.worker_name, self.ttl).await?;
            info!(worker = id, name = self.context.worker_name, "worker registered");
            self.context.worker.begin(id, before + self.ttl);
            return Ok(self.partitions.len()); // the share is known at the next turn
        };
        self.context.worker.extend(before + self.ttl);
        self.nats_lost_at = (!reads).then(|| self.nats_lost_at.unwrap_or_else(Instant::now));
        let among = |workers: usize| usize::from(PARTITIONS).div_ceil(workers.max(1));
        Ok(match self.nats_lost_at {
            None => among(live.reading),
            // No worker can reach NATS: releasing partitions would not help.
            Some(_) if live.reading == 0 => {
                // The first worker to reconnect must not claim all partitions.
                self.nats_lost_at = Some(Instant::now());
                among(live.living)
            }
            // Other workers may detect the outage within this time.
            Some(since) if since.elapsed() < self.ttl => self.partitions.len(),
            Some(since) => {
                if self.reads_any() {
                    let elapsed = since.elapsed();
                    warn!(?elapsed, "partitions released: only this worker cannot read from NATS");
                }
                0
            }
        })
    }

    async fn claim(&mut self, count: usize) -> Result<(), StoreError> {
        if count == 0 {
            return Ok(());
        }
        let holds_until = Instant::now() + self.ttl;
        self.needs_newer.retain(|(_, at)| at.elapsed() < NEEDS_NEWER_PERIOD);
        let except: HashSet<Partition> = self.needs_newer.iter().map(|(p, _)| *p).collect();
        let except: Vec<Partition> = except.into_iter().collect();
        let name = &self.context.worker_name;
        let claimed = self.context.store.claim_partitions(name, count, &except, self.ttl).await?;
        if !claimed.is_empty() {
            let partitions: Vec<u16> =
                claimed.iter().map(|lease| lease.token.partition.number()).collect();
            info!(count = claimed.len(), ?partitions, "partitions claimed");
        }
        for lease in claimed {
            let (partition, epoch) = (lease.token.partition, lease.token.epoch);
            debug!(%partition, epoch, cursor = lease.state.cursor, "partition claimed");
            self.context.metrics.record_lease_transition(LeaseTransition::Claimed);
            let owned = Arc::new(OwnedPartition::new(&lease, holds_until));
            if let Some(before) = self.partitions.insert(partition, Arc::clone(&owned)) {
                before.lost.cancel(); // expired and claimed again under a new epoch
            }
            self.context.metrics.watch(&owned.progress);
            self.context.partitions.insert(partition);
            let guard = ReaderGuard(Arc::clone(&owned), Arc::clone(&self.ended));
            let (context, js) = (Arc::clone(&self.context), self.js.clone());
            let decider = self.decider.clone();
            #[expect(
                clippy::disallowed_methods,
                reason = "the manager counts its readers and waits for them"
            )]
            tokio::spawn(async move {
                // The guard releases the lease even if the reader panics.
                let _guard = guard;
                partition_reader::run(context, js, owned, lease.state, decider).await;
            });
        }
        // Deliveries and messages of the previous owner may be due.
        self.context.wake_dispatch.notify_one();
        self.context.wake_outbox.notify_one();
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        // A partition that this worker dropped must not be held for another TTL.
        let held: Vec<(FencingToken, u64)> = self
            .partitions
            .values()
            .filter(|owned| !owned.lost.is_cancelled())
            .map(|owned| (owned.token, owned.committed()))
            .collect();
        let holds_until = Instant::now() + self.ttl;
        let kept = match held.is_empty() {
            true => Vec::new(),
            false => self.context.store.renew_partitions(&held, self.ttl).await?,
        };
        for owned in self.partitions.values() {
            match kept.contains(&owned.partition()) && !owned.lost.is_cancelled() {
                true => owned.extend_lease(holds_until),
                false => owned.lost.cancel(),
            }
        }
        self.drop_lost();
        Ok(())
    }

    /// Wakes the redrives of partitions that have due dead letters, with one query for all.
    async fn notify_redrives(&self) -> Result<(), StoreError> {
        let held: Vec<Partition> = self.partitions.keys().copied().collect();
        for partition in self.context.store.partitions_to_redrive(&held).await? {
            if let Some(owned) = self.partitions.get(&partition) {
                owned.redrive.notify_one();
            }
        }
        Ok(())
    }

    async fn release_ended(&mut self) -> Result<(), StoreError> {
        let ended: Vec<Arc<OwnedPartition>> = self
            .partitions
            .values()
            .filter(|owned| owned.finished.is_cancelled())
            .map(Arc::clone)
            .collect();
        if ended.is_empty() {
            return Ok(());
        }
        let tokens: Vec<FencingToken> = ended.iter().map(|owned| owned.token).collect();
        self.context.store.release_partitions(&tokens).await?;
        for owned in ended {
            let partition = owned.partition();
            info!(%partition, epoch = owned.token.epoch, "partition released");
            self.context.metrics.record_lease_transition(LeaseTransition::Released);
            self.context.partitions.remove(partition);
            self.partitions.remove(&partition);
            if owned.needs_newer.is_cancelled() {
                self.needs_newer.push((partition, Instant::now()));
            }
        }
        Ok(())
    }

    fn reads_any(&self) -> bool {
        self.partitions.values().any(|owned| !owned.stop.is_cancelled())
    }

    fn drop_expired(&mut self) {
        for owned in self.partitions.values().filter(|owned| !owned.holds_lease()) {
            owned.lost.cancel();
        }
        self.drop_lost();
    }

    fn drop_lost(&mut self) {
        self.partitions.retain(|partition, owned| {
            let kept = !owned.lost.is_cancelled();
            if !kept {
                warn!(%partition, epoch = owned.token.epoch, "partition lost");
                self.context.metrics.record_lease_transition(LeaseTransition::Lost);
                self.context.partitions.remove(*partition);
            }
            kept
        });
    }
}

struct ReaderGuard(Arc<OwnedPartition>, Arc<Notify>);

impl Drop for ReaderGuard {
    fn drop(&mut self) {
        self.0.stop.cancel();
        self.0.finished.cancel();
        self.1.notify_one();
    }
}

/// Returns 128 random bits in hex. Panics if the system has no randomness, without which the
/// process cannot encrypt either.
fn random_id() -> String {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}
