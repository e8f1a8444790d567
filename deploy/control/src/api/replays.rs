//! Replays: a range of a connection's webhooks, processed again.

use super::{
    Api, Problem, Shared,
    caller::{Operator, Viewer, org_filter},
    connections,
    extract::{Json, Path, Query},
    page::{Page, PageQuery},
    problem::Failures,
    usage::parse_time,
};
use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use shared::{
    domain::{ConnectionId, OrgId},
    operations::ReplayRequest,
    store::{ApiCaller, ReplayState},
};
use utoipa::{IntoParams, ToSchema};

/// Replay and its progress.
#[derive(Debug, Serialize, ToSchema)]
pub struct Replay {
    id: String,
    connection: String,
    from: Option<String>,
    to: Option<String>,
    /// True if deliveries are enqueued. False if they are only recorded.
    apply: bool,
    /// `open`, `done`, `failed` or `cancelled`.
    state: String,
    note: String,
    /// Approximate number of webhooks. Null until a worker has counted them.
    total: Option<i64>,
    /// Number of processed webhooks.
    processed: i64,
    created_at: Option<String>,
}

impl From<ReplayState> for Replay {
    fn from(state: ReplayState) -> Self {
        Self {
            id: state.id,
            connection: state.connection.to_string(),
            from: state.from,
            to: state.to,
            apply: state.apply,
            state: state.state,
            note: state.note,
            total: state.total,
            processed: state.decided,
            created_at: state.created_at,
        }
    }
}

/// Replay to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayInput {
    /// Connection of the webhooks.
    #[schema(value_type = String, pattern = "^[0-9a-f]{32}$")]
    connection: ConnectionId,
    /// Start of the time range of the webhooks, such as 2026-01-31T12:00:00Z.
    #[schema(format = DateTime)]
    from: String,
    /// End of the time range, exclusive, in the same format.
    #[schema(format = DateTime)]
    to: String,
    /// Enqueue the deliveries, so that agents receive these webhooks again. Default: only record
    /// what would be done.
    #[serde(default)]
    apply: bool,
}

/// Filter of replays.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only list replays of connections of this organization.
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: Option<OrgId>,
}

async fn find(api: &Api, caller: &ApiCaller, id: &str) -> Result<Replay, Problem> {
    let missing = || Problem::not_found("the replay does not exist");
    let found = api.store.replays(Some(id), 1).await?.pop().ok_or_else(missing)?;
    if let Some(own) = &caller.org {
        let org = api.store.connection_org(found.connection).await?;
        if org.as_ref() != Some(own) {
            return Err(missing());
        }
    }
    Ok(found.into())
}

/// List replays, newest first.
#[utoipa::path(
    get, path = "/v1/replays", operation_id = "listReplays", tag = "replays",
    params(Filter, PageQuery),
    responses((status = 200, body = Page<Replay>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(filter): Query<Filter>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Replay>>, Problem> {
    let org = org_filter(&caller, filter.organization)?;
    let (limit, after) = (page.limit()?, page.after_time()?);
    let after = after.as_ref().map(|[at, id]| (at.as_str(), id.as_str()));
    let rows = api.store.replays_page(org.as_ref(), after, limit + 1).await?;
    let key = |row: &ReplayState| [row.created_at.clone().unwrap_or_default(), row.id.clone()];
    Ok(Json(Page::new(rows, limit, key)))
}

/// Get a replay.
#[utoipa::path(
    get, path = "/v1/replays/{replay}", operation_id = "getReplay", tag = "replays",
    params(("replay" = String, Path, description = "Id of the replay.")),
    responses((status = 200, body = Replay), Failures)
)]
pub async fn get(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(id): Path<String>,
) -> Result<Json<Replay>, Problem> {
    Ok(Json(find(&api, &caller, &id).await?))
}

/// Create a replay. A worker processes it.
#[utoipa::path(
    post, path = "/v1/replays", operation_id = "createReplay", tag = "replays",
    request_body = ReplayInput,
    responses((status = 201, body = Replay), Failures)
)]
pub async fn create(
    State(api): Shared,
    Operator(caller): Operator,
    Json(input): Json<ReplayInput>,
) -> Result<(StatusCode, Json<Replay>), Problem> {
    connections::find(&api, &caller, input.connection).await?;
    let time = |name, text: &str| {
        let parsed = parse_time(name, Some(text))?;
        parsed.ok_or_else(|| Problem::invalid(format!("{name} is missing")))
    };
    let request = ReplayRequest {
        id: None,
        connection: input.connection,
        from: time("from", &input.from)?,
        to: time("to", &input.to)?,
        apply: input.apply,
    };
    let (id, _) = api.operations(&caller).create_replay(&request).await?;
    Ok((StatusCode::CREATED, Json(find(&api, &caller, &id).await?)))
}

/// Cancel an open replay. Its enqueued deliveries stay.
#[utoipa::path(
    post, path = "/v1/replays/{replay}/cancel", operation_id = "cancelReplay", tag = "replays",
    params(("replay" = String, Path, description = "Id of the replay.")),
    responses((status = 200, body = Replay), Failures)
)]
pub async fn cancel(
    State(api): Shared,
    Operator(caller): Operator,
    Path(id): Path<String>,
) -> Result<Json<Replay>, Problem> {
    api.operations(&caller).cancel_replay(&id).await?;
    Ok(Json(find(&api, &caller, &id).await?))
}
