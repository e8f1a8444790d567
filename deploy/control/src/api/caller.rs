//! Authentication of callers: API keys, roles, rate limits.

use super::{Api, Problem};
use crate::metrics::Rejection;
use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use governor::clock::Clock;
use shared::{
    domain::{ApiKey, ApiKeyHash, ApiKeyRole, OrgId},
    store::ApiCaller,
};
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// Maximum time of a request. Longer than any operation waits for ingests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum requests in flight of one key, valid or not, so that one key does not starve the others.
const MAX_IN_FLIGHT_OF_KEY: usize = 16;

/// Number of requests in flight by key. Idle keys are removed.
#[derive(Default)]
pub struct KeysInFlight(Mutex<HashMap<ApiKeyHash, usize>>);

/// Permit of a request in flight. Released when dropped.
struct KeyInFlight<'a> {
    keys: &'a KeysInFlight,
    key: ApiKeyHash,
}

impl KeysInFlight {
    /// Admits a request, or returns `None` if the key has too many in flight.
    fn admit(&self, key: ApiKeyHash) -> Option<KeyInFlight<'_>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        if *count >= MAX_IN_FLIGHT_OF_KEY {
            return None;
        }
        *count += 1;
        Some(KeyInFlight { keys: self, key })
    }
}

impl Drop for KeyInFlight<'_> {
    fn drop(&mut self) {
        let mut counts = self.keys.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Authenticates a request. Limits the requests in flight of all keys and of each key, the rate of
/// each key, and the duration.
pub async fn authenticate(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Ok(_permit) = api.in_flight.try_acquire() else {
        api.metrics.record_rejection(Rejection::Overloaded);
        return Problem::unavailable("too many requests are in flight")
            .retry_after(1)
            .into_response();
    };
    let uri = request.uri();
    let target = uri.path_and_query().map_or(uri.path(), |target| target.as_str());
    // Postgres does not store NUL in text.
    if target.contains("%00") {
        return Problem::bad_request("the URL must not contain NUL").into_response();
    }
    let Some(key) = sent_key(request.headers()) else {
        return unauthorized(&api).into_response();
    };
    let Some(_share) = api.keys_in_flight.admit(key) else {
        api.metrics.record_rejection(Rejection::RateLimited);
        let problem = Problem::rate_limited("the API key has too many requests in flight");
        return problem.retry_after(1).into_response();
    };
    let caller = match identify(&api, key).await {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    request.extensions_mut().insert(caller);
    match timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::timeout("the request did not complete in time").into_response(),
    }
}

fn sent_key(headers: &HeaderMap) -> Option<ApiKeyHash> {
    let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())?;
    let key: ApiKey = sent.strip_prefix("Bearer ")?.parse().ok()?;
    Some(key.hash())
}

fn unauthorized(api: &Api) -> Problem {
    api.metrics.record_rejection(Rejection::Unauthorized);
    Problem::unauthorized("send a valid API key as Authorization: Bearer tgk_…")
}

async fn identify(api: &Api, key: ApiKeyHash) -> Result<ApiCaller, Problem> {
    let Some(caller) = api.store.authenticate(&key).await? else {
        return Err(unauthorized(api));
    };
    if let Err(exceeded) = api.key_limits.check_key(&caller.key) {
        api.metrics.record_rejection(Rejection::RateLimited);
        let wait = exceeded.wait_time_from(api.clock.now());
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let problem = Problem::rate_limited("the API key sends too many requests");
        return Err(problem.retry_after(seconds.max(1)));
    }
    Ok(caller)
}

/// Caller of any role.
pub struct Viewer(pub ApiCaller);
/// Caller with the role `operator` or higher: may change running work.
pub struct Operator(pub ApiCaller);
/// Caller with the role `owner`: may change declared objects.
pub struct Owner(pub ApiCaller);

fn caller(parts: &Parts, least: ApiKeyRole) -> Result<ApiCaller, Problem> {
    // `authenticate` runs before each route.
    let Some(caller) = parts.extensions.get::<ApiCaller>() else {
        return Err(Problem::unauthorized("no API key"));
    };
    if caller.role < least {
        return Err(Problem::forbidden(format!(
            "the role of the API key must be {least} or higher"
        )));
    }
    Ok(caller.clone())
}

macro_rules! role_extractor {
    ($($name:ident),*) => {
        $(impl<S: Send + Sync> FromRequestParts<S> for $name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
                caller(parts, ApiKeyRole::$name).map(Self)
            }
        })*
    };
}

role_extractor!(Viewer, Operator, Owner);

/// Returns the organization that a list is limited to: the caller's own, or the requested one.
/// For a caller of one organization, others do not exist.
pub fn org_filter(caller: &ApiCaller, requested: Option<OrgId>) -> Result<Option<OrgId>, Problem> {
    match (&caller.org, requested) {
        (Some(own), Some(other)) if *own != other => Err(unknown_organization(&other)),
        (Some(own), _) => Ok(Some(own.clone())),
        (None, requested) => Ok(requested),
    }
}

/// Fails unless an organization exists for the caller.
pub fn require_org(caller: &ApiCaller, org: &OrgId) -> Result<(), Problem> {
    match &caller.org {
        Some(own) if own != org => Err(unknown_organization(org)),
        _ => Ok(()),
    }
}

/// Returns the error for an organization that does not exist for the caller.
pub fn unknown_organization(org: &OrgId) -> Problem {
    Problem::not_found(format!("organization {org} does not exist"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_requests_in_flight_per_key() {
        let keys = KeysInFlight::default();
        let random = || ApiKey::random().expect("randomness").hash();
        let (busy, other) = (random(), random());
        let held: Vec<_> = (0..MAX_IN_FLIGHT_OF_KEY).map(|_| keys.admit(busy)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(keys.admit(busy).is_none() && keys.admit(other).is_some());
        drop(held);
        assert!(keys.0.lock().expect("a lock").is_empty(), "idle keys are removed");
        assert!(keys.admit(busy).is_some());
    }
}
