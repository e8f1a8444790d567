//! Install links.

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
    domain::{AgentId, AppId, OAUTH_CALLBACK_PATH, OrgId},
    store::{InstallLinkRecord, NewInstallLink},
};
use std::time::Duration;
use utoipa::ToSchema;

/// Default lifetime of an install link.
const DEFAULT_TTL_SECONDS: u64 = 24 * 3600;

/// Install link without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstallLink {
    id: String,
    organization: String,
    /// Slack's id of the app.
    app: String,
    /// Agent of a new connection. Null: that of the app.
    agent: Option<String>,
    /// URL to which the browser is redirected afterwards.
    return_url: Option<String>,
    created_by: String,
    /// `open`, `used`, `revoked` or `expired`. A used link can install the same workspace again.
    state: String,
    created_at: String,
    expires_at: String,
    used_at: Option<String>,
    /// Connection that was installed by the link.
    connection: Option<String>,
}

impl From<InstallLinkRecord> for InstallLink {
    fn from(record: InstallLinkRecord) -> Self {
        Self {
            id: record.id,
            organization: record.organization.to_string(),
            app: record.app.to_string(),
            agent: record.agent.map(|id| id.to_string()),
            return_url: record.return_url,
            created_by: record.created_by,
            state: record.state,
            created_at: record.created_at,
            expires_at: record.expires_at,
            used_at: record.used_at,
            connection: record.connection.map(|id| id.to_string()),
        }
    }
}

/// Install link to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstallLinkInput {
    /// Slack's id of an app that the organization may install.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    app: AppId,
    /// Agent of the organization. Default: that of the app.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    agent: Option<AgentId>,
    /// URL to which the browser is redirected afterwards, below one of the app's `return_urls`,
    /// with the query parameter `tidegate_connection`. Default: a page of control.
    #[schema(max_length = 2000)]
    return_url: Option<String>,
    /// Lifetime of the link. Default: 86400.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schema(minimum = 1, maximum = 2592000)]
    ttl_seconds: Option<u64>,
}

/// New install link. Only this response contains its URL.
#[derive(Serialize, ToSchema)]
pub struct CreatedInstallLink {
    id: String,
    /// URL that a person opens to install the app.
    url: String,
    ttl_seconds: u64,
}

/// List the install links of an organization, newest first.
#[utoipa::path(
    get, path = "/v1/organizations/{organization}/install-links",
    operation_id = "listInstallLinks", tag = "install links",
    params(("organization" = String, Path, description = "Id of the organization."), PageQuery),
    responses((status = 200, body = Page<InstallLink>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(org): Path<OrgId>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<InstallLink>>, Problem> {
    require_org(&caller, &org)?;
    let (limit, after) = (page.limit()?, page.after_time()?);
    let after = after.as_ref().map(|[at, id]| (at.as_str(), id.as_str()));
    let rows = api.store.install_links_page(&org, after, limit + 1).await?;
    let key = |row: &InstallLinkRecord| [row.created_at.clone(), row.id.clone()];
    Ok(Json(Page::new(rows, limit, key)))
}

/// Create an install link.
#[utoipa::path(
    post, path = "/v1/organizations/{organization}/install-links",
    operation_id = "createInstallLink", tag = "install links",
    params(("organization" = String, Path, description = "Id of the organization.")),
    request_body = InstallLinkInput,
    responses((status = 201, body = CreatedInstallLink), Failures)
)]
pub async fn create(
    State(api): Shared,
    Operator(caller): Operator,
    Path(org): Path<OrgId>,
    Json(input): Json<InstallLinkInput>,
) -> Result<(StatusCode, Json<CreatedInstallLink>), Problem> {
    let ttl_seconds = input.ttl_seconds.unwrap_or(DEFAULT_TTL_SECONDS);
    let new = NewInstallLink {
        org,
        app: input.app,
        agent: input.agent,
        return_url: input.return_url,
        ttl: Duration::from_secs(ttl_seconds),
    };
    let (link, redirect_url) = api.operations(&caller).create_install_link(&new).await?;
    let base = redirect_url.strip_suffix(OAUTH_CALLBACK_PATH).unwrap_or_default();
    let url = format!("{base}/install/{}", link.reveal());
    let created = CreatedInstallLink { id: link.hash().id(), url, ttl_seconds };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revoke an install link that was not used.
#[utoipa::path(
    post, path = "/v1/organizations/{organization}/install-links/{install_link}/revoke",
    operation_id = "revokeInstallLink", tag = "install links",
    params(
        ("organization" = String, Path, description = "Id of the organization."),
        ("install_link" = String, Path, description = "Id of the install link."),
    ),
    responses((status = 204, description = "Revoked."), Failures)
)]
pub async fn revoke(
    State(api): Shared,
    Operator(caller): Operator,
    Path((org, id)): Path<(OrgId, String)>,
) -> Result<StatusCode, Problem> {
    require_org(&caller, &org)?;
    api.operations(&caller).revoke_install_link(&org, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
