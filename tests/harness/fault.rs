//! Faults that tests inject into processes under load, and a seeded random number generator.

use crate::test_env::{LEASE_TTL, TestEnv};
use std::time::Duration;

/// Time of load before and after a fault, and of an outage.
pub const CALM: Duration = Duration::from_secs(2);
/// Grace period of a worker that is stopped.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// A fault of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    KillWorker,
    /// SIGSTOP until the lease has expired, then SIGCONT.
    FreezeWorker,
    /// SIGTERM, and a new worker.
    StopWorker,
    /// SIGKILL.
    KillIngest,
    /// SIGKILL, and a restart after a while.
    KillNats,
    /// SIGKILL, and a restart after a while.
    KillPostgres,
    /// SIGSTOP until every lease has expired, then SIGCONT.
    FreezePostgres,
}

/// All faults.
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
    /// Injects the fault and restores the process.
    ///
    /// # Errors
    /// If a process does not become ready again.
    pub async fn inject(self, env: &TestEnv, which: usize) -> anyhow::Result<()> {
        let worker = &env.workers[which % env.workers.len()].process;
        let ingest = &env.ingests[which % env.ingests.len()];
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
                env.wait_until_balanced().await?;
            }
            Fault::KillIngest => {
                ingest.process.kill();
                ingest.process.restart()?;
                ingest.wait_until_ready().await?;
            }
            Fault::KillNats => {
                env.nats.kill();
                tokio::time::sleep(CALM).await;
                env.nats.restart().await?;
            }
            Fault::KillPostgres => {
                env.postgres.kill();
                tokio::time::sleep(CALM).await;
                env.postgres.restart().await?;
            }
            Fault::FreezePostgres => {
                env.postgres.freeze();
                tokio::time::sleep(LEASE_TTL + CALM).await;
                env.postgres.thaw();
            }
        }
        Ok(())
    }
}

/// SplitMix64 generator: small, with the same numbers on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Returns a generator with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns the next number below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit.max(1) as u64) as usize
    }

    /// Returns one of the elements.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
