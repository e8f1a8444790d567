//! Organizations.

use super::{
    Api, Problem, Shared,
    caller::{Owner, Viewer, require_org, unknown_organization},
    extract::{Json, Path, Query},
    page::{Page, PageQuery},
    problem::Failures,
    resource,
};
use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use shared::{domain::OrgId, store::OrganizationRecord};
use utoipa::ToSchema;

resource! {
    /// Owner of agents and connections.
    Organization from OrganizationRecord {
        id: String,
        name: String,
        created_at: String,
        /// Number of agents.
        agents: i64,
        /// Number of connections.
        connections: i64,
    }
}

/// Settings of an organization.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrganizationSettings {
    /// Display name.
    #[serde(default)]
    #[schema(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    name: String,
}

/// List organizations.
#[utoipa::path(
    get, path = "/v1/organizations", operation_id = "listOrganizations", tag = "organizations",
    params(PageQuery),
    responses((status = 200, body = Page<Organization>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Organization>>, Problem> {
    let (limit, after) = (page.limit()?, page.after::<1>()?);
    let after = after.as_ref().map(|[id]| id.as_str());
    let rows = api.store.organizations(caller.org.as_ref(), after, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.id.clone()])))
}

async fn find(api: &Api, id: &OrgId) -> Result<Organization, Problem> {
    let found = api.store.organizations(Some(id), None, 1).await?.pop();
    found.map(Organization::from).ok_or_else(|| unknown_organization(id))
}

/// Get an organization.
#[utoipa::path(
    get, path = "/v1/organizations/{organization}", operation_id = "getOrganization",
    tag = "organizations",
    params(("organization" = String, Path, description = "Id of the organization.")),
    responses((status = 200, body = Organization), Failures)
)]
pub async fn get(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(id): Path<OrgId>,
) -> Result<Json<Organization>, Problem> {
    require_org(&caller, &id)?;
    Ok(Json(find(&api, &id).await?))
}

/// Create an organization or change its name.
#[utoipa::path(
    put, path = "/v1/organizations/{organization}", operation_id = "putOrganization",
    tag = "organizations",
    params(("organization" = String, Path, description = "Id of the organization.")),
    request_body = OrganizationSettings,
    responses((status = 200, body = Organization), Failures)
)]
pub async fn put(
    State(api): Shared,
    Owner(caller): Owner,
    Path(id): Path<OrgId>,
    Json(settings): Json<OrganizationSettings>,
) -> Result<Json<Organization>, Problem> {
    api.operations(&caller).save_organization(&id, &settings.name).await?;
    Ok(Json(find(&api, &id).await?))
}

/// Delete an organization without connections, with its agents and API keys.
#[utoipa::path(
    delete, path = "/v1/organizations/{organization}", operation_id = "deleteOrganization",
    tag = "organizations",
    params(("organization" = String, Path, description = "Id of the organization.")),
    responses((status = 204, description = "Deleted."), Failures)
)]
pub async fn delete(
    State(api): Shared,
    Owner(caller): Owner,
    Path(id): Path<OrgId>,
) -> Result<StatusCode, Problem> {
    api.operations(&caller).delete_organization(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
