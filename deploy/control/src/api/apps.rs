//! Slack apps, which `tidegate apply` declares.

use super::{
    Problem, Shared,
    caller::Viewer,
    extract::{Json, Path, Query},
    page::{Page, PageQuery, unknown_cursor},
    problem::Failures,
};
use axum::extract::State;
use serde::Serialize;
use shared::{
    domain::AppId,
    store::{AppSummary, MAX_APPS},
};
use utoipa::ToSchema;

/// Slack app. Its secrets are never returned.
#[derive(Debug, Serialize, ToSchema)]
pub struct App {
    /// Slack's id of the app.
    id: String,
    name: String,
    /// Organization that may install the app. Null: any.
    organization: Option<String>,
    client_id: String,
    scopes: Vec<String>,
    /// Scopes that a person may leave out.
    optional_scopes: Vec<String>,
    /// URL to which Slack redirects the browser.
    redirect_url: String,
    /// Base URLs of pages to which an install link may redirect the browser afterwards.
    return_urls: Vec<String>,
    /// Agent of new connections, in their organization.
    agent: Option<String>,
    /// Contact for people who can't install the app.
    contact: String,
    /// Number of connections of the caller's organization, or of all organizations.
    connections: i64,
    /// Time until which the previous client secret is also used.
    client_secret_previous_until: Option<String>,
    /// Time until which the previous signing secret is also accepted.
    signing_secret_previous_until: Option<String>,
    created_at: String,
    updated_at: String,
}

impl From<AppSummary> for App {
    fn from(summary: AppSummary) -> Self {
        Self {
            id: summary.id.to_string(),
            name: summary.name,
            organization: summary.organization.map(|id| id.to_string()),
            client_id: summary.client_id,
            scopes: summary.scopes,
            optional_scopes: summary.optional_scopes,
            redirect_url: summary.redirect_url,
            return_urls: summary.return_urls,
            agent: summary.agent.map(|id| id.to_string()),
            contact: summary.contact,
            connections: summary.connections,
            client_secret_previous_until: summary.client_secret_previous_until,
            signing_secret_previous_until: summary.signing_secret_previous_until,
            created_at: summary.created_at,
            updated_at: summary.updated_at,
        }
    }
}

/// List the apps that the caller may install.
#[utoipa::path(
    get, path = "/v1/apps", operation_id = "listApps", tag = "apps",
    params(PageQuery),
    responses((status = 200, body = Page<App>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<App>>, Problem> {
    let (limit, after) = (page.limit()?, page.after::<1>()?);
    let malformed = |_| unknown_cursor();
    let after: Option<AppId> = after.map(|[id]| id.parse().map_err(malformed)).transpose()?;
    let rows = api.store.app_summaries(caller.org.as_ref(), after.as_ref(), limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.id.to_string()])))
}

/// Get an app.
#[utoipa::path(
    get, path = "/v1/apps/{app}", operation_id = "getApp", tag = "apps",
    params(("app" = String, Path, description = "Slack's id of the app.")),
    responses((status = 200, body = App), Failures)
)]
pub async fn get(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(id): Path<AppId>,
) -> Result<Json<App>, Problem> {
    let apps = api.store.app_summaries(caller.org.as_ref(), None, MAX_APPS as i64).await?;
    let found = apps.into_iter().find(|app| app.id == id);
    let missing = || Problem::not_found(format!("app {id} does not exist"));
    Ok(Json(found.ok_or_else(missing)?.into()))
}
