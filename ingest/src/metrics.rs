//! Prometheus metrics of ingest. Labels have a closed set of values, or are apps up to a maximum,
//! and are never ids of connections, workspaces or people.

use axum::http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry, Unit},
};
use shared::{domain::AppId, runtime::DroppedLines};
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

/// Bucket bounds in seconds, up to and beyond Slack's deadline of 3 s.
const REQUEST_BUCKETS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0];
/// Bucket bounds in seconds. A publish takes under 1 ms on one machine, and a few milliseconds with
/// a replicated stream.
const PUBLISH_BUCKETS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.8, 1.6, 2.5];

/// Maximum number of apps with their own label. All others share the label `other`.
const MAX_LABELLED_APPS: usize = 500;
const OTHER_APPS: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AppLabels {
    app: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebhookLabels {
    outcome: &'static str,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    http_route: &'static str,
    status_class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SecretLabels {
    secret: &'static str,
}

/// Registry of all metrics, and those that the pipeline updates.
pub struct Metrics {
    registry: Registry,
    webhooks: Family<WebhookLabels, Counter>,
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    publishes: Histogram,
    verified: Family<SecretLabels, Counter>,
    events_withheld: Counter,
    clock_skew: Gauge,
    refusals: Family<AppLabels, Counter>,
    labelled_apps: Mutex<HashSet<AppId>>,
    requests_in_flight: Gauge,
    in_flight_bytes: Gauge,
    unverified_bytes: Gauge,
    live_ingests: Gauge,
    quota_keys: Gauge,
    connections: Gauge,
    directory_revision: Gauge,
    nats_connected: Gauge,
    apps_at_risk: Gauge,
    app_failure_ratio_max: Gauge<f64, AtomicU64>,
}

/// Values of the gauges that are read at each scrape.
pub struct Snapshot {
    pub requests_in_flight: usize,
    pub in_flight_bytes: usize,
    pub unverified_bytes: usize,
    pub live_ingests: u32,
    pub quota_keys: usize,
    pub connections: usize,
    pub directory_revision: u64,
    pub is_nats_connected: bool,
    pub apps_at_risk: usize,
    pub app_failure_ratio_max: f64,
}

/// Registers a metric with its default value.
fn metric<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// Registers all metrics, including the counters of the directory and the log.
    pub fn new(cache_misses: Counter, dropped_lines: DroppedLines) -> Self {
        let mut registry = Registry::with_prefix("tidegate");
        let r = &mut registry;
        let webhooks = metric(r, "ingest_webhooks", "Webhooks by outcome and kind");
        let requests =
            Family::new_with_constructor((|| Histogram::new(REQUEST_BUCKETS)) as fn() -> Histogram);
        r.register_with_unit(
            "http_server_request_duration",
            "Time from the request's headers to the response",
            Unit::Seconds,
            requests.clone(),
        );
        let publishes = Histogram::new(PUBLISH_BUCKETS);
        r.register_with_unit(
            "ingest_publish_duration",
            "Time to store a webhook, all attempts together",
            Unit::Seconds,
            publishes.clone(),
        );
        let verified = metric(
            r,
            "ingest_signatures_verified",
            "Verified webhooks by the connection's secret that matched",
        );
        let events_withheld = metric(
            r,
            "ingest_events_withheld",
            "Minutes for which Slack withheld the events of a workspace",
        );
        let clock_skew = metric(
            r,
            "ingest_clock_skew_seconds",
            "Difference between the local clock and the last timestamp that was rejected",
        );
        let refusals: Family<AppLabels, Counter> =
            metric(r, "ingest_quota_refusals", "Webhooks over the quota of their connection");
        // Exported at zero, so that `increase()` counts the first refusal.
        drop(refusals.get_or_create(&AppLabels { app: OTHER_APPS.into() }));
        let requests_in_flight =
            metric(r, "ingest_requests_in_flight", "Verified webhooks that are being processed");
        let in_flight_bytes =
            metric(r, "ingest_in_flight_body_bytes", "Bodies of webhooks in flight");
        let unverified_bytes =
            metric(r, "ingest_unverified_body_bytes", "Bodies that are not verified yet");
        let live_ingests = metric(r, "ingest_live_ingests", "Live ingests, which share the quotas");
        let quota_keys =
            metric(r, "ingest_quota_keys", "Keys in the tables of quotas that are not full");
        let connections = metric(r, "ingest_connections", "Connections in the directory");
        let directory_revision =
            metric(r, "ingest_directory_revision", "Revision up to which the directory is applied");
        r.register(
            "ingest_directory_cache_misses",
            "Reads of the directory bucket caused by cache misses",
            cache_misses,
        );
        let nats_connected =
            metric(r, "ingest_nats_connected", "1 while the client is connected to NATS");
        let apps_at_risk =
            metric(r, "ingest_apps_at_risk", "Apps above half of Slack's failure limit");
        let app_failure_ratio_max = metric(
            r,
            "ingest_app_failure_ratio_max",
            "Highest failure ratio of an app in the last hour, from 1,000 deliveries on",
        );
        r.register_collector(Box::new(dropped_lines));
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "Version of the binary", build);
        Self {
            registry,
            webhooks,
            requests,
            publishes,
            verified,
            events_withheld,
            clock_skew,
            refusals,
            labelled_apps: Mutex::default(),
            requests_in_flight,
            in_flight_bytes,
            unverified_bytes,
            live_ingests,
            quota_keys,
            connections,
            directory_revision,
            nats_connected,
            apps_at_risk,
            app_failure_ratio_max,
        }
    }

    /// Records the response to a webhook.
    pub fn record_response(
        &self,
        http_route: &'static str,
        kind: &'static str,
        outcome: &'static str,
        status: StatusCode,
        duration: Duration,
    ) {
        self.webhooks.get_or_create(&WebhookLabels { outcome, kind }).inc();
        let status_class = match status.as_u16() / 100 {
            2 => "2xx",
            4 => "4xx",
            _ => "5xx",
        };
        let labels = RequestLabels { http_route, status_class };
        self.requests.get_or_create(&labels).observe(duration.as_secs_f64());
    }

    /// Records a publish, successful or not.
    pub fn record_publish(&self, duration: Duration) {
        self.publishes.observe(duration.as_secs_f64());
    }

    /// Records a verified signature. `key_index` is 0 for the current key.
    pub fn record_verified(&self, key_index: usize) {
        let secret = if key_index == 0 { "current" } else { "previous" };
        self.verified.get_or_create(&SecretLabels { secret }).inc();
    }

    /// Records a rate limit notice of Slack.
    pub fn record_events_withheld(&self) {
        self.events_withheld.inc();
    }

    /// Records a webhook of an app that was refused over quota.
    pub fn record_refusal(&self, app: &AppId) {
        let mut apps = self.labelled_apps.lock().unwrap_or_else(PoisonError::into_inner);
        if apps.len() < MAX_LABELLED_APPS && !apps.contains(app) {
            apps.insert(app.clone());
        }
        let app = if apps.contains(app) { app.as_str() } else { OTHER_APPS };
        self.refusals.get_or_create(&AppLabels { app: app.to_owned() }).inc();
    }

    /// Records the skew of a stale timestamp.
    pub fn record_skew(&self, skew: Duration) {
        self.clock_skew.set(skew.as_secs() as i64);
    }

    /// Renders the metrics page.
    pub fn render(&self, snapshot: &Snapshot) -> String {
        self.requests_in_flight.set(snapshot.requests_in_flight as i64);
        self.in_flight_bytes.set(snapshot.in_flight_bytes as i64);
        self.unverified_bytes.set(snapshot.unverified_bytes as i64);
        self.live_ingests.set(i64::from(snapshot.live_ingests));
        self.quota_keys.set(snapshot.quota_keys as i64);
        self.connections.set(snapshot.connections as i64);
        self.directory_revision.set(snapshot.directory_revision as i64);
        self.nats_connected.set(i64::from(snapshot.is_nats_connected));
        self.apps_at_risk.set(snapshot.apps_at_risk as i64);
        self.app_failure_ratio_max.set(snapshot.app_failure_ratio_max);
        let mut page = String::new();
        encode(&mut page, &self.registry).expect("writing to a String does not fail");
        page
    }
}
