//! Comparison of the clock of a server with the clock of this machine.

use super::Finding;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Maximum difference between clocks. Slack's signatures are valid for 300 s.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// Returns the time of this machine, in milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the clock is compared")]
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as i64)
}

/// Returns the midpoint between a request and now, in milliseconds since 1970: the estimated time
/// at which the server read its clock.
pub(super) fn midpoint(requested_at_ms: i64) -> i64 {
    requested_at_ms + (now_ms() - requested_at_ms) / 2
}

/// Compares the time of a server with that of this machine, both in milliseconds since 1970.
pub(super) fn compare(component: &'static str, server_ms: i64, local_ms: i64) -> Finding {
    let skew = (server_ms - local_ms).unsigned_abs();
    let summary = format!("clock differs by {skew} ms from this machine's");
    if u128::from(skew) <= MAX_SKEW.as_millis() {
        return Finding::good(component, summary);
    }
    Finding::problem(
        component,
        summary,
        "run NTP on both: signatures expire after 300 s, and leases use the clock of Postgres",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::render;

    #[test]
    fn renders_findings() {
        let findings = [compare("postgres", 1_000, 1_007), compare("nats", 9_000, 1_000)];
        insta::assert_snapshot!(render(&findings), @r"
        good     postgres  clock differs by 7 ms from this machine's
        problem  nats      clock differs by 8000 ms from this machine's
                           → run NTP on both: signatures expire after 300 s, and leases use the clock of Postgres
        ");
    }
}
