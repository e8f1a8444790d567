//! Hourly usage of connections.

use super::{
    Problem, Shared,
    caller::{Viewer, org_filter},
    extract::{Json, Query},
    page::{Page, PageQuery},
    problem::Failures,
    resource,
    stream_permit::{StreamError, StreamPermit},
};
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use shared::{
    domain::{ConnectionId, OrgId},
    store::{ApiCaller, HourlyUsage, UsageFilter},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::IntoParams;

/// Maximum rows of a CSV file.
const MAX_CSV_ROWS: i64 = 100_000;
/// Rows of a CSV file that are in memory at once.
const CSV_PAGE_ROWS: i64 = 1_000;
/// First line of a CSV file.
const CSV_HEAD: &str = "organization,connection,hour,webhooks,ignored,deliveries,attempts,agent_ms,\
                        replies,failures\r\n";

resource! {
    /// Usage of a connection in an hour.
    Usage from HourlyUsage {
        organization: Option<String>,
        connection: String,
        hour: String,
        webhooks: i64,
        ignored: i64,
        deliveries: i64,
        attempts: i64,
        /// Duration of the attempts.
        agent_ms: i64,
        replies: i64,
        failures: i64,
    }
}

/// Filter of usage.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only list usage of connections of this organization.
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: Option<OrgId>,
    /// Only list usage of this connection.
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    connection: Option<ConnectionId>,
    /// Start of the time range, such as 2026-01-31T12:00:00Z.
    #[param(format = DateTime)]
    from: Option<String>,
    /// End of the time range, exclusive, in the same format.
    #[param(format = DateTime)]
    to: Option<String>,
}

/// Parses a time in a query parameter.
pub fn parse_time(name: &str, text: Option<&str>) -> Result<Option<OffsetDateTime>, Problem> {
    let parse = |text| OffsetDateTime::parse(text, &Rfc3339);
    let malformed =
        |_| Problem::bad_request(format!("{name} must be a time such as 2026-01-31T12:00:00Z"));
    text.map(parse).transpose().map_err(malformed)
}

impl Filter {
    fn checked(self, caller: &ApiCaller) -> Result<UsageFilter, Problem> {
        Ok(UsageFilter {
            org: org_filter(caller, self.organization)?,
            connection: self.connection,
            from: parse_time("from", self.from.as_deref())?,
            to: parse_time("to", self.to.as_deref())?,
            after: None,
        })
    }
}

/// List usage, oldest hours first.
#[utoipa::path(
    get, path = "/v1/usage", operation_id = "listUsage", tag = "usage",
    params(Filter, PageQuery),
    responses((status = 200, body = Page<Usage>), Failures)
)]
pub async fn list(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(filter): Query<Filter>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Usage>>, Problem> {
    let (limit, after) = (page.limit()?, page.after_time()?);
    let after = after.map(|[hour, connection]| (hour, connection));
    let filter = UsageFilter { after, ..filter.checked(&caller)? };
    let rows = api.store.usage(&filter, limit + 1).await?;
    Ok(Json(Page::new(rows, limit, |row| [row.hour.clone(), row.connection.clone()])))
}

/// Get usage as CSV, at most 100000 rows, oldest hours first.
#[utoipa::path(
    get, path = "/v1/usage.csv", operation_id = "getUsageCsv", tag = "usage",
    params(Filter),
    responses((status = 200, body = String, content_type = "text/csv"), Failures)
)]
pub async fn csv(
    State(api): Shared,
    Viewer(caller): Viewer,
    Query(filter): Query<Filter>,
) -> Result<Response, Problem> {
    let filter = filter.checked(&caller)?;
    let permit = StreamPermit::acquire(&api, &caller)?;
    // The first page is read before the status is sent.
    let first = api.store.usage(&filter, CSV_PAGE_ROWS).await?;
    let head = stream::once(async { Ok(Bytes::from_static(CSV_HEAD.as_bytes())) });
    let state = (permit, api, filter, first, 0_i64);
    let pages = stream::try_unfold(state, async |(permit, api, mut filter, page, sent)| {
        let Some(last) = page.last() else { return Ok::<_, StreamError>(None) };
        filter.after = Some((last.hour.clone(), last.connection.clone()));
        let (text, sent) = (Bytes::from(render(&page)), sent + page.len() as i64);
        let limit = CSV_PAGE_ROWS.min(MAX_CSV_ROWS - sent);
        let is_last = (page.len() as i64) < CSV_PAGE_ROWS || limit <= 0;
        let next = if is_last {
            Vec::new()
        } else {
            permit.check().await?;
            api.store.usage(&filter, limit).await?
        };
        Ok(Some((text, (permit, api, filter, next, sent))))
    });
    let body = Body::from_stream(head.chain(pages));
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], body).into_response())
}

/// Returns rows as CSV. Ids and times need no quotes.
fn render(rows: &[HourlyUsage]) -> String {
    let mut text = String::new();
    for row in rows {
        let HourlyUsage {
            connection,
            hour,
            webhooks,
            ignored,
            deliveries,
            attempts,
            agent_ms,
            replies,
            failures,
            ..
        } = row;
        let org = row.organization.as_deref().unwrap_or_default();
        text += &format!(
            "{org},{connection},{hour},{webhooks},{ignored},{deliveries},{attempts},{agent_ms},\
             {replies},{failures}\r\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_csv() {
        let row: HourlyUsage = serde_json::from_value(serde_json::json!({
            "organization": "acme", "connection": "07", "hour": "2026-01-31T12:00:00+00:00",
            "webhooks": 9, "ignored": 1, "deliveries": 8, "attempts": 10, "agent_ms": 1200,
            "replies": 7, "failures": 1,
        }))
        .expect("a row");
        let text = render(&[row]);
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines[0], "acme,07,2026-01-31T12:00:00+00:00,9,1,8,10,1200,7,1");
        assert_eq!(CSV_HEAD.split(',').count(), lines[0].split(',').count());
    }
}
