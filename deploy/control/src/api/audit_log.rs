//! Audit log.

use super::{
    Problem, Shared,
    caller::{Viewer, org_filter},
    extract::{Json, Query},
    page::{Page, PageQuery},
    problem::Failures,
    usage::parse_time,
};
use axum::extract::State;
use serde::{Deserialize, Serialize};
use shared::{
    domain::OrgId,
    store::{AuditEntry as Record, AuditLogFilter},
};
use utoipa::{IntoParams, ToSchema};

/// Change by a person or program.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditEntry {
    id: i64,
    at: String,
    /// `operator:<name>`, `api-key:<id>`, `slack-user:<team>/<user>`, `slack` or
    /// `backend`.
    actor: String,
    /// Kind of object and verb, such as `connection.disable`.
    action: String,
    object_kind: String,
    object_id: String,
    organization: Option<String>,
    /// Changed values before the change, without secrets.
    #[schema(value_type = Option<Object>)]
    before: Option<serde_json::Value>,
    /// Changed values after the change, without secrets.
    #[schema(value_type = Option<Object>)]
    after: Option<serde_json::Value>,
}

impl From<Record> for AuditEntry {
    fn from(record: Record) -> Self {
        let Record { id, at, actor, action, object_kind, object_id, .. } = record;
        let (organization, before, after) = (record.organization, record.before, record.after);
        Self { id, at, actor, action, object_kind, object_id, organization, before, after }
    }
}

/// Filter of changes.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only list changes of objects of this organization.
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: Option<OrgId>,
    /// Only list changes by this actor.
    #[param(pattern = r"^[^\x00]*$")]
    actor: Option<String>,
    /// Only list changes with this action.
    #[param(pattern = r"^[^\x00]*$")]
    action: Option<String>,
    /// Only list changes of objects of this kind.
    #[param(pattern = r"^[^\x00]*$")]
    object_kind: Option<String>,
    /// Only list changes of the object with this id.
    #[param(pattern = r"^[^\x00]*$")]
    object_id: Option<String>,
    /// Start of the time range, such as 2026-01-31T12:00:00Z.
    #[param(format = DateTime)]
    from: Option<String>,
    /// End of the time range, exclusive, in the same format.
    #[param(format = DateTime)]
    to: Option<String>,
}

/// List changes by people and programs, newest first.
#[utoipa::path(
    get, path = "/v1/audit-log", operation_id = "listAuditLog", tag = "audit log",
    params(Filter, PageQuery),
    responses((status = 200, body = Page<AuditEntry>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(filter): Query<Filter>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<AuditEntry>>, Problem> {
    let limit = page.limit()?;
    let filter = AuditLogFilter {
        actor: filter.actor,
        action: filter.action,
        object_kind: filter.object_kind,
        object_id: filter.object_id,
        org: org_filter(&caller, filter.organization)?,
        from: parse_time("from", filter.from.as_deref())?,
        to: parse_time("to", filter.to.as_deref())?,
        after: page.after_id()?,
    };
    let rows = api.store.audit_log(&filter, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.id.to_string()])))
}
