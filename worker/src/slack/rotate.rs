//! Bot tokens that rotate, refreshed ahead of their end.
//!
//! In: rows of `token_rotations` that are due. Out: new tokens, in force on every worker as soon as the row changes. Any
//! worker refreshes any token; a lease keeps it to one at a time, and the row's generation keeps an old answer from
//! overwriting a new one. Slack lets the refresh token before the last work for a short while, so a worker that dies
//! between Slack's answer and our writing it down costs nothing if the next is quick: hence the short lease.

use super::{Called, Slack, error::Action};
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
const _: () = assert!(super::SEND_TIMEOUT.as_secs() * 2 < LEASE.as_secs());
/// Longest wait after a refresh that failed; a token is refreshed with a fifth of its life left, hours with Slack's twelve.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Refreshes tokens until told to stop. `now` is how it hears that one is over.
pub async fn run(store: Store, slack: Slack, now: Arc<Notify>, stop: CancellationToken) {
    loop {
        match refresh_one(&store, &slack).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => warn!(error = %Chain(&error), "tokens could not be refreshed"),
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
        Called::Done(answer) => match read(&answer) {
            Some((bot_token, refresh_token, expires_in)) => {
                let ours = store.rotated(&due, &bot_token, &refresh_token, expires_in).await?;
                info!(%connection, ours, ?expires_in, "a token was refreshed");
                return Ok(true);
            }
            None => (backoff(&due), "Slack's answer holds no new tokens".to_owned()),
        },
        Called::Refused(word, text) if word.action() == Action::Reread => {
            // Whoever refreshed it first has written it; the generation tells.
            let ours = store.rotation_failed(&due, BACKOFF_MAX, &text).await?;
            if ours {
                error!(%connection, "the refresh token is spent: the app has to be installed anew");
                let reason = "the refresh token is spent: install the app anew";
                store.connection_refused(connection, None, Status::Error, reason).await?;
            }
            return Ok(true);
        }
        Called::Refused(_, text) => (BACKOFF_MAX, text),
        Called::Limited(after) => (after, "limited".to_owned()),
        Called::NotSent(why) | Called::Unclear(why) => (backoff(&due), why),
    };
    warn!(%connection, why, ?after, "a token could not be refreshed");
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
