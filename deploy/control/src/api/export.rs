//! Export of an organization.

use super::{
    Problem, Shared,
    caller::Owner,
    extract::Path,
    problem::Failures,
    stream_permit::{StreamError, StreamPermit},
};
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use shared::{domain::OrgId, store::ExportPosition};

/// Export an organization as JSON lines, `{"kind": …, "row": …}` each: settings, connections,
/// bindings, link codes, failures, usage and changes. Without secrets and message texts.
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
    let permit = StreamPermit::acquire(&api, &caller)?;
    let operations = api.operations(&caller);
    operations.begin_export(&org).await?;
    // The first page is read before the status is sent.
    let first = operations.export_page(&org, &ExportPosition::default()).await?;
    let state = (permit, operations, org, Some(first));
    let pages = stream::try_unfold(state, async |(permit, operations, org, page)| {
        let Some((rows, at)) = page else { return Ok::<_, StreamError>(None) };
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let next = match at {
            Some(at) => {
                permit.check().await?;
                Some(operations.export_page(&org, &at).await?)
            }
            None => None,
        };
        Ok(Some((Bytes::from(lines), (permit, operations, org, next))))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(pages)).into_response())
}
