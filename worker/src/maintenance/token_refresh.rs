//! Refreshes rotating bot tokens before they expire.
//!
//! Any worker refreshes any token that is due. A lease limits this to one worker, and the
//! generation of the row rejects an old result. Slack's answer uses up the old refresh token, so
//! the worker repeats the write of the new tokens until Postgres accepts it.
//!
//! A lease that expired without a result belongs to a worker that crashed, or that still has new
//! tokens to write. So it is taken over only by a worker that has reached Postgres for
//! [`TAKEOVER_AFTER`]: after an outage the worker with the new tokens writes first. Slack accepts
//! the previous refresh token for a short time, which is enough after a crash.

use crate::{
    metrics::{Metrics, RefreshOutcome},
    slack::{Action, ApiResult, SEND_TIMEOUT, Slack},
};
use shared::{
    domain::ConnectionStatus,
    runtime::telemetry::ErrorChain,
    secrets::Secret,
    store::{DueTokenRefresh, Store, StoreError},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Interval of looking for due tokens.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Time after which another worker may refresh the same token; longer than a call.
const LEASE: Duration = Duration::from_secs(15);
const _: () = assert!(SEND_TIMEOUT.as_secs() * 2 < LEASE.as_secs()); // two client secrets
/// Slack's error for a client secret that it does not know.
const BAD_CLIENT_SECRET: &str = "bad_client_secret";
/// Time for which Postgres has answered a worker before it takes over a lease.
const TAKEOVER_AFTER: Duration = Duration::from_secs(30);
/// Maximum interval between attempts to record a refreshed token. The first is a tenth of it.
const RECORD_INTERVAL_MAX: Duration = Duration::from_secs(5);
// After an outage the new tokens are written before another worker takes over.
const _: () = assert!(RECORD_INTERVAL_MAX.as_secs() * 2 < TAKEOVER_AFTER.as_secs());
/// Maximum wait after a failed refresh. Tokens are refreshed with a fifth of their lifetime left,
/// which is hours for Slack's twelve.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Maximum lifetime of a token; a longer one is cut to it. Slack's is twelve hours.
const LIFETIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Refreshes tokens until `stop`. `now` is notified when Slack rejects a token as expired.
pub async fn run(
    store: Store,
    slack: Slack,
    metrics: Arc<Metrics>,
    now: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut refresher = Refresher { store, slack, metrics, postgres_since: None };
    loop {
        match refresher.refresh_one().await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => {
                refresher.postgres_since = None;
                warn!(error = %ErrorChain(&error), "failed to query due token refreshes");
            }
        }
        tokio::select! {
            _ = stop.cancelled() => return,
            _ = now.notified() => {}
            _ = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

/// Token refresher of a worker.
struct Refresher {
    store: Store,
    slack: Slack,
    metrics: Arc<Metrics>,
    /// Time since which Postgres has answered every query of this task.
    postgres_since: Option<Instant>,
}

/// Tokens that Slack returned.
struct NewTokens {
    bot_token: Secret,
    refresh_token: Secret,
    expires_at: Instant,
}

impl Refresher {
    /// Refreshes one due token. Returns false if none is due.
    async fn refresh_one(&mut self) -> Result<bool, StoreError> {
        let takes_over = self.postgres_since.is_some_and(|since| since.elapsed() >= TAKEOVER_AFTER);
        let due = self.store.lease_token_refresh(LEASE, takes_over).await?;
        self.postgres_since.get_or_insert_with(Instant::now);
        let Some(due) = due else { return Ok(false) };
        let connection = due.connection;
        let mut secrets = due.client_secrets.iter();
        let result = loop {
            let secret = secrets.next().expect("a token rotation has a client secret");
            let result = self.slack.refresh(&due.client_id, secret, &due.refresh_token).await;
            // During a rotation of the app's secret Slack may still have the previous one.
            let is_wrong =
                matches!(&result, ApiResult::Refused(_, code) if code == BAD_CLIENT_SECRET);
            if !is_wrong || secrets.len() == 0 {
                break result;
            }
        };
        let (after, reason) = match result {
            ApiResult::Succeeded(answer) => match read(&answer) {
                Some(tokens) => {
                    self.metrics.count_refresh(RefreshOutcome::Refreshed);
                    let recorded = self.record(&due, &tokens).await?;
                    info!(%connection, recorded, "token refreshed");
                    return Ok(true);
                }
                None => (backoff(&due), "Slack's answer holds no new tokens".to_owned()),
            },
            ApiResult::Refused(Action::ReloadToken, text) => {
                // Another worker may have refreshed the token: then the generation differs.
                let recorded =
                    self.store.record_token_refresh_failure(&due, BACKOFF_MAX, &text).await?;
                if recorded {
                    self.metrics.count_refresh(RefreshOutcome::UsedUp);
                    error!(%connection, "refresh token used up; the app must be installed again");
                    let reason = "the refresh token is used up: install the app again";
                    let status = ConnectionStatus::Error;
                    self.store.record_connection_failure(connection, None, status, reason).await?;
                }
                return Ok(true);
            }
            ApiResult::Refused(_, text) => (BACKOFF_MAX, text),
            ApiResult::RateLimited(after) => (after, "rate limited".to_owned()),
            ApiResult::NotSent(reason) | ApiResult::Ambiguous(reason) => (backoff(&due), reason),
        };
        warn!(%connection, reason, ?after, "failed to refresh token");
        self.metrics.count_refresh(RefreshOutcome::Failed);
        self.store.record_token_refresh_failure(&due, after, &reason).await?;
        Ok(true)
    }

    /// Records new tokens, with retries until they expire: there is no other copy. Returns false if
    /// another worker refreshed the token.
    async fn record(
        &mut self,
        due: &DueTokenRefresh,
        tokens: &NewTokens,
    ) -> Result<bool, StoreError> {
        let mut interval = RECORD_INTERVAL_MAX / 10;
        loop {
            let left = tokens.expires_at.saturating_duration_since(Instant::now());
            let recorded = self
                .store
                .record_token_refresh(due, &tokens.bot_token, &tokens.refresh_token, left)
                .await;
            match recorded {
                Err(error) if !left.is_zero() => {
                    self.postgres_since = None;
                    let connection = due.connection;
                    warn!(
                        %connection, error = %ErrorChain(&error), "failed to record refreshed token"
                    );
                }
                recorded => return recorded,
            }
            tokio::time::sleep(interval).await;
            interval = (interval * 2).min(RECORD_INTERVAL_MAX);
        }
    }
}

/// Reads `access_token`, `refresh_token` and `expires_in`. Returns `None` if one is missing.
fn read(answer: &serde_json::Value) -> Option<NewTokens> {
    let secret = |name: &str| Secret::new(answer[name].as_str()?.to_owned()).ok();
    let expires_in = Duration::from_secs(answer["expires_in"].as_u64()?).min(LIFETIME_MAX);
    Some(NewTokens {
        bot_token: secret("access_token")?,
        refresh_token: secret("refresh_token")?,
        expires_at: Instant::now() + expires_in,
    })
}

fn backoff(due: &DueTokenRefresh) -> Duration {
    Duration::from_secs(1 << due.failures.clamp(0, 8)).min(BACKOFF_MAX)
}
