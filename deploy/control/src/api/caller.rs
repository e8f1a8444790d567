//! Callers: API keys, roles, rate limits.

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
    domain::{ApiKey, ApiKeyRole, OrgId},
    store::ApiCaller,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Maximum time of a request. Longer than any operation waits for ingests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Authenticates a request, and limits the number of requests in flight and of each key.
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
    // No text in Postgres contains NUL.
    if target.contains("%00") {
        return Problem::bad_request("the address must not contain NUL").into_response();
    }
    let caller = match identify(&api, request.headers()).await {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    request.extensions_mut().insert(caller);
    match timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::timeout("the request did not end in time").into_response(),
    }
}

async fn identify(api: &Api, headers: &HeaderMap) -> Result<ApiCaller, Problem> {
    let unauthorized = || {
        api.metrics.record_rejection(Rejection::Unauthorized);
        Problem::unauthorized("send a valid API key as Authorization: Bearer tgk_…")
    };
    let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = sent.and_then(|sent| sent.strip_prefix("Bearer ")).map(str::parse::<ApiKey>);
    let Some(Ok(key)) = key else { return Err(unauthorized()) };
    let Some(caller) = api.store.authenticate(&key.hash()).await? else {
        return Err(unauthorized());
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
/// Caller that may change what runs.
pub struct Operator(pub ApiCaller);
/// Caller that may change what is declared.
pub struct Owner(pub ApiCaller);

fn caller(parts: &Parts, least: ApiKeyRole) -> Result<ApiCaller, Problem> {
    // Each route is behind `authenticate`.
    let Some(caller) = parts.extensions.get::<ApiCaller>() else {
        return Err(Problem::unauthorized("no API key"));
    };
    if caller.role < least {
        return Err(Problem::forbidden(format!("the role must be {least} or higher")));
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
/// Other organizations do not exist for a caller of one organization.
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

pub fn unknown_organization(org: &OrgId) -> Problem {
    Problem::not_found(format!("organization {org} does not exist"))
}
