//! Failure ratio of each Slack app over the last hour, as Slack counts it.
//!
//! Slack disables the events of an app in all workspaces when over 95 % of its deliveries failed
//! within 60 minutes, from 1,000 deliveries per hour (docs.slack.dev/apis/events-api). Apps above
//! half of both limits are counted, and logged once a minute. Readiness does not depend on them:
//! removing an ingest from the load balancer would not help.

use shared::domain::AppId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};
use tracing::warn;

/// Minutes of Slack's window.
const MINUTES: usize = 60;
/// Failure ratio above which Slack disables an app.
const MAX_FAILURE_RATIO: f64 = 0.95;
/// Deliveries per hour below which Slack never disables an app.
const MIN_DELIVERIES: u64 = 1_000;
/// Maximum number of apps that are tracked. Further apps are ignored.
const MAX_APPS: usize = 20_000;

/// Deliveries and failures of all apps in the last hour.
pub struct AppHealth {
    started_at: Instant,
    apps: Mutex<HashMap<AppId, Hour>>,
}

struct Hour {
    minutes: [Minute; MINUTES],
    /// Minute of the last warning.
    warned: Option<u32>,
}

#[derive(Default, Clone, Copy)]
struct Minute {
    /// Minutes since the start; 0 in an unused element.
    number: u32,
    deliveries: u32,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Totals {
    deliveries: u64,
    failures: u64,
}

impl Totals {
    fn failure_ratio(self) -> f64 {
        if self.deliveries == 0 { 0.0 } else { self.failures as f64 / self.deliveries as f64 }
    }

    /// Returns whether the app is above half of Slack's limits.
    fn is_at_risk(self) -> bool {
        self.deliveries >= MIN_DELIVERIES / 2 && self.failure_ratio() > MAX_FAILURE_RATIO / 2.0
    }
}

impl AppHealth {
    /// Creates empty statistics.
    pub fn new(now: Instant) -> Self {
        Self { started_at: now, apps: Mutex::default() }
    }

    /// Records the response to a webhook of an app.
    pub fn record_response(&self, app: &AppId, success: bool, now: Instant) {
        let number = self.minute(now);
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        if !apps.contains_key(app) {
            if apps.len() >= MAX_APPS {
                return;
            }
            apps.insert(app.clone(), Hour::empty());
        }
        let Some(hour) = apps.get_mut(app) else { return };
        let minute = &mut hour.minutes[number as usize % MINUTES];
        if minute.number != number {
            *minute = Minute { number, ..Minute::default() };
        }
        minute.deliveries = minute.deliveries.saturating_add(1);
        if success {
            return; // the ratio did not rise, so the totals are not needed
        }
        minute.failures = minute.failures.saturating_add(1);
        let totals = hour.totals(number);
        if totals.is_at_risk() && hour.warned != Some(number) {
            hour.warned = Some(number);
            let Totals { deliveries, failures } = totals;
            warn!(%app, deliveries, failures, "app failure ratio exceeded half of Slack's limit");
        }
    }

    /// Returns the number of apps at risk, and the highest failure ratio of the apps with enough
    /// deliveries for Slack's limit.
    pub fn summarize(&self, now: Instant) -> (usize, f64) {
        let number = self.minute(now);
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        apps.retain(|_, hour| hour.totals(number).deliveries > 0);
        let totals: Vec<Totals> = apps.values().map(|hour| hour.totals(number)).collect();
        let limited = totals.iter().filter(|totals| totals.deliveries >= MIN_DELIVERIES);
        let highest = limited.map(|totals| totals.failure_ratio()).fold(0.0, f64::max);
        (totals.iter().filter(|totals| totals.is_at_risk()).count(), highest)
    }

    fn minute(&self, now: Instant) -> u32 {
        let minutes = now.saturating_duration_since(self.started_at).as_secs() / 60;
        u32::try_from(minutes + 1).unwrap_or(u32::MAX)
    }
}

impl Hour {
    fn empty() -> Self {
        Self { minutes: [Minute::default(); MINUTES], warned: None }
    }

    fn totals(&self, number: u32) -> Totals {
        let is_recent =
            |m: &&Minute| m.number > 0 && number.saturating_sub(m.number) < MINUTES as u32;
        let recent = self.minutes.iter().filter(is_recent);
        recent.fold(Totals { deliveries: 0, failures: 0 }, |totals, minute| Totals {
            deliveries: totals.deliveries + u64::from(minute.deliveries),
            failures: totals.failures + u64::from(minute.failures),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn record(health: &AppHealth, successes: u64, failures: u64, now: Instant) {
        let app: AppId = "A1".parse().expect("valid id");
        for n in 0..successes + failures {
            health.record_response(&app, n < successes, now);
        }
    }

    #[test]
    fn counts_app_above_half_of_limit() {
        let start = Instant::now();
        for (successes, failures, at_risk) in
            [(263, 237, 0), (262, 238, 1), (0, 499, 0), (0, 500, 1), (1000, 0, 0)]
        {
            let health = AppHealth::new(start);
            record(&health, successes, failures, start);
            assert_eq!(health.summarize(start).0, at_risk, "{successes} to {failures}");
        }
    }

    #[test]
    fn ignores_responses_after_one_hour() {
        let start = Instant::now();
        let minute = |n: u64| start + Duration::from_secs(n * 60);
        let health = AppHealth::new(start);
        record(&health, 0, 1000, start);
        assert_eq!(health.summarize(minute(59)), (1, 1.0));
        assert_eq!(health.summarize(minute(60)), (0, 0.0));
        record(&health, 1000, 0, minute(61));
        assert_eq!(health.summarize(minute(61)), (0, 0.0));
    }
}
