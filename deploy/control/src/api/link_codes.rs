//! Link codes.

use super::{
    Problem, Shared,
    caller::{Operator, Viewer, require_org},
    extract::{Json, Path, Query, optional_integer},
    page::{Page, PageQuery},
    problem::Failures,
};
use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use shared::{
    domain::{AgentId, ConnectionId, OrgId, Platform, Surface},
    store::{LinkCodeRecord, NewLinkCode},
};
use std::time::Duration;
use utoipa::ToSchema;

/// Default lifetime of a link code.
const DEFAULT_TTL_SECONDS: u64 = 900;

/// Link code without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct LinkCode {
    id: String,
    organization: String,
    agent: String,
    /// Types of conversations that accept the code: `dm`, `channel`.
    surfaces: Vec<String>,
    /// Null: any preview connection.
    connection: Option<String>,
    created_by: String,
    /// `open`, `used`, `revoked` or `expired`.
    state: String,
    created_at: Option<String>,
    expires_at: Option<String>,
    used_on_connection: Option<String>,
    used_in_channel: Option<String>,
    used_by: Option<String>,
}

impl From<LinkCodeRecord> for LinkCode {
    fn from(record: LinkCodeRecord) -> Self {
        Self {
            id: record.id,
            organization: record.org.to_string(),
            agent: record.agent.to_string(),
            surfaces: record.surfaces,
            connection: record.connection.map(|id| id.to_string()),
            created_by: record.created_by,
            state: record.state,
            created_at: record.created_at,
            expires_at: record.expires_at,
            used_on_connection: record.consumed_connection.map(|id| id.to_string()),
            used_in_channel: record.consumed_channel.map(|id| id.to_string()),
            used_by: record.consumed_user.map(|id| id.to_string()),
        }
    }
}

/// Link code to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkCodeInput {
    /// Agent of the organization.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    agent: AgentId,
    /// Types of conversations that accept the code. Default: `dm`.
    #[schema(min_items = 1)]
    surfaces: Option<Vec<SurfaceInput>>,
    /// Connection that accepts the code. Default: any preview connection.
    #[schema(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    connection: Option<ConnectionId>,
    /// Lifetime of the code. Default: 900.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schema(minimum = 1, maximum = 3600)]
    ttl_seconds: Option<u64>,
}

/// Type of a conversation.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SurfaceInput {
    /// Direct message.
    Dm,
    /// Any other conversation.
    Channel,
}

impl From<SurfaceInput> for Surface {
    fn from(input: SurfaceInput) -> Self {
        match input {
            SurfaceInput::Dm => Surface::Dm,
            SurfaceInput::Channel => Surface::Channel,
        }
    }
}

/// New link code. Only this response contains the code.
#[derive(Serialize, ToSchema)]
pub struct CreatedLinkCode {
    id: String,
    /// Code that a person types after `/lobu link`.
    code: String,
    ttl_seconds: u64,
}

/// List the link codes of an organization, newest first.
#[utoipa::path(
    get, path = "/v1/organizations/{organization}/link-codes", operation_id = "listLinkCodes",
    tag = "link codes",
    params(("organization" = String, Path, description = "Id of the organization."), PageQuery),
    responses((status = 200, body = Page<LinkCode>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(org): Path<OrgId>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<LinkCode>>, Problem> {
    require_org(&caller, &org)?;
    let (limit, after) = (page.limit()?, page.after_time()?);
    let after = after.as_ref().map(|[at, id]| (at.as_str(), id.as_str()));
    let rows = api.store.link_codes_page(Some(&org), after, limit + 1).await?;
    let key = |row: &LinkCodeRecord| [row.created_at.clone().unwrap_or_default(), row.id.clone()];
    Ok(Json(Page::new(rows, limit, key)))
}

/// Create a link code.
#[utoipa::path(
    post, path = "/v1/organizations/{organization}/link-codes", operation_id = "createLinkCode",
    tag = "link codes",
    params(("organization" = String, Path, description = "Id of the organization.")),
    request_body = LinkCodeInput,
    responses((status = 201, body = CreatedLinkCode), Failures)
)]
pub async fn create(
    State(api): Shared,
    Operator(caller): Operator,
    Path(org): Path<OrgId>,
    Json(input): Json<LinkCodeInput>,
) -> Result<(StatusCode, Json<CreatedLinkCode>), Problem> {
    let surfaces = input.surfaces.unwrap_or_else(|| vec![SurfaceInput::Dm]);
    let ttl_seconds = input.ttl_seconds.unwrap_or(DEFAULT_TTL_SECONDS);
    let new = NewLinkCode {
        org,
        agent: input.agent,
        platform: Platform::Slack,
        surfaces: surfaces.into_iter().map(Into::into).collect(),
        connection: input.connection,
        ttl: Duration::from_secs(ttl_seconds),
    };
    let code = api.operations(&caller).create_link_code(&new).await?;
    let created = CreatedLinkCode { id: code.hash().id(), code: code.reveal(), ttl_seconds };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revoke a link code that was not used.
#[utoipa::path(
    post, path = "/v1/organizations/{organization}/link-codes/{link_code}/revoke",
    operation_id = "revokeLinkCode", tag = "link codes",
    params(
        ("organization" = String, Path, description = "Id of the organization."),
        ("link_code" = String, Path, description = "Id of the link code."),
    ),
    responses((status = 204, description = "Revoked."), Failures)
)]
pub async fn revoke(
    State(api): Shared,
    Operator(caller): Operator,
    Path((org, id)): Path<(OrgId, String)>,
) -> Result<StatusCode, Problem> {
    require_org(&caller, &org)?;
    api.operations(&caller).within(Some(org)).revoke_link_code(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
