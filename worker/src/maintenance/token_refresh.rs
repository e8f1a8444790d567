//! Bot tokens that rotate, refreshed ahead of their end.
//!
//! In: rows of `token_rotations` that are due. Out: new tokens, in force on every worker as soon as the row changes. Any
//! worker refreshes any token; a lease keeps it to one at a time, and the row's generation keeps an old answer from
//! overwriting a new one. Slack lets the refresh token before the last work for a short while, so a worker that dies
//! between Slack's answer and our writing it down costs nothing if the next is quick: hence the short lease.

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

/// Between two looks, when nobody says that a token is over.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A refresh that takes longer is somebody else's. Longer than one call.
const LEASE: Duration = Duration::from_secs(15);
const _: () = assert!(SEND_TIMEOUT.as_secs() * 2 < LEASE.as_secs());
/// A refreshed token is recorded again this often, and
const RECORD_INTERVAL: Duration = Duration::from_millis(500);
/// so many times.
const RECORD_ATTEMPTS: u32 = 1_200;
/// Longest wait after a refresh that failed; a token is refreshed with a fifth of its life left, hours with Slack's twelve.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Refreshes tokens until told to stop. `now` is how it hears that one is over.
pub async fn run(store: Store, slack: Slack, now: Arc<Notify>, stop: CancellationToken) {
    loop {
        match refresh_one(&store, &slack).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => warn!(error = %Chain(&error), "failed to look for tokens to refresh"),
        }
        tokio::select! {
            _ = stop.cancelled() => return,
            _ = now.notified() => {}
            _ = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Refreshes one token that is due; false when there is none.
async fn refresh_one(store: &Store, slack: &Slack) -> Result<bool, StoreError> {
    let Some(due) = store.lease_rotation(LEASE).await? else { return Ok(false) };
    let connection = due.connection;
    let called = slack.refresh(&due.client_id, &due.client_secret, &due.refresh_token).await;
    let (after, why) = match called {
        ApiResult::Done(answer) => match read(&answer) {
            Some((bot_token, refresh_token, expires_in)) => {
                // The old refresh token is used up: what Slack gave must not be lost with a Postgres that is away.
                let mut ours = store.rotated(&due, &bot_token, &refresh_token, expires_in).await;
                for _ in 0..RECORD_ATTEMPTS {
                    let Err(error) = &ours else { break };
                    warn!(%connection, error = %Chain(error), "failed to record refreshed token");
                    tokio::time::sleep(RECORD_INTERVAL).await;
                    ours = store.rotated(&due, &bot_token, &refresh_token, expires_in).await;
                }
                let ours = ours?;
                info!(%connection, ours, ?expires_in, "token refreshed");
                return Ok(true);
            }
            None => (backoff(&due), "Slack's answer holds no new tokens".to_owned()),
        },
        ApiResult::Refused(action, text) if action == Action::ReloadToken => {
            // Whoever refreshed it first has written it; the generation tells.
            let ours = store.rotation_failed(&due, BACKOFF_MAX, &text).await?;
            if ours {
                error!(%connection, "refresh token is used up; the app must be installed again");
                let reason = "the refresh token is used up: install the app again";
                store.connection_refused(connection, None, Status::Error, reason).await?;
            }
            return Ok(true);
        }
        ApiResult::Refused(_, text) => (BACKOFF_MAX, text),
        ApiResult::RateLimited(after) => (after, "limited".to_owned()),
        ApiResult::NotSent(why) | ApiResult::Ambiguous(why) => (backoff(&due), why),
    };
    warn!(%connection, why, ?after, "failed to refresh token");
    store.rotation_failed(&due, after, &why).await?;
    Ok(true)
}

/// `access_token`, `refresh_token`, `expires_in`.
fn read(answer: &serde_json::Value) -> Option<(Secret, Secret, Duration)> {
    let secret = |name: &str| Secret::new(answer[name].as_str()?.to_owned()).ok();
    let expires_in = Duration::from_secs(answer["expires_in"].as_u64()?);
    Some((secret("access_token")?, secret("refresh_token")?, expires_in))
}

fn backoff(due: &DueRotation) -> Duration {
    Duration::from_secs(1 << due.failures.clamp(0, 8)).min(BACKOFF_MAX)
}
