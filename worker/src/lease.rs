//! Which partitions this worker owns, and for how long it may believe so.
//!
//! In: Postgres's rows of leases. Out: a [`Part`] per owned partition, running. Claimed up to this worker's share
//! (`ceil(64 / live workers)`), renewed every sixth of the TTL, given back when there are more workers or when we
//! stop, lost when we could not renew. Two clocks are kept apart: Postgres decides who owns (and every commit asks
//! it again, by epoch); our own deadline, counted from before the renewal was asked for, decides when we stop
//! believing it.

use crate::{Workshop, read};
use shared::{
    partition::{PARTITIONS, Partition},
    store::{Held, Leased, Owner, StoreError},
    telemetry::Chain,
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A partition this worker owns.
pub struct Part {
    /// The right to commit: worker, partition, epoch, generation.
    pub owner: Owner,
    /// Read no further; finish what runs.
    pub stop: CancellationToken,
    /// Not ours any more: drop everything.
    pub lost: CancellationToken,
    /// There may be something in the outbox.
    pub outbox: Notify,
    progress: Mutex<Progress>,
    believed_until: Mutex<Instant>,
    finished: CancellationToken,
}

struct Progress {
    /// Everything up to here was taken from the stream.
    read: u64,
    /// What was taken and is not finished.
    unfinished: BTreeSet<u64>,
}

impl Part {
    fn new(worker: &str, leased: Leased, believed_until: Instant) -> Self {
        let Leased { partition, epoch, generation, cursor } = leased;
        Self {
            owner: Owner { worker: worker.to_owned(), partition, epoch, generation },
            stop: CancellationToken::new(),
            lost: CancellationToken::new(),
            outbox: Notify::new(),
            progress: Mutex::new(Progress { read: cursor, unfinished: BTreeSet::new() }),
            believed_until: Mutex::new(believed_until),
            finished: CancellationToken::new(),
        }
    }

    /// Everything up to this sequence is finished.
    pub fn cursor(&self) -> u64 {
        let progress = self.progress();
        progress.unfinished.first().map_or(progress.read, |first| first - 1)
    }

    /// A webhook was taken from the stream.
    pub fn begin(&self, sequence: u64) {
        let mut progress = self.progress();
        progress.read = progress.read.max(sequence);
        progress.unfinished.insert(sequence);
    }

    /// Nothing of this partition lies between what was taken and here.
    pub fn skip_to(&self, sequence: u64) {
        let mut progress = self.progress();
        progress.read = progress.read.max(sequence);
    }

    /// A webhook is done, dead, or otherwise written down in Postgres.
    pub fn finish(&self, sequence: u64) {
        self.progress().unfinished.remove(&sequence);
    }

    /// Whether we may still believe that it is ours. To be asked before every call to the outside.
    pub fn is_ours(&self) -> bool {
        let believed_until = *self.believed_until.lock().unwrap_or_else(PoisonError::into_inner);
        !self.lost.is_cancelled() && Instant::now() < believed_until
    }

    fn believe_until(&self, until: Instant) {
        *self.believed_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> Held {
        Held { partition: self.owner.partition, epoch: self.owner.epoch, cursor: self.cursor() }
    }
}

/// All partitions of this worker.
pub struct Leases {
    workshop: Arc<Workshop>,
    js: async_nats::jetstream::Context,
    worker: String,
    ttl: Duration,
    parts: HashMap<Partition, Arc<Part>>,
    /// A part has drained, so there is something to give back.
    drained: Arc<Notify>,
}

impl Leases {
    /// None yet.
    pub fn new(
        workshop: Arc<Workshop>,
        js: async_nats::jetstream::Context,
        worker: String,
        ttl: Duration,
    ) -> Self {
        Self { workshop, js, worker, ttl, parts: HashMap::new(), drained: Arc::default() }
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
            if let Err(error) = self.turn(give_up.is_some()).await {
                warn!(error = %Chain(&error), "leases could not be renewed");
            }
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
        let live = match stopping {
            true => {
                self.workshop.store.worker_gone(&self.worker).await?;
                1
            }
            false => self.workshop.store.worker_alive(&self.worker, self.ttl).await?,
        };
        self.release_drained().await?;
        self.renew().await?;
        let share = if stopping { 0 } else { usize::from(PARTITIONS).div_ceil(live) };
        let working: Vec<_> =
            self.parts.values().filter(|part| !part.stop.is_cancelled()).collect();
        if working.len() > share {
            working[share..].iter().for_each(|part| part.stop.cancel());
        } else if self.parts.len() < share {
            self.claim(share - self.parts.len()).await?;
        }
        Ok(())
    }

    async fn claim(&mut self, count: usize) -> Result<(), StoreError> {
        let believed_until = Instant::now() + self.ttl;
        let claimed = self.workshop.store.claim_partitions(&self.worker, count, self.ttl).await?;
        for leased in claimed {
            info!(partition = %leased.partition, epoch = leased.epoch, cursor = leased.cursor, "took a partition");
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
        let held: Vec<Held> = self.parts.values().map(|part| part.held()).collect();
        if held.is_empty() {
            return Ok(());
        }
        let believed_until = Instant::now() + self.ttl;
        let kept = self.workshop.store.renew_partitions(&self.worker, &held, self.ttl).await?;
        self.parts.retain(|partition, part| {
            let kept = kept.contains(partition) && !part.lost.is_cancelled();
            if kept {
                part.believe_until(believed_until);
            } else {
                warn!(%partition, epoch = part.owner.epoch, "lost a partition");
                part.lost.cancel();
            }
            kept
        });
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
        self.workshop.store.release_partitions(&self.worker, &drained).await?;
        for held in drained {
            info!(partition = %held.partition, epoch = held.epoch, cursor = held.cursor, "gave a partition back");
            self.parts.remove(&held.partition);
        }
        Ok(())
    }

    fn drop_unbelieved(&mut self) {
        self.parts.retain(|partition, part| {
            let ours = part.is_ours();
            if !ours {
                warn!(%partition, epoch = part.owner.epoch, "a lease ran out before it could be renewed");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn part(cursor: u64) -> Part {
        let partition = Partition::try_from(3).expect("below 64");
        Part::new("w", Leased { partition, epoch: 1, generation: 1, cursor }, Instant::now())
    }

    #[test]
    fn the_cursor_stays_below_what_is_unfinished() {
        let part = part(10);
        assert_eq!(part.cursor(), 10);
        for sequence in [12, 15, 19] {
            part.begin(sequence);
        }
        assert_eq!(part.cursor(), 11);
        part.finish(15);
        assert_eq!(part.cursor(), 11);
        part.finish(12);
        assert_eq!(part.cursor(), 18);
        part.finish(19);
        assert_eq!(part.cursor(), 19);
    }

    #[test]
    fn an_idle_partition_moves_on_but_not_past_what_is_unfinished() {
        let part = part(10);
        part.skip_to(100);
        assert_eq!(part.cursor(), 100);
        part.begin(101);
        part.skip_to(200);
        assert_eq!(part.cursor(), 100);
    }
}
