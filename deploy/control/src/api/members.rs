//! Members of organizations: people who may link the agents by name.

use super::{
    Api, Problem, Shared,
    caller::{Owner, Viewer, require_org},
    extract::{Json, Path, Query},
    page::{Page, PageQuery},
    problem::Failures,
    resource,
};
use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use shared::{
    domain::{AgentId, OrgId, TeamId, UserId},
    store::{DeclaredMember, MemberRecord},
};
use utoipa::ToSchema;

resource! {
    /// Person who may link the organization's agents by name.
    Member from MemberRecord {
        id: String,
        /// Identities in Slack, as `<team>/<user>`.
        slack: Vec<String>,
    }
}

/// Identities of a member.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberSettings {
    /// Identities in Slack. A user has the same identities in all organizations.
    #[schema(max_items = 100)]
    slack: Vec<SlackIdentity>,
}

/// Person in a workspace.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlackIdentity {
    /// Workspace.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    team: TeamId,
    /// Person.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    user: UserId,
}

async fn find(api: &Api, org: &OrgId, id: &AgentId) -> Result<Member, Problem> {
    let found = api.store.members(org, Some(id), None, 1).await?.pop();
    let missing = || Problem::not_found(format!("member {org}/{id} does not exist"));
    found.map(Member::from).ok_or_else(missing)
}

/// List the members of an organization.
#[utoipa::path(
    get, path = "/v1/organizations/{organization}/members", operation_id = "listMembers",
    tag = "members",
    params(("organization" = String, Path, description = "Id of the organization."), PageQuery),
    responses((status = 200, body = Page<Member>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(org): Path<OrgId>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Member>>, Problem> {
    require_org(&caller, &org)?;
    let (limit, after) = (page.limit()?, page.after::<1>()?);
    let after = after.as_ref().map(|[id]| id.as_str());
    let rows = api.store.members(&org, None, after, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.id.clone()])))
}

/// Create a member, or replace the Slack identities of a member.
#[utoipa::path(
    put, path = "/v1/organizations/{organization}/members/{member}", operation_id = "putMember",
    tag = "members",
    params(
        ("organization" = String, Path, description = "Id of the organization."),
        ("member" = String, Path, description = "Id of the user."),
    ),
    request_body = MemberSettings,
    responses((status = 200, body = Member), Failures)
)]
pub async fn put(
    State(api): Shared,
    Owner(caller): Owner,
    Path((org, user)): Path<(OrgId, AgentId)>,
    Json(settings): Json<MemberSettings>,
) -> Result<Json<Member>, Problem> {
    let identities = settings.slack.into_iter().map(|it| (it.team, it.user)).collect();
    let member = DeclaredMember { org, user: user.to_string(), identities };
    api.operations(&caller).save_member(&member).await?;
    Ok(Json(find(&api, &member.org, &user).await?))
}

/// Delete a member.
#[utoipa::path(
    delete, path = "/v1/organizations/{organization}/members/{member}",
    operation_id = "deleteMember", tag = "members",
    params(
        ("organization" = String, Path, description = "Id of the organization."),
        ("member" = String, Path, description = "Id of the user."),
    ),
    responses((status = 204, description = "Deleted."), Failures)
)]
pub async fn delete(
    State(api): Shared,
    Owner(caller): Owner,
    Path((org, user)): Path<(OrgId, AgentId)>,
) -> Result<StatusCode, Problem> {
    api.operations(&caller).delete_member(&org, &user).await?;
    Ok(StatusCode::NO_CONTENT)
}
