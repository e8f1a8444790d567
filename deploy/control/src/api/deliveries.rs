//! Deliveries, by conversation.

use super::{
    Problem, Shared,
    caller::{Operator, Viewer, org_filter},
    extract::{Json, Query},
    page::{Page, PageQuery, unknown_cursor},
    problem::Failures,
    resource,
};
use axum::extract::State;
use serde::{Deserialize, Serialize};
use shared::{
    domain::{AgentId, ConnectionId, OrgId},
    store::{DeliveryFilter, EndedDeliveries, LaneState},
    stream::Lane,
};
use utoipa::{IntoParams, ToSchema};

resource! {
    /// Conversation with open deliveries, and its first delivery.
    Conversation from LaneState {
        connection: String,
        /// Id of the conversation within the connection.
        lane: String,
        /// `<organization>/<agent>`.
        agent: String,
        /// `running`, `due`, `waiting`, `paused`, `circuit open`, or the connection's status.
        state: String,
        /// Number of waiting and running deliveries.
        waiting: i64,
        attempts: i32,
        waiting_since: Option<String>,
        first_attempt_at: Option<String>,
        next_at: Option<String>,
        last_error: String,
        cancel_requested: bool,
        kind: Option<String>,
        dedup_key: Option<String>,
        event_id: Option<String>,
        channel: Option<String>,
        ts: Option<String>,
        user: Option<String>,
    }
}

/// Filter of conversations.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only list conversations of connections of this organization.
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: Option<OrgId>,
    /// Only list conversations of this connection.
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    connection: Option<ConnectionId>,
}

/// Selection of conversations.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversationSelection {
    /// Connection of the conversations.
    #[schema(value_type = String, pattern = "^[0-9a-f]{32}$")]
    connection: ConnectionId,
    /// Only this conversation: 16 hex digits.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    lane: Option<String>,
    /// Only conversations whose first delivery is for this agent: `<organization>/<agent>`.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}/[A-Za-z0-9_-]{1,64}$")]
    agent: Option<String>,
}

/// Selection of conversations to cancel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelInput {
    /// Conversations.
    selection: ConversationSelection,
    /// Cancel all deliveries of the conversations, not only the first ones.
    #[serde(default)]
    whole_lanes: bool,
}

/// Numbers of changed deliveries.
#[derive(Debug, Serialize, ToSchema)]
pub struct Changed {
    /// Number of changed deliveries.
    changed: u64,
    /// Number of running deliveries that their workers will end.
    requested: u64,
}

impl From<EndedDeliveries> for Changed {
    fn from(ended: EndedDeliveries) -> Self {
        Self { changed: ended.ended, requested: ended.requested }
    }
}

impl TryFrom<ConversationSelection> for DeliveryFilter {
    type Error = Problem;

    fn try_from(selection: ConversationSelection) -> Result<Self, Problem> {
        let malformed = || Problem::invalid("agent must be <organization>/<agent>");
        let parse = |text: &str| -> Option<(OrgId, AgentId)> {
            let (org, agent) = text.split_once('/')?;
            Some((org.parse().ok()?, agent.parse().ok()?))
        };
        let agent = selection.agent.as_deref().map(|text| parse(text).ok_or_else(malformed));
        let (org, agent) = agent.transpose()?.unzip();
        Ok(Self {
            connection: Some(selection.connection),
            org,
            agent,
            lane: selection.lane.as_deref().map(parse_lane).transpose()?,
            head: None,
            owner: None,
        })
    }
}

fn parse_lane(text: &str) -> Result<Lane, Problem> {
    text.parse().map_err(|()| Problem::invalid("lane must be 16 lower-case hex digits"))
}

/// List conversations with open deliveries.
#[utoipa::path(
    get, path = "/v1/deliveries", operation_id = "listDeliveries", tag = "deliveries",
    params(Filter, PageQuery),
    responses((status = 200, body = Page<Conversation>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(filter): Query<Filter>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Conversation>>, Problem> {
    let owner = org_filter(&caller, filter.organization)?;
    let filter = DeliveryFilter { connection: filter.connection, owner, ..Default::default() };
    let malformed = unknown_cursor;
    let after = match page.after::<2>()? {
        None => None,
        Some([lane, connection]) => Some((
            lane.parse().map_err(|()| malformed())?,
            connection.parse().map_err(|_| malformed())?,
        )),
    };
    let limit = page.limit()?;
    let rows = api.store.lanes_page(&filter, after, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.lane.clone(), row.connection.clone()])))
}

/// Attempt the first delivery of conversations now, without waiting for its backoff.
#[utoipa::path(
    post, path = "/v1/deliveries/retry", operation_id = "retryDeliveries", tag = "deliveries",
    request_body = ConversationSelection,
    responses((status = 200, body = Changed), Failures)
)]
pub async fn retry(
    State(api): Shared,
    Operator(caller): Operator,
    Json(selection): Json<ConversationSelection>,
) -> Result<Json<Changed>, Problem> {
    let filter = selection.try_into()?;
    let changed = api.operations(&caller).retry_deliveries(&filter).await?;
    Ok(Json(Changed { changed, requested: 0 }))
}

/// Skip the first delivery of conversations, unless it is running. Creates no dead letter.
#[utoipa::path(
    post, path = "/v1/deliveries/skip", operation_id = "skipDeliveries", tag = "deliveries",
    request_body = ConversationSelection,
    responses((status = 200, body = Changed), Failures)
)]
pub async fn skip(
    State(api): Shared,
    Operator(caller): Operator,
    Json(selection): Json<ConversationSelection>,
) -> Result<Json<Changed>, Problem> {
    let filter = selection.try_into()?;
    Ok(Json(api.operations(&caller).skip_deliveries(&filter).await?.into()))
}

/// Cancel the first delivery of conversations, even if it is running.
#[utoipa::path(
    post, path = "/v1/deliveries/cancel", operation_id = "cancelDeliveries", tag = "deliveries",
    request_body = CancelInput,
    responses((status = 200, body = Changed), Failures)
)]
pub async fn cancel(
    State(api): Shared,
    Operator(caller): Operator,
    Json(input): Json<CancelInput>,
) -> Result<Json<Changed>, Problem> {
    let filter = input.selection.try_into()?;
    let ended = api.operations(&caller).cancel_deliveries(&filter, input.whole_lanes).await?;
    Ok(Json(ended.into()))
}
