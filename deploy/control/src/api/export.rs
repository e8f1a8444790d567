//! Export of an organization.

use super::{Problem, Shared, caller::Owner, extract::Path, problem::Failures};
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use shared::{domain::OrgId, operations::OperationError, store::ExportPosition};

/// Export an organization as JSON lines, `{"kind": …, "row": …}` each: settings, connections,
/// bindings, link codes, failures, usage and changes. No secrets and no text of people.
#[utoipa::path(
    get, path = "/v1/organizations/{organization}/export", operation_id = "exportOrganization",
    tag = "organizations",
    params(("organization" = String, Path, description = "Id of the organization.")),
    responses((status = 200, body = String, content_type = "application/x-ndjson"), Failures)
)]
pub async fn get(
    State(api): Shared,
    Owner(caller): Owner,
    Path(org): Path<OrgId>,
) -> Result<Response, Problem> {
    let operations = api.operations(&caller);
    operations.begin_export(&org).await?;
    // The first page is read before the status is sent.
    let first = operations.export_page(&org, &ExportPosition::default()).await?;
    let pages =
        stream::try_unfold((operations, org, Some(first)), async |(operations, org, page)| {
            let Some((rows, at)) = page else { return Ok::<_, OperationError>(None) };
            let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
            let next = match at {
                Some(at) => Some(operations.export_page(&org, &at).await?),
                None => None,
            };
            Ok(Some((Bytes::from(lines), (operations, org, next))))
        });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(pages)).into_response())
}
