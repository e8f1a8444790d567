//! Dead letters. Their bodies are never returned.

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
use shared::store::DeadLetter as Record;

resource! {
    /// Webhook or delivery that was given up on.
    DeadLetter from Record {
        id: i64,
        /// `intake`: a webhook that was not routed. `dispatch`: a delivery to an agent.
        stage: String,
        connection: Option<String>,
        /// `<organization>/<agent>`.
        agent: Option<String>,
        dedup_key: Option<String>,
        event_id: Option<String>,
        channel: Option<String>,
        ts: Option<String>,
        user: Option<String>,
        reason: String,
        last_error: String,
        attempts: i32,
        at: Option<String>,
        /// Time of a redrive that has not ended yet.
        redrive_at: Option<String>,
    }
}

/// List dead letters, newest first.
#[utoipa::path(
    get, path = "/v1/dead-letters", operation_id = "listDeadLetters", tag = "dead letters",
    params(Filter, PageQuery),
    responses((status = 200, body = Page<DeadLetter>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(filter): Query<Filter>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<DeadLetter>>, Problem> {
    let limit = page.limit()?;
    let filter = filter.checked(&caller, &page)?;
    let rows = api.store.dead_letters(&filter, limit + 1, false).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.id.to_string()])))
}

/// Process dead letters again, after later webhooks of their conversations.
///
/// Webhooks that intake gave up on are processed later, and are listed until then.
#[utoipa::path(
    post, path = "/v1/dead-letters/redrive", operation_id = "redriveDeadLetters",
    tag = "dead letters",
    request_body = FailureSelection,
    responses((status = 200, body = ChangedIds), Failures)
)]
pub async fn redrive(
    State(api): Shared,
    Operator(caller): Operator,
    Json(selection): Json<FailureSelection>,
) -> Result<Json<ChangedIds>, Problem> {
    let filter = selection.checked()?;
    let ids = api.operations(&caller).redrive_dead_letters(&filter).await?;
    Ok(Json(ChangedIds { ids }))
}

/// Delete dead letters permanently.
#[utoipa::path(
    post, path = "/v1/dead-letters/delete", operation_id = "deleteDeadLetters",
    tag = "dead letters",
    request_body = FailureSelection,
    responses((status = 200, body = ChangedIds), Failures)
)]
pub async fn delete(
    State(api): Shared,
    Operator(caller): Operator,
    Json(selection): Json<FailureSelection>,
) -> Result<Json<ChangedIds>, Problem> {
    let filter = selection.checked()?;
    let ids = api.operations(&caller).delete_dead_letters(&filter).await?;
    Ok(Json(ChangedIds { ids }))
}
