//! What a worker counts, for Prometheus. Labels come from closed sets: no id of a connection, team or user is one.
//!
//! In: what the stages tell. Out: a page. What is true of a moment (lag, depth, age) is asked of the partitions in
//! hand when the page is read, so that a partition given up leaves no figure behind. What only Postgres knows (parked,
//! dead) is told by the one worker that tidies.

use crate::{
    agent::AgentCalls,
    hydrate::Hydrator,
    lane::{Lanes, WeakLanes},
    part::Part,
    slack::counted::Counted,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use shared::{lines::Dropped, store::Standing, types::Kind};
use std::{
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
    time::Duration,
};

/// A commit takes a few milliseconds; a Postgres in trouble seconds.
const COMMIT_BUCKETS: [f64; 11] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// A handler is a few milliseconds, or an agent's tens of seconds.
const HANDLE_BUCKETS: [f64; 11] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From milliseconds to the day after which a webhook is given up.
const AGE_BUCKETS: [f64; 12] =
    [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 86400.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TryLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabels {
    partition: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    change: &'static str,
}

/// All of it.
pub struct Metrics {
    registry: Registry,
    tries: Family<TryLabels, Counter>,
    handling: Histogram,
    ages: Histogram,
    commits: Histogram,
    group_sizes: Histogram,
    fenced: Counter,
    dead: Counter,
    leases: Family<ChangeLabels, Counter>,
    generations: Counter,
    owned: Gauge,
    lag: Family<PartitionLabels, Gauge>,
    oldest: Family<PartitionLabels, Gauge<f64, AtomicU64>>,
    lanes: Gauge,
    queued: Gauge,
    deepest: Gauge,
    breaker: Gauge,
    parked_lanes: Gauge,
    parked: Gauge,
    parked_oldest: Gauge<f64, AtomicU64>,
    dead_kept: Gauge,
    unsaid: Gauge,
    unsaid_oldest: Gauge<f64, AtomicU64>,
    stream_used: Gauge<f64, AtomicU64>,
    watched: Mutex<Vec<Watched>>,
}

/// A partition in hand, for as long as it is.
struct Watched {
    part: Weak<Part>,
    lanes: WeakLanes,
}

impl Watched {
    fn is_in_hand(&self) -> bool {
        self.part.upgrade().is_some_and(|part| !part.is_over())
    }
}

/// How a lease changed.
#[derive(Debug, Clone, Copy)]
pub enum LeaseChange {
    /// Claimed.
    Taken,
    /// Given back, drained.
    Returned,
    /// Ran out, or somebody else has it.
    Lost,
}

impl Metrics {
    /// All zero, but for what the hydrator and the clients of Slack and of agents count by themselves.
    pub fn new(
        hydrator: &Hydrator,
        slack: &Counted,
        agents: &AgentCalls,
        dropped: Dropped,
    ) -> Self {
        let mut registry = Registry::default();
        let this = Self {
            registry: Registry::default(),
            tries: Family::default(),
            handling: Histogram::new(HANDLE_BUCKETS),
            ages: Histogram::new(AGE_BUCKETS),
            commits: Histogram::new(COMMIT_BUCKETS),
            group_sizes: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]),
            fenced: Counter::default(),
            dead: Counter::default(),
            leases: Family::default(),
            generations: Counter::default(),
            owned: Gauge::default(),
            lag: Family::default(),
            oldest: Family::default(),
            lanes: Gauge::default(),
            queued: Gauge::default(),
            deepest: Gauge::default(),
            breaker: Gauge::default(),
            parked_lanes: Gauge::default(),
            parked: Gauge::default(),
            parked_oldest: Gauge::default(),
            dead_kept: Gauge::default(),
            unsaid: Gauge::default(),
            unsaid_oldest: Gauge::default(),
            stream_used: Gauge::default(),
            watched: Mutex::default(),
        };
        // There from the start, so that its first time is a change.
        let lost = ChangeLabels { change: "lost" };
        drop(this.leases.get_or_create(&lost));
        let r = &mut registry;
        r.register("worker_webhooks", "Tries by how they ended", this.tries.clone());
        r.register_with_unit(
            "worker_handle_duration",
            "One try, waiting for a slot apart",
            Unit::Seconds,
            this.handling.clone(),
        );
        r.register_with_unit(
            "worker_webhook_age",
            "From ingest's reading of a webhook to its being done or dead",
            Unit::Seconds,
            this.ages.clone(),
        );
        r.register_with_unit(
            "worker_commit_duration",
            "A transaction of effects, in Postgres",
            Unit::Seconds,
            this.commits.clone(),
        );
        r.register(
            "worker_commit_group_size",
            "Webhooks committed by one transaction",
            this.group_sizes.clone(),
        );
        r.register(
            "worker_fenced_commits",
            "Commits refused because somebody else owns the partition",
            this.fenced.clone(),
        );
        r.register("worker_dead", "Webhooks given up", this.dead.clone());
        r.register("worker_lease_changes", "Partitions taken, returned, lost", this.leases.clone());
        r.register(
            "worker_stream_generations_raised",
            "Partitions whose stream was not the one that was read",
            this.generations.clone(),
        );
        r.register("worker_partitions_owned", "Partitions in hand", this.owned.clone());
        r.register(
            "worker_partition_lag",
            "Webhooks of a partition that are stored and neither done nor set aside",
            this.lag.clone(),
        );
        r.register(
            "worker_partition_oldest_unfinished_seconds",
            "Age of a partition's oldest webhook in hand",
            this.oldest.clone(),
        );
        r.register("worker_lanes", "Lanes with something in memory", this.lanes.clone());
        r.register(
            "worker_lane_queued",
            "Webhooks that wait in memory for one before them",
            this.queued.clone(),
        );
        r.register("worker_lane_depth_max", "Of the deepest lane in memory", this.deepest.clone());
        r.register(
            "worker_breaker_open",
            "1 while most handling fails, and nothing is given up for it",
            this.breaker.clone(),
        );
        r.register(
            "worker_parked_lanes",
            "Lanes set aside, of all workers; told by one of them",
            this.parked_lanes.clone(),
        );
        r.register(
            "worker_parked_webhooks",
            "Webhooks set aside, of all workers; told by one of them",
            this.parked.clone(),
        );
        r.register(
            "worker_parked_oldest_seconds",
            "How long the one set aside first waits; told by one worker",
            this.parked_oldest.clone(),
        );
        r.register(
            "worker_dead_kept",
            "Dead webhooks that nobody decided about yet; told by one worker",
            this.dead_kept.clone(),
        );
        r.register(
            "worker_stream_used_ratio",
            "Share of the stream's room that is used; told by one worker",
            this.stream_used.clone(),
        );
        r.register(
            "worker_hydrations",
            "Connections asked for, by where they came from",
            hydrator.asked(),
        );
        r.register(
            "worker_unsaid",
            "Messages still to be said to Slack, of all workers; told by one of them",
            this.unsaid.clone(),
        );
        r.register(
            "worker_unsaid_oldest_seconds",
            "How long the oldest of them waits; told by one worker",
            this.unsaid_oldest.clone(),
        );
        slack.register(r);
        agents.register(r);
        r.register_collector(Box::new(dropped));
        r.register("build", "What runs", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry, ..this }
    }

    /// A try ended.
    pub fn tried(&self, kind: Kind, outcome: &'static str, took: Duration) {
        self.tries.get_or_create(&TryLabels { kind: kind.as_str(), outcome }).inc();
        self.handling.observe(took.as_secs_f64());
    }

    /// A webhook of this age is over.
    pub fn finished(&self, age: Duration) {
        self.ages.observe(age.as_secs_f64());
    }

    /// A transaction of so many webhooks ended.
    pub fn committed(&self, webhooks: usize, took: Duration) {
        self.commits.observe(took.as_secs_f64());
        self.group_sizes.observe(webhooks as f64);
    }

    /// Postgres refused a commit: the partition is somebody else's.
    pub fn fenced(&self) {
        self.fenced.inc();
    }

    /// A webhook was given up.
    pub fn buried(&self) {
        self.dead.inc();
    }

    /// A partition's stream was not the one that was read.
    pub fn generation_raised(&self) {
        self.generations.inc();
    }

    /// A lease changed.
    pub fn lease(&self, change: LeaseChange) {
        let change = match change {
            LeaseChange::Taken => "taken",
            LeaseChange::Returned => "returned",
            LeaseChange::Lost => "lost",
        };
        self.leases.get_or_create(&ChangeLabels { change }).inc();
    }

    /// What Postgres holds of all workers' webhooks; none, when somebody else tells.
    pub fn standing(&self, standing: Standing) {
        self.parked_lanes.set(standing.parked_lanes);
        self.parked.set(standing.parked);
        self.parked_oldest.set(standing.parked_oldest.as_secs_f64());
        self.dead_kept.set(standing.dead);
        self.unsaid.set(standing.unsaid);
        self.unsaid_oldest.set(standing.unsaid_oldest.as_secs_f64());
    }

    /// So much of the stream's room is used.
    pub fn stream_used(&self, bytes: u64, room: u64) {
        self.stream_used.set(bytes as f64 / room.max(1) as f64);
    }

    /// Figures of this partition are told for as long as it is in hand.
    pub fn watch(&self, part: &Arc<Part>, lanes: &Lanes) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(Watched::is_in_hand);
        watched.push(Watched { part: Arc::downgrade(part), lanes: lanes.downgrade() });
    }

    /// What stands in the page that Prometheus reads, as of now.
    pub fn page(&self, breaker_is_open: bool) -> String {
        self.breaker.set(i64::from(breaker_is_open));
        self.look_at_partitions();
        let mut page = String::new();
        encode(&mut page, &self.registry).expect("writing to a String does not fail");
        page
    }

    fn look_at_partitions(&self) {
        self.lag.clear();
        self.oldest.clear();
        let (mut owned, mut lanes, mut queued, mut deepest) = (0, 0, 0, 0);
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(Watched::is_in_hand);
        for Watched { part, lanes: of } in watched.iter() {
            let Some(part) = part.upgrade() else { continue };
            let labels = PartitionLabels { partition: part.owner.partition.number() };
            self.lag.get_or_create(&labels).set(part.lag() as i64);
            self.oldest.get_or_create(&labels).set(part.oldest_unfinished().as_secs_f64());
            let depth = of.upgrade().map(|lanes| lanes.depth()).unwrap_or_default();
            owned += 1;
            lanes += depth.lanes;
            queued += depth.queued;
            deepest = depth.deepest.max(deepest);
        }
        self.owned.set(owned);
        self.lanes.set(lanes as i64);
        self.queued.set(queued as i64);
        self.deepest.set(deepest as i64);
    }
}
