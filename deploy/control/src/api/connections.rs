//! Connections.

use super::{
    Api, Problem, Shared,
    caller::{Operator, Owner, Viewer, org_filter},
    extract::{Json, Path, Query},
    page::{Page, PageQuery, unknown_cursor},
    problem::Failures,
};
use axum::extract::State;
use serde::{Deserialize, Serialize};
use shared::{
    domain::{AgentId, ConnectionId, ConnectionSettings, OrgId},
    store::{ApiCaller, ConnectionSummary},
};
use utoipa::{IntoParams, ToSchema};

/// Settings of a connection.
#[derive(Debug, Serialize, ToSchema)]
pub struct Settings {
    /// Types of conversations in which the app answers: `dm`, `channel`.
    surfaces: Vec<String>,
    /// Greets people who join the workspace.
    welcome: bool,
    /// Passes messages of other bots to the agent.
    answer_bots: bool,
    /// Lets agents of the organization notify whole channels and user groups.
    broadcasts: bool,
    /// Allows links to apps of other organizations.
    foreign_apps: bool,
    /// People who may link conversations: `anyone`, `binder` or `admins`.
    link_by: String,
}

impl From<ConnectionSettings> for Settings {
    fn from(settings: ConnectionSettings) -> Self {
        Self {
            surfaces: settings.surfaces.iter().map(ToString::to_string).collect(),
            welcome: settings.welcome,
            answer_bots: settings.answer_bots,
            broadcasts: settings.broadcasts,
            foreign_apps: settings.foreign_apps,
            link_by: settings.link_by.to_string(),
        }
    }
}

/// Installation of a Slack app. Its tokens and signing secrets are never returned.
#[derive(Debug, Serialize, ToSchema)]
pub struct Connection {
    id: String,
    organization: String,
    /// Agent of conversations without a binding.
    agent: Option<String>,
    /// Slack's id of the app.
    app: String,
    enterprise: Option<String>,
    team: Option<String>,
    preview_mode: bool,
    /// `pending`, `active`, `stopped`, `error` or `revoked`.
    status: String,
    /// Cause of `error` or `revoked`.
    reason: String,
    has_bot_token: bool,
    /// Scopes that Slack granted to an OAuth installation.
    scopes: Vec<String>,
    /// Person in Slack who installed the app.
    installed_by: Option<String>,
    /// Slack's id of the bot user.
    bot_user: Option<String>,
    settings: Settings,
    /// Number of bound conversations.
    bindings: i64,
    sending_paused_at: Option<String>,
    installed_at: Option<String>,
    updated_at: Option<String>,
    /// Path of the connection's webhooks on ingest.
    webhook_path: String,
}

impl From<ConnectionSummary> for Connection {
    fn from(summary: ConnectionSummary) -> Self {
        Self {
            webhook_path: format!("/api/v1/webhooks/{}", summary.id),
            id: summary.id.to_string(),
            organization: summary.organization.to_string(),
            agent: summary.agent.map(|id| id.to_string()),
            app: summary.app.to_string(),
            enterprise: summary.enterprise.map(|id| id.to_string()),
            team: summary.team.map(|id| id.to_string()),
            preview_mode: summary.preview_mode,
            status: summary.status.to_string(),
            reason: summary.reason,
            has_bot_token: summary.has_bot_token,
            scopes: summary.scopes,
            installed_by: summary.installed_by,
            bot_user: summary.bot_user,
            settings: summary.settings.into(),
            bindings: summary.bindings,
            sending_paused_at: summary.sending_paused_at,
            installed_at: summary.installed_at,
            updated_at: summary.updated_at,
        }
    }
}

/// Filter of connections.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only list connections of this organization.
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: Option<OrgId>,
}

/// Returns a connection of the caller.
pub async fn find(
    api: &Api,
    caller: &ApiCaller,
    id: ConnectionId,
) -> Result<ConnectionSummary, Problem> {
    let found = api.store.connection_summaries(Some(id)).await?.pop();
    let found =
        found.filter(|found| caller.org.as_ref().is_none_or(|own| *own == found.organization));
    found.ok_or_else(|| Problem::not_found(format!("connection {id} does not exist")))
}

