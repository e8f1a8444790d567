//! Erasures of people and organizations, which workers carry out.

use super::{
    Api, Problem, Shared,
    caller::Owner,
    extract::{Json, Path, Query},
    page::{Page, PageQuery},
    problem::Failures,
    resource,
};
use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use shared::{
    domain::{OrgId, TeamId, UserId},
    store::{ApiCaller, ErasureRecord, ErasureTarget},
};
use utoipa::ToSchema;

resource! {
    /// Erasure and its progress.
    Erasure from ErasureRecord {
        id: String,
        /// Organization that is erased. Null for a person.
        organization: Option<String>,
        /// Workspace of the person. Null once the person is erased.
        team: Option<String>,
        /// Person. Null once the person is erased.
        user: Option<String>,
        /// `open` or `done`.
        state: String,
        /// Reason for which an open erasure waits.
        note: String,
        /// Number of rows that were deleted or changed.
        rows: i64,
        /// Number of webhooks that were overwritten in the stream.
        webhooks: i64,
        created_at: String,
        ended_at: Option<String>,
    }
}

/// Person to erase.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PersonErasureInput {
    /// Workspace.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9]{1,64}$")]
    team: TeamId,
    /// Person.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9]{1,64}$")]
    user: UserId,
}

/// Organization to erase.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrganizationErasureInput {
    /// Organization.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: OrgId,
}

async fn find(api: &Api, caller: &ApiCaller, id: &str) -> Result<Erasure, Problem> {
    let found = api.store.erasures(caller.org.as_ref(), Some(id), None, 1).await?.pop();
    found.map(Erasure::from).ok_or_else(|| Problem::not_found("the erasure does not exist"))
}

async fn request(
    api: &Api,
    caller: &ApiCaller,
    target: &ErasureTarget,
) -> Result<(StatusCode, Json<Erasure>), Problem> {
    let id = api.operations(caller).request_erasure(target).await?;
    Ok((StatusCode::ACCEPTED, Json(find(api, caller, &id).await?)))
}

/// List erasures, newest first. Requires the role `owner`.
#[utoipa::path(
    get, path = "/v1/erasures", operation_id = "listErasures", tag = "erasures",
    params(PageQuery),
    responses((status = 200, body = Page<Erasure>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Owner(caller): Owner,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Erasure>>, Problem> {
    let (limit, after) = (page.limit()?, page.after_time()?);
    let after = after.as_ref().map(|[at, id]| (at.as_str(), id.as_str()));
    let rows = api.store.erasures(caller.org.as_ref(), None, after, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.created_at.clone(), row.id.clone()])))
}

/// Get an erasure. Requires the role `owner`.
#[utoipa::path(
    get, path = "/v1/erasures/{erasure}", operation_id = "getErasure", tag = "erasures",
    params(("erasure" = String, Path, description = "Id of the erasure.")),
    responses((status = 200, body = Erasure), Failures)
)]
pub async fn get(
    State(api): Shared,
    Owner(caller): Owner,
    Path(id): Path<String>,
) -> Result<Json<Erasure>, Problem> {
    Ok(Json(find(&api, &caller, &id).await?))
}

/// Erase a person of a workspace from Postgres and the stream. A worker repeats the erasure until
/// no open work of the person is left. Requires an API key for all organizations.
#[utoipa::path(
    post, path = "/v1/erasures/people", operation_id = "erasePerson", tag = "erasures",
    request_body = PersonErasureInput,
    responses((status = 202, body = Erasure), Failures)
)]
pub async fn erase_person(
    State(api): Shared,
    Owner(caller): Owner,
    Json(input): Json<PersonErasureInput>,
) -> Result<(StatusCode, Json<Erasure>), Problem> {
    request(&api, &caller, &ErasureTarget::Person(input.team, input.user)).await
}

/// Erase an organization with its connections, their data, their history and its API keys. A worker
/// carries it out.
#[utoipa::path(
    post, path = "/v1/erasures/organizations", operation_id = "eraseOrganization",
    tag = "erasures",
    request_body = OrganizationErasureInput,
    responses((status = 202, body = Erasure), Failures)
)]
pub async fn erase_organization(
    State(api): Shared,
    Owner(caller): Owner,
    Json(input): Json<OrganizationErasureInput>,
) -> Result<(StatusCode, Json<Erasure>), Problem> {
    request(&api, &caller, &ErasureTarget::Organization(input.organization)).await
}
