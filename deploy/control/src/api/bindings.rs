//! Bindings of conversations to agents. Link codes create them as well.

use super::{
    Problem, Shared,
    caller::{Operator, Viewer},
    connections,
    extract::{Json, Path, Query},
    page::{Page, PageQuery},
    problem::Failures,
    resource,
};
use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use shared::{
    domain::{AgentId, ChannelId, ConnectionId, OrgId, TeamId, UserId},
    store::{BindingRecord, ConversationKey},
};
use utoipa::ToSchema;

resource! {
    /// Binding of a channel or direct message to an agent.
    Binding from BindingRecord {
        connection: String,
        team: String,
        channel: String,
        /// `<organization>/<agent>`.
        agent: String,
        /// Person who linked the conversation.
        bound_by: String,
        bound_at: String,
        /// Last rejection of a message by Slack.
        last_send_error: Option<String>,
    }
}

/// Agent that a conversation is bound to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindingInput {
    /// Organization of the agent. Default: that of the connection.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: Option<OrgId>,
    /// Agent.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    agent: AgentId,
    /// Slack user who is recorded as the author of the binding. Default: the app.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    bound_by: Option<UserId>,
}

/// List the bindings of a connection.
#[utoipa::path(
    get, path = "/v1/connections/{connection}/bindings", operation_id = "listBindings",
    tag = "bindings",
    params(("connection" = String, Path, description = "Id of the connection."), PageQuery),
    responses((status = 200, body = Page<Binding>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(id): Path<ConnectionId>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Binding>>, Problem> {
    connections::find(&api, &caller, id).await?;
    let (limit, after) = (page.limit()?, page.after::<2>()?);
    let after = after.as_ref().map(|[team, channel]| (team.as_str(), channel.as_str()));
    let rows = api.store.bindings_page(id, after, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.team.clone(), row.channel.clone()])))
}

/// Bind a conversation to an agent, replacing any previous binding. Posts no message.
#[utoipa::path(
    put, path = "/v1/connections/{connection}/bindings/{team}/{channel}",
    operation_id = "putBinding", tag = "bindings",
    params(
        ("connection" = String, Path, description = "Id of the connection."),
        ("team" = String, Path, description = "Slack's id of the workspace."),
        ("channel" = String, Path, description = "Slack's id of the conversation."),
    ),
    request_body = BindingInput,
    responses((status = 204, description = "Bound."), Failures)
)]
pub async fn put(
    State(api): Shared,
    Operator(caller): Operator,
    Path((connection, team, channel)): Path<(ConnectionId, TeamId, ChannelId)>,
    Json(input): Json<BindingInput>,
) -> Result<StatusCode, Problem> {
    let found = connections::find(&api, &caller, connection).await?;
    let org = input.organization.unwrap_or(found.organization);
    let conversation = ConversationKey { connection, team, channel };
    let agent = (&org, &input.agent);
    api.operations(&caller).save_binding(&conversation, agent, input.bound_by.as_ref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove the binding of a conversation. Posts no message.
#[utoipa::path(
    delete, path = "/v1/connections/{connection}/bindings/{team}/{channel}",
    operation_id = "deleteBinding", tag = "bindings",
    params(
        ("connection" = String, Path, description = "Id of the connection."),
        ("team" = String, Path, description = "Slack's id of the workspace."),
        ("channel" = String, Path, description = "Slack's id of the conversation."),
    ),
    responses((status = 204, description = "Removed."), Failures)
)]
pub async fn delete(
    State(api): Shared,
    Operator(caller): Operator,
    Path((connection, team, channel)): Path<(ConnectionId, TeamId, ChannelId)>,
) -> Result<StatusCode, Problem> {
    let conversation = ConversationKey { connection, team, channel };
    api.operations(&caller).delete_binding(&conversation).await?;
    Ok(StatusCode::NO_CONTENT)
}