/// List connections.
#[utoipa::path(
    get, path = "/v1/connections", operation_id = "listConnections", tag = "connections",
    params(Filter, PageQuery),
    responses((status = 200, body = Page<Connection>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(filter): Query<Filter>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Connection>>, Problem> {
    let org = org_filter(&caller, filter.organization)?;
    let (limit, after) = (page.limit()?, page.after::<1>()?);
    let malformed = |_| unknown_cursor();
    let after = after.map(|[id]| id.parse().map_err(malformed)).transpose()?;
    let rows = api.store.connections_page(org.as_ref(), after, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.id.to_string()])))
}

/// Get a connection.
#[utoipa::path(
    get, path = "/v1/connections/{connection}", operation_id = "getConnection",
    tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    responses((status = 200, body = Connection), Failures)
)]
pub async fn get(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(id): Path<ConnectionId>,
) -> Result<Json<Connection>, Problem> {
    Ok(Json(find(&api, &caller, id).await?.into()))
}

/// Enable a connection. Returns when every ingest has applied it.
#[utoipa::path(
    post, path = "/v1/connections/{connection}/enable", operation_id = "enableConnection",
    tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    responses((status = 200, body = Connection), Failures)
)]
pub async fn enable(
    State(api): Shared,
    Operator(caller): Operator,
    Path(id): Path<ConnectionId>,
) -> Result<Json<Connection>, Problem> {
    api.operations(&caller).set_connection_enabled(&api.js, id, true).await?;
    Ok(Json(find(&api, &caller, id).await?.into()))
}

/// Disable a connection: ingest no longer stores its webhooks, and Slack does not resend them.
/// Returns when every ingest has applied it.
#[utoipa::path(
    post, path = "/v1/connections/{connection}/disable", operation_id = "disableConnection",
    tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    responses((status = 200, body = Connection), Failures)
)]
pub async fn disable(
    State(api): Shared,
    Operator(caller): Operator,
    Path(id): Path<ConnectionId>,
) -> Result<Json<Connection>, Problem> {
    api.operations(&caller).set_connection_enabled(&api.js, id, false).await?;
    Ok(Json(find(&api, &caller, id).await?.into()))
}

/// Pause calls to Slack for a connection. Messages wait and do not expire.
#[utoipa::path(
    post, path = "/v1/connections/{connection}/pause-sending", operation_id = "pauseSending",
    tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    responses((status = 200, body = Connection), Failures)
)]
pub async fn pause_sending(
    State(api): Shared,
    Operator(caller): Operator,
    Path(id): Path<ConnectionId>,
) -> Result<Json<Connection>, Problem> {
    api.operations(&caller).set_sending_paused(id, true).await?;
    Ok(Json(find(&api, &caller, id).await?.into()))
}

/// Resume calls to Slack for a connection.
#[utoipa::path(
    post, path = "/v1/connections/{connection}/resume-sending", operation_id = "resumeSending",
    tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    responses((status = 200, body = Connection), Failures)
)]
pub async fn resume_sending(
    State(api): Shared,
    Operator(caller): Operator,
    Path(id): Path<ConnectionId>,
) -> Result<Json<Connection>, Problem> {
    api.operations(&caller).set_sending_paused(id, false).await?;
    Ok(Json(find(&api, &caller, id).await?.into()))
}

/// Destination of a connection.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveInput {
    /// New organization of the connection.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: OrgId,
    /// Agent of the organization, for conversations without a binding.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    agent: Option<AgentId>,
}

/// Move a connection to another organization. Requires an API key for all organizations. Bindings
/// stay.
#[utoipa::path(
    post, path = "/v1/connections/{connection}/move", operation_id = "moveConnection",
    tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    request_body = MoveInput,
    responses((status = 200, body = Connection), Failures)
)]
pub async fn move_to(
    State(api): Shared,
    Owner(caller): Owner,
    Path(id): Path<ConnectionId>,
    Json(input): Json<MoveInput>,
) -> Result<Json<Connection>, Problem> {
    find(&api, &caller, id).await?;
    if caller.org.is_some() {
        return Err(Problem::forbidden("the API key must be for all organizations"));
    }
    let MoveInput { organization, agent } = input;
    let operations = api.operations(&caller);
    operations.move_connection(&api.js, id, &organization, agent.as_ref()).await?;
    Ok(Json(find(&api, &caller, id).await?.into()))
}
