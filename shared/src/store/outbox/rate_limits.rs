//! Rate limits of Slack per connection and method, shared by all workers.
//!
//! A row exists per connection and method that was ever limited. The statement `outbox.claim`
//! checks it. A notification informs other workers, for messages that they have already claimed.

use crate::domain::ConnectionId;
use crate::store::{Store, StoreError, pool::Listener};
use std::time::Duration;

/// Minimum interval between two calls after a first 429: fifty a minute, Slack's limit of most
/// methods.
const INTERVAL: Duration = Duration::from_millis(1_200);
/// Maximum interval: Slack's strictest methods accept one call a minute.
const INTERVAL_MAX: Duration = Duration::from_secs(61);

/// Current interval between two calls in seconds, from a row `l` of `slack_rate_limits`. The
/// interval halves every 10 s from the end of the block, more slowly for rare calls: each probe may
/// cost a 429.
macro_rules! interval {
    () => {
        "(l.min_interval_seconds * power(0.5,
                                         greatest(0, extract(epoch from now() - l.blocked_until)) /
                                         greatest(10, 2 * l.min_interval_seconds)))::float8"
    };
}
pub(super) use interval;

/// Interval in seconds below which a limit is over: 45 s after a first 429.
macro_rules! interval_over {
    () => {
        "0.05"
    };
}
pub(super) use interval_over;

/// Current limit of a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlackRateLimit {
    /// Connection.
    pub connection: ConnectionId,
    /// Method.
    pub method: String,
    /// Remaining time.
    pub left: Duration,
}

impl Store {
    /// Records a 429. Calls wait for `retry_after`, and then keep an interval: twice the interval
    /// that was too short. It shrinks over time.
    pub async fn record_rate_limit(
        &self,
        connection: ConnectionId,
        method: &str,
        retry_after: Duration,
    ) -> Result<(), StoreError> {
        sqlx::query(concat!(
            "-- rate_limits.limit
             insert into slack_rate_limits as l (connection_id, method, blocked_until,
                                                 min_interval_seconds, limited_at)
             select $1, $2, now() + make_interval(secs => $3), $4, now()
              where exists (select from connections where id = $1)
             on conflict (connection_id, method) do update
                set blocked_until = greatest(l.blocked_until, excluded.blocked_until),
                    min_interval_seconds = case
                        -- This call began before the first 429.
                        when l.blocked_until > now() then l.min_interval_seconds
                        else least($5, greatest($4, 2 * ",
            interval!(),
            "))
                    end,
                    limited_at = now()",
        ))
        .bind(connection.to_string())
        .bind(method)
        .bind(retry_after.as_secs_f64())
        .bind(INTERVAL.as_secs_f64())
        .bind(INTERVAL_MAX.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Subscribes to new limits.
    pub async fn subscribe_rate_limits(&self) -> Result<RateLimitSubscription, StoreError> {
        Ok(RateLimitSubscription(self.pool.listen("slack_rate_limits").await?))
    }
}

/// Subscription to limits. A lost notification costs one 429.
pub struct RateLimitSubscription(Listener);

impl RateLimitSubscription {
    /// Returns the next limit. `None` if the connection to Postgres was lost or the notification is
    /// malformed.
    pub async fn next(&mut self) -> Result<Option<SlackRateLimit>, StoreError> {
        let notification = self.0.next().await?;
        Ok(notification.and_then(|n| parse_limit(n.payload())))
    }
}

/// Parses `<connection> <method> <milliseconds>`.
fn parse_limit(payload: &str) -> Option<SlackRateLimit> {
    let mut words = payload.split(' ');
    let (connection, method, left) = (words.next()?, words.next()?, words.next()?);
    let left = left.parse::<f64>().ok().filter(|ms| *ms > 0.0 && *ms < 1e9)?;
    Some(SlackRateLimit {
        connection: connection.parse().ok()?,
        method: method.to_owned(),
        left: Duration::from_secs_f64(left / 1000.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_trigger_notifications() {
        let id = "00ff00ff00ff00ff00ff00ff00ff00ff";
        let limit = parse_limit(&format!("{id} chat.postMessage 1500")).expect("a limit");
        assert_eq!(
            (limit.method.as_str(), limit.left),
            ("chat.postMessage", Duration::from_millis(1500))
        );
        for odd in ["", "x chat.postMessage 1", &format!("{id} m -5"), &format!("{id} m")] {
            assert_eq!(parse_limit(odd), None, "{odd}");
        }
    }
}
