//! What can be done to a world while it works, and a source of numbers that a seed repeats.
//!
//! In: a fault, and which of several it strikes. Out: the fault done, and what it took away brought back.

use crate::world::{LEASE_TTL, World};
use std::time::Duration;

/// Load before a fault and after it; and how long what is taken away stays away.
pub const CALM: Duration = Duration::from_secs(2);
/// A worker that is told to stop has its grace.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// What is done to a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    KillWorker,
    /// SIGSTOP until its lease is over, then SIGCONT.
    FreezeWorker,
    /// SIGTERM, and another comes.
    StopWorker,
    /// SIGKILL.
    KillIngest,
    /// SIGKILL; it is away for a while.
    KillNats,
    /// SIGKILL; it is away for a while.
    KillPostgres,
    /// SIGSTOP until every lease is over, then SIGCONT.
    FreezePostgres,
}

/// All of them.
pub const FAULTS: [Fault; 7] = [
    Fault::KillWorker,
    Fault::FreezeWorker,
    Fault::StopWorker,
    Fault::KillIngest,
    Fault::KillNats,
    Fault::KillPostgres,
    Fault::FreezePostgres,
];

impl Fault {
    /// Does it, and brings back what it took away.
    ///
    /// # Errors
    /// When something does not come back.
    pub async fn strike(self, world: &World, which: usize) -> anyhow::Result<()> {
        let worker = &world.workers[which % world.workers.len()].process;
        let ingest = &world.ingests[which % world.ingests.len()];
        match self {
            Fault::KillWorker => {
                worker.kill();
                tokio::time::sleep(CALM).await;
                worker.restart()?;
            }
            Fault::FreezeWorker => {
                worker.freeze();
                tokio::time::sleep(LEASE_TTL + CALM).await;
                worker.thaw();
            }
            Fault::StopWorker => {
                worker.terminate();
                worker.wait(ENDS_WITHIN).await?;
                worker.restart()?;
                world.settled().await?; // it has its share again
            }
            Fault::KillIngest => {
                ingest.process.kill();
                ingest.process.restart()?;
                ingest.ready().await?;
            }
            Fault::KillNats => {
                world.nats.kill();
                tokio::time::sleep(CALM).await;
                world.nats.restart().await?;
            }
            Fault::KillPostgres => {
                world.postgres.kill();
                tokio::time::sleep(CALM).await;
                world.postgres.restart().await?;
            }
            Fault::FreezePostgres => {
                world.postgres.freeze();
                tokio::time::sleep(LEASE_TTL + CALM).await;
                world.postgres.thaw();
            }
        }
        Ok(())
    }
}

/// SplitMix64: a few lines, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Everything that follows is decided by this.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number below this one.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit.max(1) as u64) as usize
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
