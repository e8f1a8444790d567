//! How each app stands with Slack, by Slack's own rule.
//!
//! Slack switches an app's events off, for all of its workspaces, when over 95 % of its deliveries within 60 minutes
//! failed, from 1,000 deliveries an hour on (docs.slack.dev/apis/events-api). In: what every known app was answered. Out: how many apps
//! are past half of that, and the share of the worst; and one warning a minute for each of them, with its name. Has
//! nothing to do with readiness: an ingest that leaves makes nothing better.

use shared::types::AppId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};
use tracing::warn;

/// Minutes that count.
const MINUTES: usize = 60;
/// Slack's limit: the share of failures above which an app is switched off.
pub const FAILED_SHARE_MAX: f64 = 0.95;
/// Apps with fewer deliveries an hour are left alone.
pub const DELIVERIES_MIN: u64 = 1_000;
/// Apps watched at most; further ones are not.
const APPS_MAX: usize = 20_000;

/// All apps' last hour.
pub struct Standings {
    began: Instant,
    apps: Mutex<HashMap<AppId, Hour>>,
}

struct Hour {
    minutes: [Minute; MINUTES],
    warned: Option<u32>,
}

#[derive(Default, Clone, Copy)]
struct Minute {
    /// Which minute since the beginning this slot holds.
    number: u32,
    deliveries: u32,
    failed: u32,
}

/// What an hour adds up to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sum {
    deliveries: u64,
    failed: u64,
}

impl Sum {
    fn failed_share(self) -> f64 {
        if self.deliveries == 0 { 0.0 } else { self.failed as f64 / self.deliveries as f64 }
    }

    /// Past half of the way to being switched off.
    fn is_at_risk(self) -> bool {
        self.deliveries >= DELIVERIES_MIN / 2 && self.failed_share() > FAILED_SHARE_MAX / 2.0
    }
}

impl Standings {
    /// Nothing was answered yet.
    pub fn new(now: Instant) -> Self {
        Self { began: now, apps: Mutex::default() }
    }

    /// A webhook of this app was answered.
    pub fn answered(&self, app: &AppId, success: bool, now: Instant) {
        let number = self.minute(now);
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        if !apps.contains_key(app) {
            if apps.len() >= APPS_MAX {
                return;
            }
            apps.insert(app.clone(), Hour::empty());
        }
        let Some(hour) = apps.get_mut(app) else { return };
        let slot = &mut hour.minutes[number as usize % MINUTES];
        if slot.number != number {
            *slot = Minute { number, ..Minute::default() };
        }
        slot.deliveries = slot.deliveries.saturating_add(1);
        if success {
            return; // nothing gets worse by it, and an hour is a kilobyte to look through
        }
        slot.failed = slot.failed.saturating_add(1);
        let sum = hour.sum(number);
        if sum.is_at_risk() && hour.warned != Some(number) {
            hour.warned = Some(number);
            let (deliveries, failed) = (sum.deliveries, sum.failed);
            warn!(%app, deliveries, failed, "Slack switches an app off above 95 % failures in an hour; this one is half way");
        }
    }

    /// Apps past half of the way, and the share of failures of the worst app that Slack's rule is for.
    pub fn at_risk(&self, now: Instant) -> (usize, f64) {
        let number = self.minute(now);
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        apps.retain(|_, hour| hour.sum(number).deliveries > 0);
        let sums: Vec<Sum> = apps.values().map(|hour| hour.sum(number)).collect();
        let ruled = sums.iter().filter(|sum| sum.deliveries >= DELIVERIES_MIN);
        let worst = ruled.map(|sum| sum.failed_share()).fold(0.0, f64::max);
        (sums.iter().filter(|sum| sum.is_at_risk()).count(), worst)
    }

    fn minute(&self, now: Instant) -> u32 {
        // From 1 on, so that an empty slot is no minute.
        let minutes = now.saturating_duration_since(self.began).as_secs() / 60;
        u32::try_from(minutes + 1).unwrap_or(u32::MAX)
    }
}

impl Hour {
    fn empty() -> Self {
        Self { minutes: [Minute::default(); MINUTES], warned: None }
    }

    fn sum(&self, number: u32) -> Sum {
        let counts = |m: &&Minute| m.number > 0 && number.saturating_sub(m.number) < MINUTES as u32;
        let within = self.minutes.iter().filter(counts);
        within.fold(Sum { deliveries: 0, failed: 0 }, |sum, minute| Sum {
            deliveries: sum.deliveries + u64::from(minute.deliveries),
            failed: sum.failed + u64::from(minute.failed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn answered(standings: &Standings, good: u64, bad: u64, now: Instant) {
        let app: AppId = "A1".parse().expect("an id");
        for n in 0..good + bad {
            standings.answered(&app, n < good, now);
        }
    }

    #[test]
    fn an_app_is_at_risk_at_half_of_slacks_limit_and_not_before() {
        let start = Instant::now();
        for (good, bad, at_risk) in
            [(263, 237, 0), (262, 238, 1), (0, 499, 0), (0, 500, 1), (1000, 0, 0)]
        {
            let standings = Standings::new(start);
            answered(&standings, good, bad, start);
            assert_eq!(standings.at_risk(start).0, at_risk, "{good} good, {bad} bad");
        }
    }

    #[test]
    fn what_is_an_hour_ago_does_not_count() {
        let start = Instant::now();
        let standings = Standings::new(start);
        answered(&standings, 0, 1000, start);
        assert_eq!(standings.at_risk(start + Duration::from_secs(59 * 60)), (1, 1.0));
        assert_eq!(standings.at_risk(start + Duration::from_secs(60 * 60)), (0, 0.0));
        answered(&standings, 1000, 0, start + Duration::from_secs(61 * 60));
        assert_eq!(standings.at_risk(start + Duration::from_secs(61 * 60)), (0, 0.0));
    }
}
