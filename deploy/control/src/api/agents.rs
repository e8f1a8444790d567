//! Agents.

use super::{
    Api, Problem, Shared,
    caller::{Operator, Owner, Viewer, require_org},
    extract::{Json, Path, Query, optional_integer},
    page::{Page, PageQuery},
    problem::Failures,
    resource,
};
use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use shared::{
    domain::{AgentId, AgentMode, OrgId},
    operations::AgentSettings,
    secrets::Secret,
    store::{AgentState, NewAgent},
};
use std::time::Duration;
use utoipa::ToSchema;

resource! {
    /// HTTP endpoint that answers conversations. Its secret is never returned.
    Agent from AgentState {
        organization: String,
        id: String,
        name: String,
        /// `reply` or `forward`.
        mode: String,
        url: String,
        timeout_ms: i64,
        max_concurrent: i64,
        max_per_user: i64,
        /// Null: the default of the mode.
        retry_for_ms: Option<i64>,
        keep_for_ms: i64,
        paused_at: Option<String>,
        /// Time at which the circuit breaker opened. Null if it is closed.
        circuit_opened_at: Option<String>,
        circuit_error: Option<String>,
        /// Number of running attempts.
        running: i64,
        /// Number of waiting deliveries.
        deliveries: i64,
        /// Number of bound conversations.
        bindings: i64,
    }
}

/// Settings of an agent. Omitted settings get their defaults, except the secret of an existing
/// agent, which is kept.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentInput {
    /// Display name.
    #[serde(default)]
    #[schema(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    name: String,
    /// `reply` (default) or `forward`.
    #[serde(default)]
    mode: Mode,
    /// URL that webhooks are sent to, without user or password.
    #[schema(max_length = 2048, pattern = r#"^https?://[!"$-.0->A-~]+([/?#][!-~]*)?$"#)]
    url: String,
    /// Secret that signs requests. Required for a new agent.
    #[schema(write_only, min_length = 1, pattern = r"^[^\x00]*$")]
    secret: Option<String>,
    /// Maximum time of one attempt. Default: 60000.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schema(minimum = 1000, maximum = 600000)]
    timeout_ms: Option<u64>,
    /// Maximum concurrent attempts. Default: 16.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schema(minimum = 1, maximum = 1000)]
    max_concurrent: Option<u16>,
    /// Maximum questions of one person per minute. Default: 30.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schema(minimum = 1, maximum = 1000000)]
    max_per_user: Option<u32>,
    /// Time after the first attempt until a delivery is given up. The default depends on the mode.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schema(minimum = 1000, maximum = 1209600000)]
    retry_for_ms: Option<u64>,
    /// Maximum wait for the first attempt. Default: 72 h.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schema(minimum = 1000, maximum = 1209600000)]
    keep_for_ms: Option<u64>,
    /// Sign webhooks of connections of the same organization with the signing secret of the
    /// connection.
    #[serde(default)]
    signs_as_slack: bool,
}

/// Mode of an agent.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// JSON request and response.
    #[default]
    Reply,
    /// Webhook as Slack sent it.
    Forward,
}

impl TryFrom<AgentInput> for AgentSettings {
    type Error = Problem;

    fn try_from(input: AgentInput) -> Result<Self, Problem> {
        let secret = input.secret.map(Secret::new).transpose();
        let time = |ms: Option<u64>| ms.map(Duration::from_millis);
        Ok(Self {
            name: input.name,
            mode: match input.mode {
                Mode::Reply => AgentMode::Reply,
                Mode::Forward => AgentMode::Forward,
            },
            url: input.url,
            secret: secret.map_err(|error| Problem::invalid(error.to_string()))?,
            timeout: time(input.timeout_ms).unwrap_or(NewAgent::TIMEOUT),
            max_concurrent: input.max_concurrent.unwrap_or(NewAgent::MAX_CONCURRENT),
            max_per_user: input.max_per_user.unwrap_or(NewAgent::MAX_PER_USER),
            retry_for: time(input.retry_for_ms),
            keep_for: time(input.keep_for_ms).unwrap_or(NewAgent::KEEP_FOR),
            signs_as_slack: input.signs_as_slack,
        })
    }
}

