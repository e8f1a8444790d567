//! Which partitions this worker owns, and for how long it may believe so.
//!
//! In: Postgres's rows of leases. Out: a [`Part`] per owned partition, running. Claimed up to this worker's share
//! (`ceil(64 / live workers)`), renewed every sixth of the TTL, given back when there are more workers, when NATS has been out of our
//! reach for a TTL and not out of others', or when we stop, lost when we could not renew. Two clocks are kept apart: Postgres decides who owns (and every commit asks
//! it again, by epoch); our own deadline, counted from before the renewal was asked for, decides when we stop
//! believing it.

use crate::{Workshop, metrics::LeaseChange, part::Part, read};
use async_nats::connection::State;
use shared::{
    partition::{PARTITIONS, Partition},
    store::{Held, StoreError},
    telemetry::Chain,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// All partitions of this worker.
pub struct Leases {
    workshop: Arc<Workshop>,
    js: async_nats::jetstream::Context,
    worker: String,
    ttl: Duration,
    parts: HashMap<Partition, Arc<Part>>,
    /// Since when NATS is out of our reach alone.
    parted: Option<Instant>,
    /// A part has drained, so there is something to give back.
    drained: Arc<Notify>,
    renewed: Renewed,
}

/// When leases were renewed last: whether this worker can do its work.
#[derive(Clone)]
pub struct Renewed {
    at: Arc<Mutex<Option<Instant>>>,
    ttl: Duration,
}

impl Renewed {
    /// Whether that is no longer ago than a lease lasts.
    pub fn lately(&self) -> bool {
        let at = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() < self.ttl)
    }

    fn now(&self) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

impl Leases {
    /// None yet.
    pub fn new(
        workshop: Arc<Workshop>,
        js: async_nats::jetstream::Context,
        worker: String,
        ttl: Duration,
    ) -> Self {
        let renewed = Renewed { at: Arc::default(), ttl };
        let (parts, drained) = (HashMap::new(), Arc::default());
        Self { workshop, js, worker, ttl, parts, parted: None, drained, renewed }
    }

    /// Tells when leases were renewed last.
    pub fn renewed(&self) -> Renewed {
        self.renewed.clone()
    }

    /// Owns partitions until told to stop; then gives them back, drained, within `grace`.
    pub async fn run(mut self, stop: CancellationToken, grace: Duration) {
        let mut tick = tokio::time::interval(self.ttl / 6);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut give_up = None;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = self.drained.notified() => {}
                _ = stop.cancelled(), if give_up.is_none() => give_up = Some(Instant::now() + grace),
            }
            // A turn that hangs must not keep us believing: what it would have renewed runs out meanwhile.
            match tokio::time::timeout(self.ttl / 2, self.turn(give_up.is_some())).await {
                Ok(Ok(())) => self.renewed.now(),
                Ok(Err(error)) => warn!(error = %Chain(&error), "leases could not be renewed"),
                Err(_) => warn!("Postgres did not answer in time; leases were not renewed"),
            }
            self.abandon_stuck(grace);
            self.drop_unbelieved();
            match give_up {
                Some(_) if self.parts.is_empty() => break,
                // What did not finish in time is somebody else's as soon as its lease runs out.
                Some(deadline) if Instant::now() >= deadline => {
                    warn!(
                        partitions = self.parts.len(),
                        "the grace is over; leases are left to run out"
                    );
                    break;
                }
                _ => {}
            }
        }
    }

    async fn turn(&mut self, stopping: bool) -> Result<(), StoreError> {
        self.renew().await?;
        self.release_drained().await?;
        if !stopping {
            self.tell_of_redrives().await?;
        }
        let share = match stopping {
            true => {
                self.workshop.store.worker_gone(&self.worker).await?;
                0
            }
            false => self.share().await?,
        };
        let working: Vec<_> =
            self.parts.values().filter(|part| !part.stop.is_cancelled()).collect();
        if working.len() > share {
            working[share..].iter().for_each(|part| part.drain());
        } else if self.parts.len() < share {
            self.claim(share - self.parts.len()).await?;
        }
        Ok(())
    }

    /// How many partitions are ours to have: as many as every other's who reads.
    async fn share(&mut self) -> Result<usize, StoreError> {
        let reads = self.js.client().connection_state() == State::Connected;
        self.parted = (!reads).then(|| self.parted.unwrap_or_else(Instant::now));
        let alive = self.workshop.store.worker_alive(&self.worker, reads, self.ttl).await?;
        let among = |workers| usize::from(PARTITIONS).div_ceil(workers);
        Ok(match self.parted {
            None => among(alive.reading),
            // NATS is away for all of us: nobody could do more with them.
            Some(_) if alive.reading == 0 => {
                self.parted = Some(Instant::now()); // who is back first must not get everything
                among(alive.living)
            }
            // The others may be about to notice, too.
            Some(since) if since.elapsed() < self.ttl => self.parts.len(),
            Some(since) => {
                if self.parts.values().any(|part| !part.stop.is_cancelled()) {
                    let out_of_reach_for = since.elapsed();
                    warn!(
                        ?out_of_reach_for,
                        "NATS is out of reach and others read: they get the partitions"
                    );
                }
                0
            }
        })
    }

    async fn claim(&mut self, count: usize) -> Result<(), StoreError> {
        let believed_until = Instant::now() + self.ttl;
        let claimed = self.workshop.store.claim_partitions(&self.worker, count, self.ttl).await?;
        for leased in claimed {
            info!(partition = %leased.partition, epoch = leased.epoch, cursor = leased.cursor, "took a partition");
            self.workshop.metrics.lease(LeaseChange::Taken);
            let part = Arc::new(Part::new(&self.worker, leased, believed_until));
            if let Some(before) = self.parts.insert(leased.partition, Arc::clone(&part)) {
                before.lost.cancel(); // it had run out, and it is ours again, under a new epoch
            }
            let (workshop, js, drained) =
                (Arc::clone(&self.workshop), self.js.clone(), Arc::clone(&self.drained));
            tokio::spawn(async move {
                // Whatever ends it, even a panic, the partition must not be held by nobody.
                let _over = Over(Arc::clone(&part), drained);
                read::run(workshop, js, part).await;
            });
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        // What we let go of by ourselves is not kept from others for another TTL.
        let ours = self.parts.values().filter(|part| !part.lost.is_cancelled());
        let held: Vec<Held> = ours.map(|part| part.held()).collect();
        let believed_until = Instant::now() + self.ttl;
        let kept = match held.is_empty() {
            true => Vec::new(),
            false => self.workshop.store.renew_partitions(&held, self.ttl).await?,
        };
        self.parts.retain(|partition, part| {
            let kept = kept.contains(partition) && !part.lost.is_cancelled();
            if kept {
                part.believe_until(believed_until);
            } else {
                warn!(%partition, epoch = part.owner.epoch, "lost a partition");
                self.workshop.metrics.lease(LeaseChange::Lost);
                part.lost.cancel();
            }
            kept
        });
        Ok(())
    }

    /// Asked here, once for all partitions, so that nobody has to ask for each.
    async fn tell_of_redrives(&self) -> Result<(), StoreError> {
        let held: Vec<Partition> = self.parts.keys().copied().collect();
        for partition in self.workshop.store.partitions_to_redrive(&held).await? {
            if let Some(part) = self.parts.get(&partition) {
                part.redrive.notify_one();
            }
        }
        Ok(())
    }

    async fn release_drained(&mut self) -> Result<(), StoreError> {
        let drained: Vec<Held> = self
            .parts
            .values()
            .filter(|part| part.finished.is_cancelled())
            .map(|part| part.held())
            .collect();
        if drained.is_empty() {
            return Ok(());
        }
        self.workshop.store.release_partitions(&drained).await?;
        for held in drained {
            info!(partition = %held.partition, epoch = held.epoch, cursor = held.cursor, "gave a partition back");
            self.workshop.metrics.lease(LeaseChange::Returned);
            self.parts.remove(&held.partition);
        }
        Ok(())
    }

    /// A partition that does not finish draining stands still for everybody: it is dropped, and its lease runs out.
    fn abandon_stuck(&mut self, grace: Duration) {
        for part in self.parts.values().filter(|part| part.draining_for() > grace) {
            warn!(partition = %part.owner.partition, "it did not finish in time; dropped");
            part.lost.cancel();
        }
    }

    fn drop_unbelieved(&mut self) {
        self.parts.retain(|partition, part| {
            let ours = part.is_ours();
            if !ours {
                warn!(%partition, epoch = part.owner.epoch, "a lease ran out before it could be renewed");
                self.workshop.metrics.lease(LeaseChange::Lost);
                part.lost.cancel();
            }
            ours
        });
    }
}

struct Over(Arc<Part>, Arc<Notify>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.stop.cancel();
        self.0.finished.cancel();
        self.1.notify_one();
    }
}
