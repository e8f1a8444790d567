//! Refreshes rotating bot tokens before they expire.
//!
//! Any worker refreshes any token that is due. A lease limits this to one worker, and the
//! generation of the row rejects an old result. Slack accepts the previous refresh token for a
//! short while: if a worker crashes before it records new tokens, another one can refresh again.
//! Hence the short lease.

use crate::slack::{Action, ApiResult, SEND_TIMEOUT, Slack};
use shared::{
    secrets::Secret,
    store::{DueRotation, Store, StoreError},
    telemetry::Chain,
    types::Status,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Interval at which due tokens are looked for.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Time after which another worker may refresh the same token; longer than a call.
const LEASE: Duration = Duration::from_secs(15);
const _: () = assert!(SEND_TIMEOUT.as_secs() * 2 < LEASE.as_secs());
/// Interval at which the recording of a refreshed token is repeated.
const RECORD_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum number of attempts to record a refreshed token, about ten minutes.
const RECORD_ATTEMPTS: u32 = 1_200;
/// Maximum wait after a failed refresh. Tokens are refreshed with a fifth of their lifetime left,
/// which is hours for Slack's twelve.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Refreshes tokens until `stop`. `now` is notified when Slack rejects a token as expired.
pub async fn run(store: Store, slack: Slack, now: Arc<Notify>, stop: CancellationToken) {
    loop {
        match refresh_one(&store, &slack).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => warn!(error = %Chain(&error), "failed to query due token refreshes"),
        }
        tokio::select! {
            _ = stop.cancelled() => return,
            _ = now.notified() => {}
            _ = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

/// Refreshes one token that is due. Returns false if none is.
async fn refresh_one(store: &Store, slack: &Slack) -> Result<bool, StoreError> {
    let Some(due) = store.lease_rotation(LEASE).await? else { return Ok(false) };
    let connection = due.connection;
    let result = slack.refresh(&due.client_id, &due.client_secret, &due.refresh_token).await;
    let (after, reason) = match result {
        ApiResult::Done(answer) => match read(&answer) {
            Some((bot_token, refresh_token, expires_in)) => {
                // The old refresh token is used up: the new one must not be lost if Postgres is
                // unavailable.
                let mut in_force =
                    store.rotated(&due, &bot_token, &refresh_token, expires_in).await;
                for _ in 0..RECORD_ATTEMPTS {
                    let Err(error) = &in_force else { break };
                    warn!(%connection, error = %Chain(error), "failed to record refreshed token");
                    tokio::time::sleep(RECORD_INTERVAL).await;
                    in_force = store.rotated(&due, &bot_token, &refresh_token, expires_in).await;
                }
                let in_force = in_force?;
                info!(%connection, in_force, ?expires_in, "token refreshed");
                return Ok(true);
            }
            None => (backoff(&due), "Slack's answer holds no new tokens".to_owned()),
        },
        ApiResult::Refused(Action::ReloadToken, text) => {
            // Another worker may have refreshed the token: then the generation differs.
            let in_force = store.rotation_failed(&due, BACKOFF_MAX, &text).await?;
            if in_force {
                error!(%connection, "refresh token used up; the app must be installed again");
                let reason = "the refresh token is used up: install the app again";
                store.connection_refused(connection, None, Status::Error, reason).await?;
            }
            return Ok(true);
        }
        ApiResult::Refused(_, text) => (BACKOFF_MAX, text),
        ApiResult::RateLimited(after) => (after, "rate limited".to_owned()),
        ApiResult::NotSent(reason) | ApiResult::Ambiguous(reason) => (backoff(&due), reason),
    };
    warn!(%connection, reason, ?after, "failed to refresh token");
    store.rotation_failed(&due, after, &reason).await?;
    Ok(true)
}

/// Returns `access_token`, `refresh_token` and `expires_in`.
fn read(answer: &serde_json::Value) -> Option<(Secret, Secret, Duration)> {
    let secret = |name: &str| Secret::new(answer[name].as_str()?.to_owned()).ok();
    let expires_in = Duration::from_secs(answer["expires_in"].as_u64()?);
    Some((secret("access_token")?, secret("refresh_token")?, expires_in))
}

fn backoff(due: &DueRotation) -> Duration {
    Duration::from_secs(1 << due.failures.clamp(0, 8)).min(BACKOFF_MAX)
}
