//! Quotas of verified webhooks per connection and workspace: number and body bytes.
//!
//! A quota keeps one connection from exhausting what all share: the stream and the capacity of
//! ingests and workers. It is a token bucket above Slack's own limit of 30,000 events per hour and
//! workspace. All live ingests share a quota: each multiplies the cost of a webhook by the number
//! of ingests, which may change at any time.
//!
//! Both tables are bounded, and have only keys that were used recently: a missing bucket is the
//! same as a full one.

use crate::directory::Connection;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
    state::keyed::HashMapStateStore,
};
use shared::{
    domain::{AppId, ConnectionId, TeamId},
    slack::InboundPayload,
};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Maximum number of keys in each table. While a table is full, quotas are not enforced. Requests
/// with made-up connections do not fill it, because only verified webhooks are counted.
const MAX_KEYS: usize = 100_000;
/// Number of quotas of a connection that serves several workspaces. Each workspace has one of them
/// by its hash, so that signed bodies with made-up workspaces get no more.
const WORKSPACES_PER_CONNECTION: u64 = 64;
/// Maximum number of connections whose refusals are logged in one interval.
const MAX_REPORTED: usize = 1_000;
/// Interval at which idle keys are removed and refusals are logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Limits of a quota, across all ingests.
#[derive(Debug, Clone, Copy)]
pub struct QuotaLimits {
    /// Webhooks per second.
    pub webhooks_per_second: NonZeroU32,
    /// Maximum burst of webhooks.
    pub webhook_burst: NonZeroU32,
    /// Body bytes per second.
    pub bytes_per_second: NonZeroU32,
    /// Maximum burst of body bytes.
    pub byte_burst: NonZeroU32,
}

/// Connection, and the hash of the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuotaKey {
    connection: ConnectionId,
    workspace: u8,
}

impl QuotaKey {
    /// Returns the key of a webhook. The workspace in the body counts only if the connection serves
    /// several workspaces.
    pub fn of(connection: &Connection, inbound: &InboundPayload<'_>) -> Self {
        let named = || inbound.installations().into_iter().find_map(|named| named.team);
        let workspace = if connection.team.is_some() { None } else { named() };
        let workspace = workspace.as_ref().map_or(0, workspace_number);
        Self { connection: connection.id, workspace }
    }
}

fn workspace_number(team: &TeamId) -> u8 {
    let mut hasher = DefaultHasher::new();
    team.hash(&mut hasher);
    (hasher.finish() % WORKSPACES_PER_CONNECTION) as u8
}

type Limiter<C> =
    RateLimiter<QuotaKey, HashMapStateStore<QuotaKey>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// Quotas of all connections.
pub struct Quotas<C: Clock = DefaultClock> {
    limits: QuotaLimits,
    webhooks: Limiter<C>,
    bytes: Limiter<C>,
    clock: C,
    refused: Mutex<HashMap<ConnectionId, Refused>>,
}

/// Refused webhooks of a connection since the last report.
struct Refused {
    app: AppId,
    webhooks: u64,
    bytes: u64,
}

impl<C: Clock + Clone> Quotas<C> {
    /// Creates full quotas.
    pub fn new(limits: QuotaLimits, clock: C) -> Self {
        let limiter = |per_second, burst| {
            let quota = Quota::per_second(per_second).allow_burst(burst);
            RateLimiter::new(quota, HashMapStateStore::default(), clock.clone())
        };
        Self {
            limits,
            webhooks: limiter(limits.webhooks_per_second, limits.webhook_burst),
            bytes: limiter(limits.bytes_per_second, limits.byte_burst),
            clock: clock.clone(),
            refused: Mutex::default(),
        }
    }

    /// Takes a webhook with a body of `bytes` from its quota, which `live_ingests` share. The error
    /// is the time until the quota has room.
    pub fn take(&self, key: QuotaKey, bytes: usize, live_ingests: u32) -> Result<(), Duration> {
        if self.webhooks.len() >= MAX_KEYS {
            return Ok(());
        }
        let webhooks = cost(1, live_ingests, self.limits.webhook_burst);
        self.take_from(&self.webhooks, &key, webhooks)?;
        let bytes = cost(bytes, live_ingests, self.limits.byte_burst);
        self.take_from(&self.bytes, &key, bytes)
    }

