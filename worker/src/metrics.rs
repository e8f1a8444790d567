//! Metrics of a worker, for Prometheus.
//!
//! Names begin with `tidegate_`. Labels come from enums and partition numbers, never from ids.
//! Gauges per partition are read from the owned partitions when the page is rendered, so that a
//! released partition leaves no series. Gauges that need Postgres are set by the worker that runs
//! the exclusive tasks of `maintenance`.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry, Unit},
};
use shared::{
    domain::WebhookKind,
    runtime::DroppedLines,
    store::{BacklogStats, NotificationStats},
    stream::Partition,
};
use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};
use time::OffsetDateTime;

/// Buckets in seconds. A commit takes milliseconds, or seconds if Postgres is overloaded.
const COMMIT_BUCKETS: [f64; 11] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabels {
    partition: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabels {
    transition: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FullLabels {
    rows: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotificationLabels {
    outcome: &'static str,
}

/// Outcome of an attempt to refresh a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshOutcome {
    /// Slack returned new tokens.
    Refreshed,
    /// Slack returned no tokens; the attempt is repeated.
    Failed,
    /// The refresh token was already used: the app must be installed again.
    UsedUp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefreshLabels {
    outcome: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

pub struct Metrics {
    registry: Registry,
    decisions: Family<DecisionLabels, Counter>,
    commits: Histogram,
    batch_sizes: Histogram,
    batches_refused: Counter,
    fenced: Counter,
    dead_lettered: Counter,
    leases: Family<TransitionLabels, Counter>,
    stream_resets: Counter,
    owned: Gauge,
    lag: Family<PartitionLabels, Gauge>,
    oldest: Family<PartitionLabels, Seconds>,
    deliveries: Gauge,
    deliveries_oldest: Seconds,
    dead_letters: Gauge,
    outbox: Gauge,
    outbox_oldest: Seconds,
    outbox_failures: Gauge,
    full_connections: Family<FullLabels, Gauge>,
    stream_used: Seconds,
    share_purges: Counter,
    notifications: Family<NotificationLabels, Counter>,
    notifications_waiting: Gauge,
    notifications_oldest: Seconds,
    refreshes: Family<RefreshLabels, Counter>,
    intake_bytes: Gauge,
    watched: Mutex<Vec<Weak<PartitionProgress>>>,
}

/// Progress of a partition, recorded by its reader.
pub struct PartitionProgress {
    partition: Partition,
    lag: AtomicU64,
    /// Time at which the oldest pending webhook was stored, in seconds since 1970, or 0.
    oldest_stored_at: AtomicI64,
}

impl PartitionProgress {
    /// Creates the progress of a partition before its first read.
    pub fn new(partition: Partition) -> Self {
        Self { partition, lag: AtomicU64::new(0), oldest_stored_at: AtomicI64::new(0) }
    }

    /// Records the number of stored webhooks past the cursor, and when the oldest pending one was
    /// stored.
    pub fn record(&self, lag: u64, oldest: Option<OffsetDateTime>) {
        self.lag.store(lag, Ordering::Relaxed);
        let oldest = oldest.map_or(0, OffsetDateTime::unix_timestamp);
        self.oldest_stored_at.store(oldest, Ordering::Relaxed);
    }

    #[expect(clippy::disallowed_methods, reason = "the metrics page is read")]
    fn oldest_age(&self) -> f64 {
        match self.oldest_stored_at.load(Ordering::Relaxed) {
            0 => 0.0,
            at => (OffsetDateTime::now_utc().unix_timestamp() - at).max(0) as f64,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum LeaseTransition {
    Claimed,
    Released,
    /// Expired, or claimed by another worker.
    Lost,
}

/// Registers a metric that begins at zero. Returns a clone that shares its value.
pub fn metric<M: Metric + Clone + Default>(r: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    r.register(name, help, metric.clone());
    metric
}

/// Registers a metric in seconds. Returns a clone that shares its value.
pub fn seconds<M: Metric + Clone>(r: &mut Registry, name: &str, help: &str, metric: M) -> M {
    r.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

impl Metrics {
    /// Creates the metrics. `register` adds those of the stages.
    pub fn new(dropped: DroppedLines, register: impl FnOnce(&mut Registry)) -> Self {
        let mut registry = Registry::with_prefix("tidegate");
        let r = &mut registry;
        let leases: Family<TransitionLabels, Counter> =
            metric(r, "partition_lease_transitions", "Partitions claimed, released, lost");
        // Starts at zero, so that `increase` counts the first lost lease.
        drop(leases.get_or_create(&TransitionLabels { transition: "lost" }));
        let batch_sizes = Histogram::new(BATCH_BUCKETS);
        r.register("worker_batch_size", "Webhooks per commit", batch_sizes.clone());
        let this = Self {
            decisions: metric(r, "worker_webhooks", "Webhooks committed, by kind and outcome"),
            commits: seconds(
                r,
                "worker_commit_duration",
                "Time to commit a batch in Postgres",
                Histogram::new(COMMIT_BUCKETS),
            ),
            batch_sizes,
            batches_refused: metric(r, "worker_batches_refused", "Batches that Postgres refused"),
            fenced: metric(r, "commits_fenced", "Commits after the loss of a partition"),
            dead_lettered: metric(r, "dead_lettered", "Webhooks and deliveries given up on"),
            leases,
            stream_resets: metric(r, "stream_resets", "Partitions whose stream was reset"),
            owned: metric(r, "worker_partitions_owned", "Partitions that this worker owns"),
            lag: metric(r, "partition_lag", "Stored webhooks of a partition past its cursor"),
            oldest: seconds(
                r,
                "partition_oldest_pending_age",
                "Age of the oldest webhook of a partition that is read and not committed",
                Family::default(),
            ),
            deliveries: metric(
                r,
                "deliveries_pending",
                "Deliveries that wait or run, as counted in the last round",
            ),
            deliveries_oldest: seconds(
                r,
                "deliveries_oldest_pending_age",
                "Age of the oldest delivery that waits or runs",
                Gauge::default(),
            ),
            dead_letters: metric(
                r,
                "dead_letters",
                "Dead letters that wait for an operator, as counted in the last round",
            ),
            outbox: metric(
                r,
                "outbox_pending",
                "Messages that wait for Slack, of all workers; with more than 10,000 channels an \
                 estimate of Postgres",
            ),
            outbox_oldest: seconds(
                r,
                "outbox_oldest_pending_age",
                "Age of the oldest message that waits",
                Gauge::default(),
            ),
            outbox_failures: metric(
                r,
                "outbox_failures",
                "Messages that could not be sent; above 10,000 an estimate of Postgres",
            ),
            full_connections: metric(
                r,
                "backlog_full_connections",
                "Connections that have reached the limit of open deliveries or dead letters",
            ),
            stream_used: metric(r, "stream_used_ratio", "Share of the stream's bytes that is used"),
            share_purges: metric(
                r,
                "stream_share_purges",
                "Purges of a connection that held more than its share of the stream",
            ),
            notifications: metric(
                r,
                "notifications",
                "Attempts to notify the operator's backend: sent, failed, given_up",
            ),
            notifications_waiting: metric(
                r,
                "notifications_pending",
                "Notifications that the operator's backend has not confirmed, at most 10,001",
            ),
            notifications_oldest: seconds(
                r,
                "notifications_oldest_pending_age",
                "Age of the oldest notification that waits",
                Gauge::default(),
            ),
            refreshes: metric(
                r,
                "token_refreshes",
                "Attempts to refresh a bot token: refreshed, failed, used_up",
            ),
            intake_bytes: metric(
                r,
                "worker_intake_budget_used_bytes",
                "Bytes of webhooks that are read and not committed, each body counted four times",
            ),
            watched: Mutex::default(),
            registry: Registry::default(),
        };
        // Starts at zero, so that `increase` counts the first event.
        drop(this.notifications.get_or_create(&NotificationLabels { outcome: "given_up" }));
        for outcome in ["refreshed", "failed", "used_up"] {
            drop(this.refreshes.get_or_create(&RefreshLabels { outcome }));
        }
        register(r);
        r.register_collector(Box::new(dropped));
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "Running release", Info::new(version));
        Self { registry, ..this }
    }

    pub fn record_decision(&self, kind: WebhookKind, outcome: &'static str) {
        self.decisions.get_or_create(&DecisionLabels { kind: kind.as_str(), outcome }).inc();
    }

    /// Records a commit of `webhooks` webhooks.
    pub fn record_batch(&self, webhooks: usize, took: Duration) {
        self.commits.observe(took.as_secs_f64());
        self.batch_sizes.observe(webhooks as f64);
    }

    /// Counts a batch that Postgres refused for its contents or its duration.
    pub fn record_refused_batch(&self) {
        self.batches_refused.inc();
    }

    /// Counts a commit that changed nothing because another worker owns the partition.
    pub fn record_fenced_commit(&self) {
        self.fenced.inc();
    }

    /// Counts webhooks or deliveries that were given up.
    pub fn record_dead_letters(&self, count: u64) {
        self.dead_lettered.inc_by(count);
    }

    /// Counts a partition whose stream was reset.
    pub fn record_stream_reset(&self) {
        self.stream_resets.inc();
    }

    pub fn record_lease_transition(&self, transition: LeaseTransition) {
        let transition = match transition {
            LeaseTransition::Claimed => "claimed",
            LeaseTransition::Released => "released",
            LeaseTransition::Lost => "lost",
        };
        self.leases.get_or_create(&TransitionLabels { transition }).inc();
    }

    /// Sets the backlog of all workers; zero if another worker reports it.
    pub fn record_backlog(&self, stats: &BacklogStats) {
        self.deliveries.set(stats.deliveries);
        self.deliveries_oldest.set(stats.deliveries_oldest.as_secs_f64());
        self.dead_letters.set(stats.dead_letters);
        self.outbox.set(stats.outbox.waiting);
        self.outbox_oldest.set(stats.outbox.oldest.as_secs_f64());
        self.outbox_failures.set(stats.outbox.failures);
        for (rows, count) in
            [("deliveries", stats.full_of_deliveries), ("dead_letters", stats.full_of_dead_letters)]
        {
            self.full_connections.get_or_create(&FullLabels { rows }).set(count as i64);
        }
    }

    /// Counts an attempt to notify the backend, by its outcome.
    pub fn count_notification(&self, outcome: &'static str) {
        self.notifications.get_or_create(&NotificationLabels { outcome }).inc();
    }

    /// Counts an attempt to refresh a token.
    pub fn count_refresh(&self, outcome: RefreshOutcome) {
        let outcome = match outcome {
            RefreshOutcome::Refreshed => "refreshed",
            RefreshOutcome::Failed => "failed",
            RefreshOutcome::UsedUp => "used_up",
        };
        self.refreshes.get_or_create(&RefreshLabels { outcome }).inc();
    }

    /// Sets the notifications that wait; zero if another worker reports them.
    pub fn record_notifications(&self, stats: &NotificationStats) {
        self.notifications_waiting.set(stats.waiting);
        self.notifications_oldest.set(stats.oldest.as_secs_f64());
    }

    /// Sets the used share of the stream's bytes.
    pub fn record_stream_usage(&self, bytes: u64, max: u64) {
        self.stream_used.set(bytes as f64 / max.max(1) as f64);
    }

    /// Counts a purge of a connection over its share of the stream.
    pub fn record_share_purge(&self) {
        self.share_purges.inc();
    }

    /// Shows a partition on the metrics page until its progress is dropped.
    pub fn watch(&self, progress: &Arc<PartitionProgress>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|progress| progress.strong_count() > 0);
        watched.push(Arc::downgrade(progress));
    }

    /// Renders the page that Prometheus reads.
    pub fn render(&self, intake_bytes: usize) -> String {
        self.intake_bytes.set(intake_bytes as i64);
        self.lag.clear();
        self.oldest.clear();
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let owned: Vec<_> = watched.iter().filter_map(Weak::upgrade).collect();
        self.owned.set(owned.len() as i64);
        for progress in owned {
            let labels = PartitionLabels { partition: progress.partition.number() };
            let lag = progress.lag.load(Ordering::Relaxed);
            self.lag.get_or_create(&labels).set(lag as i64);
            self.oldest.get_or_create(&labels).set(progress.oldest_age());
        }
        drop(watched);
        let mut page = String::new();
        encode(&mut page, &self.registry).expect("writing to a String does not fail");
        page
    }
}
