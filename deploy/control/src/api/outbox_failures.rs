//! Messages that Slack rejected permanently. Their text is never returned.

use super::{
    Problem, Shared,
    caller::{Operator, Viewer},
    extract::{Json, Query},
    failures::{ChangedIds, FailureSelection, Filter},
    page::{Page, PageQuery},
    problem::Failures,
    resource,
};
use axum::extract::State;
use shared::store::OutboxFailure as Record;

resource! {
    /// Message that Slack rejected permanently.
    OutboxFailure from Record {
        id: i64,
        connection: String,
        lane: String,
        channel_key: String,
        /// Method of Slack's Web API, or `response_url`.
        method: String,
        dedup_key: String,
        /// Slack's error.
        error: String,
        attempts: i32,
        created_at: String,
        at: String,
    }
}

/// List messages that Slack rejected permanently, newest first.
#[utoipa::path(
    get, path = "/v1/outbox-failures", operation_id = "listOutboxFailures",
    tag = "outbox failures",
    params(Filter, PageQuery),
    responses((status = 200, body = Page<OutboxFailure>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(filter): Query<Filter>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<OutboxFailure>>, Problem> {
    let limit = page.limit()?;
    let filter = filter.checked(&caller, &page)?;
    let rows = api.store.outbox_failures(&filter, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.id.to_string()])))
}

/// Send messages again, after the pending messages of their conversations.
#[utoipa::path(
    post, path = "/v1/outbox-failures/retry", operation_id = "retryOutboxFailures",
    tag = "outbox failures",
    request_body = FailureSelection,
    responses((status = 200, body = ChangedIds), Failures)
)]
pub async fn retry(
    State(api): Shared,
    Operator(caller): Operator,
    Json(selection): Json<FailureSelection>,
) -> Result<Json<ChangedIds>, Problem> {
    let filter = selection.checked()?;
    let ids = api.operations(&caller).retry_outbox_failures(&filter).await?;
    Ok(Json(ChangedIds { ids }))
}

/// Delete failures permanently. Their messages are never sent.
#[utoipa::path(
    post, path = "/v1/outbox-failures/delete", operation_id = "deleteOutboxFailures",
    tag = "outbox failures",
    request_body = FailureSelection,
    responses((status = 200, body = ChangedIds), Failures)
)]
pub async fn delete(
    State(api): Shared,
    Operator(caller): Operator,
    Json(selection): Json<FailureSelection>,
) -> Result<Json<ChangedIds>, Problem> {
    let filter = selection.checked()?;
    let ids = api.operations(&caller).delete_outbox_failures(&filter).await?;
    Ok(Json(ChangedIds { ids }))
}