    fn take_from(
        &self,
        limiter: &Limiter<C>,
        key: &QuotaKey,
        cost: NonZeroU32,
    ) -> Result<(), Duration> {
        let taken = limiter.check_key_n(key, cost).expect("a cost is at most the burst");
        taken.map_err(|until| until.wait_time_from(self.clock.now()))
    }

    /// Records a refusal for the next report.
    pub fn record_refusal(&self, connection: &Connection, bytes: usize) {
        let mut refused = self.refused();
        if refused.len() < MAX_REPORTED || refused.contains_key(&connection.id) {
            let new = || Refused { app: connection.app.clone(), webhooks: 0, bytes: 0 };
            let refused = refused.entry(connection.id).or_insert_with(new);
            refused.webhooks += 1;
            refused.bytes += bytes as u64;
        }
    }

    /// Returns the number of keys in the tables.
    pub fn key_count(&self) -> usize {
        self.webhooks.len() + self.bytes.len()
    }

    /// Removes idle keys and logs refusals by connection, at intervals until `stop` is cancelled.
    pub async fn report(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(REPORT_INTERVAL)).await.is_some() {
            self.remove_idle();
            let refused = std::mem::take(&mut *self.refused());
            for (connection, Refused { app, webhooks, bytes }) in refused {
                warn!(%connection, %app, webhooks, bytes, "webhooks over quota refused");
            }
        }
    }

    fn remove_idle(&self) {
        for limiter in [&self.webhooks, &self.bytes] {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<ConnectionId, Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the cost to take at this ingest for `amount`. At most the burst, so that a body of any
/// allowed size fits into a full quota.
fn cost(amount: usize, live_ingests: u32, burst: NonZeroU32) -> NonZeroU32 {
    let amount = u32::try_from(amount).unwrap_or(u32::MAX);
    let cost = amount.saturating_mul(live_ingests).max(1);
    NonZeroU32::new(cost).map_or(burst, |cost| cost.min(burst))
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    const KIB: usize = 1024;
    const HOUR: Duration = Duration::from_secs(3600);
    /// Slack's limit for one app in one workspace.
    const SLACK_EVENTS_PER_HOUR: u32 = 30_000;

    fn limits() -> QuotaLimits {
        let number = |n| NonZeroU32::new(n).expect("not zero");
        QuotaLimits {
            webhooks_per_second: number(50),
            webhook_burst: number(1_000),
            bytes_per_second: number(256 * 1024),
            byte_burst: number(16 * 1024 * 1024),
        }
    }

    fn key(n: u32) -> QuotaKey {
        let connection = format!("{n:032x}").parse().expect("valid id");
        QuotaKey { connection, workspace: 0 }
    }

    /// Numbers in 0.0..1.0 from a seed (splitmix64).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    /// Ingests that share quotas. Each webhook goes to a random one.
    struct Ingests {
        clock: FakeRelativeClock,
        quotas: Vec<Quotas<FakeRelativeClock>>,
        random: Random,
        refused: u32,
        accepted: u32,
    }

    impl Ingests {
        fn new(count: usize) -> Self {
            let clock = FakeRelativeClock::default();
            let quotas = (0..count).map(|_| Quotas::new(limits(), clock.clone())).collect();
            Self { clock, quotas, random: Random(7), refused: 0, accepted: 0 }
        }

        fn send(&mut self, bytes: usize) {
            let ingest = (self.random.next() * self.quotas.len() as f64) as usize;
            let live = self.quotas.len() as u32;
            let taken = self.quotas[ingest].take(key(1), bytes, live).is_ok();
            self.accepted += u32::from(taken);
            self.refused += u32::from(!taken);
        }

        /// Sends Slack's maximum for an hour: `burst` webhooks at a time, at random times within
        /// the fraction `part` of the hour. Sizes are those of Slack's events, 4 KiB on average.
        fn send_hour(&mut self, burst: u32, part: f64) {
            let bursts = SLACK_EVENTS_PER_HOUR / burst;
            let average = HOUR.mul_f64(part) / bursts;
            let mut elapsed = Duration::ZERO;
            for _ in 0..bursts {
                for _ in 0..burst {
                    let kib = if self.random.next() < 0.01 { 100.0 } else { 6.0 };
                    let bytes = self.random.next() * kib * KIB as f64;
                    self.send(bytes as usize + 512);
                }
                let pause = average.mul_f64(self.random.next() * 2.0);
                self.clock.advance(pause);
                elapsed += pause;
            }
            self.clock.advance(HOUR.saturating_sub(elapsed));
        }
    }

    /// 30,000 events per hour, with 1, 3 and 30 ingests: spread over the hour, within a quarter of
    /// it, and in bursts. One hour, or 14 days with `TIDEGATE_FULL_SIZE`.
    #[test]
    fn accepts_slacks_own_maximum() {
        let hours = if std::env::var_os("TIDEGATE_FULL_SIZE").is_some() { 14 * 24 } else { 1 };
        for (ingests, burst, part) in
            [(1, 1, 1.0), (1, 1, 0.25), (1, 200, 1.0), (3, 1, 0.25), (3, 200, 1.0), (30, 1, 1.0)]
        {
            let mut all = Ingests::new(ingests);
            (0..hours).for_each(|_| all.send_hour(burst, part));
            assert_eq!(all.refused, 0, "{ingests} ingests, bursts of {burst} in {part}");
            assert_eq!(all.accepted, hours * SLACK_EVENTS_PER_HOUR);
        }
    }

    /// Floods of bodies of 1 MiB, and of small bodies.
    #[test]
    fn limits_flood_in_number_and_bytes() {
        for count in [1, 3, 16] {
            for (bytes, expected) in [(1024 * KIB, 16 + 50), (200, 1_000 + 50 * 200)] {
                let mut ingests = Ingests::new(count);
                for _ in 0..200 {
                    (0..100).for_each(|_| ingests.send(bytes));
                    ingests.clock.advance(Duration::from_secs(1));
                }
                let share = f64::from(ingests.accepted) / f64::from(expected);
                assert!((0.9..1.1).contains(&share), "{count} {bytes}: {}", ingests.accepted);
            }
        }
    }

    #[test]
    fn reports_time_until_room() {
        let (clock, key) = (FakeRelativeClock::default(), key(1));
        let quotas = Quotas::new(limits(), clock.clone());
        for _ in 0..16 {
            assert_eq!(quotas.take(key, 1024 * KIB, 1), Ok(()));
        }
        let wait = quotas.take(key, 1024 * KIB, 1).expect_err("over quota");
        assert!((3.9..4.1).contains(&wait.as_secs_f64()), "{wait:?}");
        clock.advance(wait);
        assert_eq!(quotas.take(key, 1024 * KIB, 1), Ok(()));
        // The largest body fits into a full quota, whatever the number of ingests.
        clock.advance(HOUR);
        assert_eq!(quotas.take(key, 1024 * KIB, 1_000), Ok(()));
        assert!(quotas.take(key, 1, 1).is_err());
    }

    #[test]
    fn connections_do_not_share_quota() {
        let quotas = Quotas::new(limits(), FakeRelativeClock::default());
        while quotas.take(key(1), 100, 1).is_ok() {}
        assert_eq!(quotas.take(key(2), 100, 1), Ok(()));
        let other_workspace = QuotaKey { workspace: 1, ..key(1) };
        assert_eq!(quotas.take(other_workspace, 100, 1), Ok(()));
    }

    #[test]
    fn removes_idle_keys_and_bounds_others() {
        let clock = FakeRelativeClock::default();
        let quotas = Quotas::new(limits(), clock.clone());
        for n in 0..2 * MAX_KEYS as u32 {
            assert_eq!(quotas.take(key(n), 100, 1), Ok(()));
        }
        assert_eq!(quotas.key_count(), 2 * MAX_KEYS);
        clock.advance(Duration::from_secs(1));
        quotas.remove_idle();
        assert_eq!(quotas.key_count(), 0, "their buckets are full again");
        while quotas.take(key(1), 100, 1).is_ok() {}
        quotas.remove_idle();
        assert_eq!(quotas.key_count(), 2);
    }
}
