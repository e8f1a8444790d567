//! Prometheus metrics of dispatch.

use crate::metrics::{metric, seconds};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use shared::domain::WebhookKind;
use std::time::Duration;

/// Buckets of attempt durations, in seconds: from milliseconds to minutes, with slow agents.
const ATTEMPT_BUCKETS: [f64; 12] =
    [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Buckets of end-to-end latencies, in seconds: from milliseconds to a day.
const LATENCY_BUCKETS: [f64; 12] =
    [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 86400.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    kind: &'static str,
    outcome: &'static str,
}

/// Metrics of dispatch. Clones share their values.
#[derive(Debug, Clone)]
pub struct DispatchMetrics {
    attempts: Family<AttemptLabels, Counter>,
    durations: Histogram,
    latency: Histogram,
    running: Gauge,
    runs: Gauge,
    payload_bytes: Gauge,
    open_circuits: Gauge,
}

impl DispatchMetrics {
    /// Returns the metrics, registered in a registry.
    pub fn new(r: &mut Registry) -> Self {
        Self {
            attempts: metric(r, "worker_attempts", "Attempts of deliveries, by kind and outcome"),
            durations: seconds(
                r,
                "worker_attempt_duration",
                "Time of one attempt",
                Histogram::new(ATTEMPT_BUCKETS),
            ),
            latency: seconds(
                r,
                "worker_end_to_end_latency",
                "Time from receipt of a webhook to the end of its delivery",
                Histogram::new(LATENCY_BUCKETS),
            ),
            running: metric(r, "worker_attempts_running", "Running attempts"),
            runs: metric(r, "worker_runs_open", "Runs: answers that agents stream"),
            payload_bytes: metric(
                r,
                "worker_payload_budget_used_bytes",
                "Bytes of the payloads of running attempts",
            ),
            open_circuits: metric(
                r,
                "agent_circuit_breakers_open",
                "Agents with an open circuit, on all workers; counted up to 1,000",
            ),
        }
    }

    /// Records an attempt with the metric label of its outcome.
    pub fn record_attempt(&self, kind: WebhookKind, outcome: &'static str, took: Duration) {
        self.attempts.get_or_create(&AttemptLabels { kind: kind.as_str(), outcome }).inc();
        self.durations.observe(took.as_secs_f64());
    }

    /// Records the time from receipt to the end of a delivery.
    pub fn record_latency(&self, latency: Duration) {
        self.latency.observe(latency.as_secs_f64());
    }

    /// Sets the number of running attempts and the bytes of their payloads.
    pub fn set_running(&self, attempts: usize, payload_bytes: usize) {
        self.running.set(attempts as i64);
        self.payload_bytes.set(payload_bytes as i64);
    }

    /// Sets the number of running runs.
    pub fn set_runs(&self, runs: usize) {
        self.runs.set(runs as i64);
    }

    /// Sets the number of agents with an open circuit.
    pub fn set_open_circuits(&self, open: i64) {
        self.open_circuits.set(open);
    }
}
