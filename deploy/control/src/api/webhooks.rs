//! Records of a webhook. The body is never returned.

use super::{
    Problem, Shared,
    caller::Viewer,
    connections,
    extract::{Json, Path, Query},
    problem::Failures,
};
use axum::extract::State;
use serde::{Deserialize, Serialize};
use shared::{
    domain::ConnectionId,
    store::{WebhookQuery, WebhookRecord},
};
use utoipa::{IntoParams, ToSchema};

/// Search for a webhook.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Search {
    /// Dedup key, Slack's event id, the reference in a failure notice, or `<channel>/<ts>`.
    #[param(pattern = r"^[^\x00]*$")]
    reference: String,
}

/// Records of a webhook: routing, delivery, attempts, dead letter and messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct Webhook {
    dedup_key: String,
    /// Rows by section, as `tidegate webhook show --json` prints them.
    #[schema(value_type = Object)]
    records: serde_json::Map<String, serde_json::Value>,
}

impl From<WebhookRecord> for Webhook {
    fn from(record: WebhookRecord) -> Self {
        Self { dedup_key: record.dedup_key, records: record.rows }
    }
}

/// Webhooks that match a search.
#[derive(Debug, Serialize, ToSchema)]
pub struct FoundWebhooks {
    /// Webhooks, at most 20.
    items: Vec<Webhook>,
}

/// Find the records of a webhook.
#[utoipa::path(
    get, path = "/v1/connections/{connection}/webhooks", operation_id = "findWebhooks",
    tag = "webhooks",
    params(("connection" = String, Path, description = "Id of the connection."), Search),
    responses((status = 200, body = FoundWebhooks), Failures)
)]
pub async fn find(
    State(api): Shared,
    Viewer(caller): Viewer,
    Path(id): Path<ConnectionId>,
    Query(search): Query<Search>,
) -> Result<Json<FoundWebhooks>, Problem> {
    connections::find(&api, &caller, id).await?;
    let query = WebhookQuery::from(search.reference.as_str());
    let own = format!("{id}:");
    let mut items = Vec::new();
    for key in api.store.find_webhooks(&query, Some(id)).await? {
        // A dedup key begins with the id of the connection.
        if key.starts_with(&own) {
            items.extend(api.store.webhook(&key).await?.map(Webhook::from));
        }
    }
    Ok(Json(FoundWebhooks { items }))
}
