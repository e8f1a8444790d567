//! What ingest counts, for Prometheus. Labels come from closed sets: no id of a connection, team or user is one.

use crate::{app_health::Standings, directory::Directory, http::Answer, webhook::Publisher};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use shared::lines::Dropped;
use std::{
    sync::atomic::AtomicU64,
    time::{Duration, Instant},
};

/// Slack's deadline is 3 s; the interesting part lies far below.
const REQUEST_BUCKETS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0];
/// A publish takes well under a millisecond on one machine, and some with a replicated stream.
const PUBLISH_BUCKETS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.8, 1.6, 2.5];

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

/// All of it.
pub struct Metrics {
    registry: Registry,
    webhooks: Family<WebhookLabels, Counter>,
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    publishes: Histogram,
    secrets: Family<SecretLabels, Counter>,
    withheld: Counter,
    skew: Gauge,
    inflight: Gauge,
    connections: Gauge,
    revision: Gauge,
    nats_connected: Gauge,
    apps_at_risk: Gauge,
    worst_app: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// All zero, but for what the directory and the log count by themselves.
    pub fn new(directory: &Directory, dropped: Dropped) -> Self {
        let mut registry = Registry::with_prefix("tidegate");
        let requests =
            Family::new_with_constructor((|| Histogram::new(REQUEST_BUCKETS)) as fn() -> Histogram);
        let this = Self {
            webhooks: Family::default(),
            requests,
            publishes: Histogram::new(PUBLISH_BUCKETS),
            secrets: Family::default(),
            withheld: Counter::default(),
            skew: Gauge::default(),
            inflight: Gauge::default(),
            connections: Gauge::default(),
            revision: Gauge::default(),
            nats_connected: Gauge::default(),
            apps_at_risk: Gauge::default(),
            worst_app: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "ingest_webhooks",
            "Webhooks by how they were answered",
            this.webhooks.clone(),
        );
        registry.register_with_unit(
            "http_server_request_duration",
            "From the request's head to the answer",
            Unit::Seconds,
            this.requests.clone(),
        );
        registry.register_with_unit(
            "ingest_publish_duration",
            "Storing a webhook, all tries together",
            Unit::Seconds,
            this.publishes.clone(),
        );
        registry.register(
            "ingest_signatures_verified",
            "Verified webhooks by which of the connection's secrets signed them",
            this.secrets.clone(),
        );
        registry.register(
            "ingest_events_withheld",
            "Minutes for which Slack said that it withheld a workspace's events",
            this.withheld.clone(),
        );
        registry.register(
            "ingest_clock_skew_seconds",
            "Our time less Slack's, at the last webhook that was signed too long ago or in the future",
            this.skew.clone(),
        );
        registry.register(
            "ingest_requests_in_flight",
            "Webhooks being answered",
            this.inflight.clone(),
        );
        registry.register(
            "ingest_connections",
            "Connections in the directory",
            this.connections.clone(),
        );
        registry.register(
            "ingest_directory_revision",
            "How far the directory was read",
            this.revision.clone(),
        );
        registry.register(
            "ingest_directory_cache_misses",
            "Reads of the bucket, for what memory does not have",
            directory.reads(),
        );
        registry.register(
            "ingest_nats_connected",
            "1 while NATS is there",
            this.nats_connected.clone(),
        );
        registry.register(
            "ingest_apps_at_risk",
            "Apps past half of Slack's limit for switching an app off",
            this.apps_at_risk.clone(),
        );
        registry.register(
            "ingest_app_failure_ratio_max",
            "Failed share of the last hour's deliveries, of the worst app that Slack's limit is for",
            this.worst_app.clone(),
        );
        registry.register_collector(Box::new(dropped));
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs", build);
        Self { registry, ..this }
    }

    /// A webhook was answered.
    pub fn answered(
        &self,
        route: &'static str,
        kind: &'static str,
        answer: &Answer,
        took: Duration,
    ) {
        self.webhooks.get_or_create(&WebhookLabels { outcome: answer.label, kind }).inc();
        let status_class = match answer.status.as_u16() / 100 {
            2 => "2xx",
            4 => "4xx",
            _ => "5xx",
        };
        let labels = RequestLabels { http_route: route, status_class };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A publish ended, well or not.
    pub fn published(&self, took: Duration) {
        self.publishes.observe(took.as_secs_f64());
    }

    /// The key that matched: 0 for the present one.
    pub fn matched(&self, key: usize) {
        let secret = if key == 0 { "current" } else { "previous" };
        self.secrets.get_or_create(&SecretLabels { secret }).inc();
    }

    /// Slack told that it withheld events.
    pub fn events_withheld(&self) {
        self.withheld.inc();
    }

    /// A webhook was signed at a time too far from ours.
    pub fn skewed(&self, skew: Duration) {
        self.skew.set(skew.as_secs() as i64);
    }

    /// What stands in the page that Prometheus reads, as of now.
    pub fn page(
        &self,
        directory: &Directory,
        publisher: &Publisher,
        standings: &Standings,
        inflight: usize,
    ) -> String {
        self.inflight.set(inflight as i64);
        self.connections.set(directory.connections() as i64);
        self.revision.set(directory.applied().unwrap_or_default() as i64);
        self.nats_connected.set(i64::from(publisher.is_connected()));
        let (at_risk, worst) = standings.at_risk(Instant::now());
        self.apps_at_risk.set(at_risk as i64);
        self.worst_app.set(worst);
        let mut page = String::new();
        encode(&mut page, &self.registry).expect("writing to a String does not fail");
        page
    }
}
