//! Until when Slack asked us to leave a method of a workspace alone, for all workers to know.
//!
//! A row per connection and method that was ever limited; without one nothing is limited. `outbox.claim` looks here in
//! the same statement that takes rows. Others hear of a limit by NOTIFY, for what they have taken already.

use crate::store::{Store, StoreError, pool::Listener};
use crate::types::ConnectionId;
use std::time::Duration;

/// Least distance between two calls after a first limit: fifty a minute, what Slack gives most methods.
const INTERVAL: Duration = Duration::from_millis(1_200);
/// Most: Slack's strictest methods take one call a minute.
const INTERVAL_MAX: Duration = Duration::from_secs(61);

/// The distance between two calls now, in seconds, from a row `l` of `slack_rate_limits`. It shrinks from the moment at which
/// Slack takes calls again: by half every ten seconds, slower where calls are rarer than that, for to find out whether
/// Slack takes more costs a call that it refuses.
macro_rules! interval {
    () => {
        "(l.min_interval_seconds * power(0.5, greatest(0, extract(epoch from now() - l.blocked_until)) / greatest(10, 2 * l.min_interval_seconds)))::float8"
    };
}
pub(super) use interval;

/// A distance of less than this many seconds is none: three quarters of a minute after a first limit.
macro_rules! interval_forgotten {
    () => {
        "0.05"
    };
}
pub(super) use interval_forgotten;

/// A method that Slack limits now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Whose.
    pub connection: ConnectionId,
    /// Which.
    pub method: String,
    /// For how long.
    pub left: Duration,
}

impl Store {
    /// Slack answered 429. Calls wait for `retry_after`, and keep a distance after it: twice the one that was still too
    /// short. It shrinks, and is forgotten after a while.
    pub async fn limit_slack(
        &self,
        connection: ConnectionId,
        method: &str,
        retry_after: Duration,
    ) -> Result<(), StoreError> {
        sqlx::query(concat!(
            "-- rate_limits.limit
             insert into slack_rate_limits as l (connection_id, method, blocked_until, min_interval_seconds, limited_at)
             select $1, $2, now() + make_interval(secs => $3), $4, now()
              where exists (select from connections where id = $1)
             on conflict (connection_id, method) do update
                set blocked_until = greatest(l.blocked_until, excluded.blocked_until),
                    min_interval_seconds = case
                        when l.blocked_until > now() then l.min_interval_seconds -- under way when the first was answered
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

    /// Hears of every limit, as it is written.
    pub async fn slack_rate_limits(&self) -> Result<LimitSubscription, StoreError> {
        Ok(LimitSubscription(self.pool.listen("slack_rate_limits").await?))
    }
}

/// A subscription to limits. A lost word costs a 429, nothing more.
pub struct LimitSubscription(Listener);

impl LimitSubscription {
    /// The next limit; `None` when the link was lost, or what came was none.
    pub async fn next(&mut self) -> Result<Option<Limit>, StoreError> {
        let heard = self.0.next().await?;
        Ok(heard.and_then(|notification| parse(notification.payload())))
    }
}

/// `<connection> <method> <milliseconds>`.
fn parse(payload: &str) -> Option<Limit> {
    let mut words = payload.split(' ');
    let (connection, method, left) = (words.next()?, words.next()?, words.next()?);
    let left = left.parse::<f64>().ok().filter(|ms| *ms > 0.0 && *ms < 1e9)?;
    Some(Limit {
        connection: connection.parse().ok()?,
        method: method.to_owned(),
        left: Duration::from_secs_f64(left / 1000.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_as_the_trigger_writes_it() {
        let id = "00ff00ff00ff00ff00ff00ff00ff00ff";
        let limit = parse(&format!("{id} chat.postMessage 1500")).expect("a limit");
        assert_eq!(
            (limit.method.as_str(), limit.left),
            ("chat.postMessage", Duration::from_millis(1500))
        );
        for odd in ["", "x chat.postMessage 1", &format!("{id} m -5"), &format!("{id} m")] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }
}
