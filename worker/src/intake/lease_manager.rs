//! Owns partitions: claims them up to this worker's share, renews them, gives them back; and keeps this process's row in
//! `workers`, under which lanes run.
//!
//! The share is `ceil(64 / live workers that read)`. Leases are renewed every sixth of the TTL; whether a partition is free is
//! looked at more often, so that what another worker gives back stands still for a moment only. Partitions are given back
//! when there are more workers, when NATS is out of this worker's reach and not of others', or on shutdown; they are lost
//! when they could not be renewed. Postgres decides ownership, and every commit asks it again by epoch; this process's own
//! deadline, counted from before the renewal was sent, ends needless work.

use super::{batch::CLAIMS_BEFORE_ALONE, owned_partition::OwnedPartition, partition_reader};
use crate::{context::Context, decider::Decider, metrics::LeaseTransition};
use async_nats::{connection::State, jetstream};
use shared::{
    partition::{PARTITIONS, Partition},
    store::{FencingToken, StoreError},
    telemetry::Chain,
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
use tracing::{info, warn};

/// Between two looks whether a partition is free.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Partitions that were written by a newer release are claimed again after this long: the newer worker may be gone.
const NEEDS_NEWER_PERIOD: Duration = Duration::from_secs(30);

/// All partitions of this worker.
pub struct LeaseManager {
    context: Arc<Context>,
    js: jetstream::Context,
    decider: Decider,
    ttl: Duration,
    parts: BTreeMap<Partition, Arc<OwnedPartition>>,
    /// Since when NATS is out of this worker's reach alone.
    nats_lost_at: Option<Instant>,
    /// Partitions that need a newer release, and when that was noticed.
    needs_newer: Vec<(Partition, Instant)>,
    /// A reader has ended, so there is something to give back.
    ended: Arc<Notify>,
    renewal: watch::Sender<Option<Instant>>,
}

/// When leases were last renewed: whether this worker can do its work.
#[derive(Clone)]
pub struct LeaseRenewal {
    at: watch::Receiver<Option<Instant>>,
    ttl: Duration,
}

impl LeaseRenewal {
    /// Whether that is no longer ago than a lease lasts.
    pub fn is_recent(&self) -> bool {
        self.at.borrow().is_some_and(|at| at.elapsed() < self.ttl)
    }
}

impl LeaseManager {
    /// Owns nothing yet.
    pub fn new(
        context: Arc<Context>,
        js: jetstream::Context,
        decider: Decider,
        ttl: Duration,
    ) -> Self {
        Self {
            context,
            js,
            decider,
            ttl,
            parts: BTreeMap::new(),
            nats_lost_at: None,
            needs_newer: Vec::new(),
            ended: Arc::default(),
            renewal: watch::Sender::new(None),
        }
    }

    /// Tells when leases were last renewed.
    pub fn renewal(&self) -> LeaseRenewal {
        LeaseRenewal { at: self.renewal.subscribe(), ttl: self.ttl }
    }

    /// Owns partitions until told to stop, then gives them back; keeps the worker's row until `finished`: calls to agents
    /// and Slack may end after the partitions are gone.
    pub async fn run(mut self, stop: CancellationToken, finished: CancellationToken) {
        let mut tick = tokio::time::interval(self.ttl / 6);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What is free may be nothing for this worker: then it is not looked for until the next tick.
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
                _ = stop.cancelled(), if !self.parts.is_empty() && self.parts.values().any(|part| !part.stop.is_cancelled()) => {}
                _ = finished.cancelled(), if self.parts.is_empty() => break,
            }
            if stop.is_cancelled() {
                self.parts.values().for_each(|part| part.stop.cancel());
            }
            let held = self.parts.len();
            // A turn that hangs must not extend what it has not renewed.
            match tokio::time::timeout(self.ttl / 2, self.turn(stop.is_cancelled())).await {
                Ok(Ok(())) => drop(self.renewal.send(Some(Instant::now()))),
                Ok(Err(error)) => warn!(error = %Chain(&error), "failed to renew leases"),
                Err(_) => warn!("Postgres did not answer in time; leases were not renewed"),
            }
            looks |= self.parts.len() > held;
            self.drop_expired();
            if self.context.worker.end_if_expired() {
                warn!("the worker's row expired; everything that it ran was cancelled");
            }
        }
        if let Some(term) = self.context.worker.term()
            && let Err(error) = self.context.store.delete_worker(&term.id).await
        {
            warn!(error = %Chain(&error), "failed to delete the worker's row");
        }
    }

    async fn sees_free_partition(&self) -> bool {
        let free = self.context.store.has_free_partition();
        matches!(tokio::time::timeout(self.ttl / 6, free).await, Ok(Ok(true)))
    }

    async fn turn(&mut self, stopping: bool) -> Result<(), StoreError> {
        let reads = self.js.client().connection_state() == State::Connected;
        let share = self.renew_worker(reads, stopping).await?;
        self.renew().await?;
        self.release_ended().await?;
        if stopping {
            return Ok(());
        }
        self.notify_redrives().await?;
        let working: Vec<_> =
            self.parts.values().filter(|part| !part.stop.is_cancelled()).collect();
        if working.len() > share {
            working[share..].iter().for_each(|part| part.stop.cancel());
        } else if self.parts.len() < share {
            self.claim(share - self.parts.len()).await?;
        }
        Ok(())
    }

    /// Renews the worker's row, or makes another one, and returns how many partitions are this worker's share.
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
            return Ok(self.parts.len()); // claimed at the next turn, when others have been counted
        };
        self.context.worker.extend(before + self.ttl);
        self.nats_lost_at = (!reads).then(|| self.nats_lost_at.unwrap_or_else(Instant::now));
        let among = |workers: usize| usize::from(PARTITIONS).div_ceil(workers.max(1));
        Ok(match self.nats_lost_at {
            None => among(live.reading),
            // NATS is away for all of them: nobody could do more with these partitions.
            Some(_) if live.reading == 0 => {
                self.nats_lost_at = Some(Instant::now()); // who is back first must not get everything
                among(live.living)
            }
            // The others may be about to notice, too.
            Some(since) if since.elapsed() < self.ttl => self.parts.len(),
            Some(since) => {
                if self.parts.values().any(|part| !part.stop.is_cancelled()) {
                    let elapsed = since.elapsed();
                    warn!(
                        ?elapsed,
                        "NATS is out of reach and other workers read; partitions given to them"
                    );
                }
                0
            }
        })
    }

    async fn claim(&mut self, count: usize) -> Result<(), StoreError> {
        let holds_until = Instant::now() + self.ttl;
        self.needs_newer.retain(|(_, at)| at.elapsed() < NEEDS_NEWER_PERIOD);
        let except: HashSet<Partition> = self.needs_newer.iter().map(|(p, _)| *p).collect();
        let except: Vec<Partition> = except.into_iter().collect();
        let name = &self.context.worker_name;
        let claimed = self.context.store.claim_partitions(name, count, &except, self.ttl).await?;
        for lease in claimed {
            let (partition, epoch) = (lease.token.partition, lease.token.epoch);
            info!(%partition, epoch, cursor = lease.state.cursor, "partition claimed");
            self.context.metrics.lease(LeaseTransition::Claimed);
            let alone = lease.is_suspecting || lease.claims >= CLAIMS_BEFORE_ALONE;
            let part = Arc::new(OwnedPartition::new(lease.token, alone, holds_until));
            if let Some(before) = self.parts.insert(partition, Arc::clone(&part)) {
                before.lost.cancel(); // its lease had run out, and it was claimed again under a new epoch
            }
            self.context.metrics.watch(&part.progress);
            self.context.partitions.insert(partition);
            let guard = EndGuard(Arc::clone(&part), Arc::clone(&self.ended));
            let (context, js) = (Arc::clone(&self.context), self.js.clone());
            let decider = self.decider.clone();
            tokio::spawn(async move {
                // However the reader ends, even by a panic, its lease is given up.
                let _guard = guard;
                partition_reader::run(context, js, part, lease.state, decider).await;
            });
        }
        // What the owner before left may be due.
        self.context.wake_dispatch.notify_one();
        self.context.wake_outbox.notify_one();
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        // What this worker let go of by itself is not kept from others for another TTL.
        let held: Vec<FencingToken> = self
            .parts
            .values()
            .filter(|part| !part.lost.is_cancelled())
            .map(|part| part.token)
            .collect();
        let holds_until = Instant::now() + self.ttl;
        let kept = match held.is_empty() {
            true => Vec::new(),
            false => self.context.store.renew_partitions(&held, self.ttl).await?,
        };
        for part in self.parts.values() {
            match kept.contains(&part.partition()) && !part.lost.is_cancelled() {
                true => part.extend_lease(holds_until),
                false => part.lost.cancel(),
            }
        }
        self.drop_lost();
        Ok(())
    }

    /// Asked once for all partitions, so that no partition asks for itself.
    async fn notify_redrives(&self) -> Result<(), StoreError> {
        let held: Vec<Partition> = self.parts.keys().copied().collect();
        for partition in self.context.store.partitions_to_redrive(&held).await? {
            if let Some(part) = self.parts.get(&partition) {
                part.redrive.notify_one();
            }
        }
        Ok(())
    }

    async fn release_ended(&mut self) -> Result<(), StoreError> {
        let ended: Vec<Arc<OwnedPartition>> = self
            .parts
            .values()
            .filter(|part| part.finished.is_cancelled())
            .map(Arc::clone)
            .collect();
        if ended.is_empty() {
            return Ok(());
        }
        let tokens: Vec<FencingToken> = ended.iter().map(|part| part.token).collect();
        self.context.store.release_partitions(&tokens).await?;
        for part in ended {
            let partition = part.partition();
            info!(%partition, epoch = part.token.epoch, "partition released");
            self.context.metrics.lease(LeaseTransition::Released);
            self.context.partitions.remove(partition);
            self.parts.remove(&partition);
            if part.needs_newer.is_cancelled() {
                self.needs_newer.push((partition, Instant::now()));
            }
        }
        Ok(())
    }

    fn drop_expired(&mut self) {
        for part in self.parts.values().filter(|part| !part.holds_lease()) {
            part.lost.cancel();
        }
        self.drop_lost();
    }

    fn drop_lost(&mut self) {
        self.parts.retain(|partition, part| {
            let kept = !part.lost.is_cancelled();
            if !kept {
                warn!(%partition, epoch = part.token.epoch, "partition lost");
                self.context.metrics.lease(LeaseTransition::Lost);
                self.context.partitions.remove(*partition);
            }
            kept
        });
    }
}

struct EndGuard(Arc<OwnedPartition>, Arc<Notify>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.stop.cancel();
        self.0.finished.cancel();
        self.1.notify_one();
    }
}

/// 128 random bits, in hex. Only a system without randomness has none; then the process cannot seal anything either.
fn random_id() -> String {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}