async fn find(api: &Api, org: &OrgId, id: &AgentId) -> Result<Json<Agent>, Problem> {
    match api.store.agent_states(Some(org), Some(id)).await?.pop() {
        Some(found) => Ok(Json(found.into())),
        None => Err(Problem::not_found(format!("agent {org}/{id} does not exist"))),
    }
}

/// List the agents of an organization.
#[utoipa::path(
    get, path = "/v1/organizations/{organization}/agents", operation_id = "listAgents",
    tag = "agents",
    params(("organization" = String, Path, description = "Id of the organization."), PageQuery),
    responses((status = 200, body = Page<Agent>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(org): Path<OrgId>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Agent>>, Problem> {
    require_org(&caller, &org)?;
    let (limit, after) = (page.limit()?, page.after::<1>()?);
    let after = after.as_ref().map(|[id]| (org.as_str(), id.as_str()));
    let rows = api.store.agents_page(Some(&org), after, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.id.clone()])))
}

/// Get an agent.
#[utoipa::path(
    get, path = "/v1/organizations/{organization}/agents/{agent}", operation_id = "getAgent",
    tag = "agents",
    params(
        ("organization" = String, Path, description = "Id of the organization."),
        ("agent" = String, Path, description = "Id of the agent."),
    ),
    responses((status = 200, body = Agent), Failures)
)]
pub async fn get(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path((org, id)): Path<(OrgId, AgentId)>,
) -> Result<Json<Agent>, Problem> {
    require_org(&caller, &org)?;
    find(&api, &org, &id).await
}

/// Create or change an agent.
#[utoipa::path(
    put, path = "/v1/organizations/{organization}/agents/{agent}", operation_id = "putAgent",
    tag = "agents",
    params(
        ("organization" = String, Path, description = "Id of the organization."),
        ("agent" = String, Path, description = "Id of the agent."),
    ),
    request_body = AgentInput,
    responses((status = 200, body = Agent), Failures)
)]
pub async fn put(
    State(api): Shared,
    Owner(caller): Owner,
    Path((org, id)): Path<(OrgId, AgentId)>,
    Json(input): Json<AgentInput>,
) -> Result<Json<Agent>, Problem> {
    api.operations(&caller).save_agent(&org, &id, input.try_into()?).await?;
    find(&api, &org, &id).await
}

/// Delete an agent with its bindings and link codes. Its waiting deliveries end.
#[utoipa::path(
    delete, path = "/v1/organizations/{organization}/agents/{agent}",
    operation_id = "deleteAgent", tag = "agents",
    params(
        ("organization" = String, Path, description = "Id of the organization."),
        ("agent" = String, Path, description = "Id of the agent."),
    ),
    responses((status = 204, description = "Deleted."), Failures)
)]
pub async fn delete(
    State(api): Shared,
    Owner(caller): Owner,
    Path((org, id)): Path<(OrgId, AgentId)>,
) -> Result<StatusCode, Problem> {
    api.operations(&caller).delete_agent(&org, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pause an agent: no attempt begins, and deliveries wait and do not expire.
#[utoipa::path(
    post, path = "/v1/organizations/{organization}/agents/{agent}/pause",
    operation_id = "pauseAgent", tag = "agents",
    params(
        ("organization" = String, Path, description = "Id of the organization."),
        ("agent" = String, Path, description = "Id of the agent."),
    ),
    responses((status = 200, body = Agent), Failures)
)]
pub async fn pause(
    State(api): Shared,
    Operator(caller): Operator,
    Path((org, id)): Path<(OrgId, AgentId)>,
) -> Result<Json<Agent>, Problem> {
    api.operations(&caller).set_agent_paused(&org, &id, true).await?;
    find(&api, &org, &id).await
}

/// Resume an agent.
#[utoipa::path(
    post, path = "/v1/organizations/{organization}/agents/{agent}/resume",
    operation_id = "resumeAgent", tag = "agents",
    params(
        ("organization" = String, Path, description = "Id of the organization."),
        ("agent" = String, Path, description = "Id of the agent."),
    ),
    responses((status = 200, body = Agent), Failures)
)]
pub async fn resume(
    State(api): Shared,
    Operator(caller): Operator,
    Path((org, id)): Path<(OrgId, AgentId)>,
) -> Result<Json<Agent>, Problem> {
    api.operations(&caller).set_agent_paused(&org, &id, false).await?;
    find(&api, &org, &id).await
}
