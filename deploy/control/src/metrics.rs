//! Prometheus metrics of the control API. Labels have a closed set of values and are never ids.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use shared::runtime::DroppedLines;
use std::time::Duration;

/// Bucket bounds in seconds, up to the timeout of requests.
const REQUEST_BUCKETS: [f64; 12] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    /// Template of the path, without ids.
    http_route: String,
    status: u32,
}

/// Reason for which a request was rejected before its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// No valid API key.
    Unauthorized,
    /// The key, or the address at the login, sends too many requests.
    RateLimited,
    /// Too many requests are in flight.
    Overloaded,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectionLabels {
    reason: &'static str,
}

/// Outcome of an installation in a browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstallOutcome {
    /// The app is connected.
    Installed,
    /// The person did not allow the app.
    Cancelled,
    /// The state was unknown, used, expired or of another browser.
    StateRefused,
    /// The workspace belongs to another organization, the organization has too many, the link was
    /// used, or the app's redirect URL changed.
    Refused,
    /// Slack did not exchange the code for a token.
    ExchangeFailed,
    /// Tidegate could not connect the app.
    Failed,
}

impl InstallOutcome {
    const ALL: [Self; 6] = [
        Self::Installed,
        Self::Cancelled,
        Self::StateRefused,
        Self::Refused,
        Self::ExchangeFailed,
        Self::Failed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Cancelled => "cancelled",
            Self::StateRefused => "state_refused",
            Self::Refused => "refused",
            Self::ExchangeFailed => "exchange_failed",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstallLabels {
    outcome: &'static str,
}

/// Registry of all metrics, and those that requests update.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    rejected: Family<RejectionLabels, Counter>,
    installs: Family<InstallLabels, Counter>,
    in_flight: Gauge,
    postgres_reachable: Gauge,
}

impl Metrics {
    /// Registers all metrics.
    pub fn new(dropped_lines: DroppedLines) -> Self {
        let mut registry = Registry::with_prefix("tidegate");
        let requests =
            Family::new_with_constructor((|| Histogram::new(REQUEST_BUCKETS)) as fn() -> Histogram);
        registry.register_with_unit(
            "control_request_duration",
            "Time from a request of the control API to its response",
            Unit::Seconds,
            requests.clone(),
        );
        let rejected = Family::default();
        registry.register(
            "control_requests_rejected",
            "Requests rejected before their route, by reason",
            rejected.clone(),
        );
        let installs = Family::default();
        registry.register(
            "control_installs",
            "Installations that ended in a browser, by outcome",
            installs.clone(),
        );
        let in_flight = Gauge::default();
        registry.register(
            "control_requests_in_flight",
            "Requests that are being processed",
            in_flight.clone(),
        );
        let postgres_reachable = Gauge::default();
        registry.register(
            "control_postgres_reachable",
            "1 if Postgres answered the last probe",
            postgres_reachable.clone(),
        );
        registry.register_collector(Box::new(dropped_lines));
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the binary", build);
        let metrics =
            Self { registry, requests, rejected, installs, in_flight, postgres_reachable };
        for reason in [Rejection::Unauthorized, Rejection::RateLimited, Rejection::Overloaded] {
            let _ = metrics.rejected.get_or_create(&labels(reason));
        }
        // Exported at zero, so that `increase()` counts the first installation.
        for outcome in InstallOutcome::ALL {
            let _ = metrics.installs.get_or_create(&InstallLabels { outcome: outcome.as_str() });
        }
        metrics
    }

    /// Records a request.
    pub fn record_request(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = RequestLabels {
            method: method.to_owned(),
            http_route: route.to_owned(),
            status: u32::from(status),
        };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Records a rejected request.
    pub fn record_rejection(&self, reason: Rejection) {
        self.rejected.get_or_create(&labels(reason)).inc();
    }

    /// Records the outcome of an installation.
    pub fn record_install(&self, outcome: InstallOutcome) {
        self.installs.get_or_create(&InstallLabels { outcome: outcome.as_str() }).inc();
    }

    /// Records whether Postgres answered.
    pub fn record_postgres(&self, is_reachable: bool) {
        self.postgres_reachable.set(is_reachable.into());
    }

    /// Returns the metrics page.
    pub fn render(&self, in_flight: usize) -> String {
        self.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut page, &self.registry);
        page
    }
}

fn labels(reason: Rejection) -> RejectionLabels {
    let reason = match reason {
        Rejection::Unauthorized => "unauthorized",
        Rejection::RateLimited => "rate_limited",
        Rejection::Overloaded => "overloaded",
    };
    RejectionLabels { reason }
}
