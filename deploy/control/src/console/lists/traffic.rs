//! Lists of traffic: webhooks, conversations, dead letters, failed messages, usage.

use super::{Cell, Loaded, Row, limit, page_of};
use crate::{
    api::{Problem, org_filter, unknown_cursor},
    console::{fields::Fields, webhooks::webhook_path},
};
use shared::{
    domain::{AgentId, ConnectionId, OrgId},
    store::{
        ApiCaller, DeadLetter, DeliveryFilter, FailureFilter, HourlyUsage, LaneState,
        OutboxFailure, RecentFilter, RecentWebhook, Store, UsageFilter,
    },
};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

/// Period of usage that is listed without a filter.
const USAGE_PERIOD: Duration = Duration::days(1);

/// Returns the organization of a filter, limited to the caller's own.
pub fn organization(caller: &ApiCaller, fields: &Fields) -> Result<Option<OrgId>, Problem> {
    org_filter(caller, fields.parsed("organization")?)
}

/// Returns the agent of a filter.
fn agent(fields: &Fields) -> Result<Option<(OrgId, AgentId)>, Problem> {
    let malformed = || Problem::bad_request("agent must be <organization>/<agent>");
    let Some(text) = fields.get("agent") else { return Ok(None) };
    let (org, agent) = text.split_once('/').ok_or_else(malformed)?;
    match (org.parse(), agent.parse()) {
        (Ok(org), Ok(agent)) => Ok(Some((org, agent))),
        _ => Err(malformed()),
    }
}

/// Returns the filter of webhooks.
fn recent_filter(caller: &ApiCaller, fields: &Fields) -> Result<RecentFilter, Problem> {
    let after = fields.page().after_time()?;
    Ok(RecentFilter {
        org: organization(caller, fields)?,
        connection: fields.parsed("connection")?,
        agent: agent(fields)?,
        user: fields.get("user").map(str::to_owned),
        error: fields.get("error").map(str::to_owned),
        after: after.map(|[at, key]| (at, key)),
    })
}

/// Returns the filter of conversations.
pub fn lane_filter(caller: &ApiCaller, fields: &Fields) -> Result<DeliveryFilter, Problem> {
    let (org, agent) = agent(fields)?.unzip();
    let owner = organization(caller, fields)?;
    let connection = fields.parsed("connection")?;
    Ok(DeliveryFilter { connection, org, agent, owner, ..DeliveryFilter::default() })
}

/// Returns the filter of dead letters and of failed messages.
pub fn failure_filter(caller: &ApiCaller, fields: &Fields) -> Result<FailureFilter, Problem> {
    Ok(FailureFilter {
        ids: None,
        connection: fields.parsed("connection")?,
        text: fields.get("text").map(str::to_owned),
        org: organization(caller, fields)?,
        below: fields.page().after_id()?,
    })
}

fn webhook_cell(key: Option<&str>, event: Option<&str>) -> Cell {
    let Some(key) = key else { return Cell::optional(event) };
    let short = key.rsplit(':').next().unwrap_or(key);
    Cell::link(event.unwrap_or(short), webhook_path(key))
}

fn agent_cell(agent: Option<&str>) -> Cell {
    let Some(agent) = agent else { return Cell::default() };
    let filter = Fields::default().with("organization", agent.split('/').next().unwrap_or(agent));
    Cell::link(agent, filter.url("/agents"))
}

/// Returns the tone of an outcome.
pub fn outcome_tone(outcome: &str) -> &'static str {
    match outcome {
        "completed" => "good",
        "open" => "warn",
        _ => "bad",
    }
}

/// Loads webhooks of the last days.
pub async fn webhooks(
    store: &Store,
    caller: &ApiCaller,
    fields: &Fields,
) -> Result<Loaded, Problem> {
    let (limit, filter) = (limit(&fields.page())?, recent_filter(caller, fields)?);
    let all = RecentFilter { after: None, ..filter.clone() };
    let number = store.count_recent_webhooks(&all).await?;
    let records = store.recent_webhooks(&filter, limit + 1).await?;
    let key = |record: &RecentWebhook| [record.at.clone(), record.dedup_key.clone()];
    let (rows, cursor) = page_of(records, limit, key, webhook_row);
    Ok(Loaded { rows, cursor, count: format!("{number} webhooks") })
}

fn webhook_row(record: RecentWebhook) -> Row {
    let tone = outcome_tone(&record.outcome);
    let cells = vec![
        Cell::time(Some(&record.at)),
        webhook_cell(Some(&record.dedup_key), None),
        Cell::new(record.outcome.replace('_', " ")).tone(tone),
        agent_cell(record.agent.as_deref()),
        Cell::optional(record.channel),
        Cell::optional(record.user),
        Cell::new(record.attempts.to_string()),
        Cell::new(record.error),
    ];
    Row { item: record.dedup_key, cells, actions: Vec::new() }
}

/// Loads conversations with open deliveries.
pub async fn conversations(
    store: &Store,
    caller: &ApiCaller,
    fields: &Fields,
) -> Result<Loaded, Problem> {
    let (page, filter) = (fields.page(), lane_filter(caller, fields)?);
    let limit = limit(&page)?;
    let after = match page.after::<2>()? {
        None => None,
        Some([lane, connection]) => Some((
            lane.parse().map_err(|()| unknown_cursor())?,
            connection.parse().map_err(|_| unknown_cursor())?,
        )),
    };
    let number = store.count_lanes_bounded(&filter).await?;
    let records = store.lanes_page(&filter, after, limit + 1).await?;
    let key = |record: &LaneState| [record.lane.clone(), record.connection.clone()];
    let (rows, cursor) = page_of(records, limit, key, lane_row);
    Ok(Loaded { rows, cursor, count: format!("{number} conversations") })
}

fn lane_row(record: LaneState) -> Row {
    let tone = match record.state.as_str() {
        "running" | "due" => "good",
        "waiting" | "paused" => "warn",
        _ => "bad",
    };
    let state = match &record.dedup_key {
        Some(key) => Cell::link(record.state, webhook_path(key)),
        None => Cell::new(record.state),
    };
    let cells = vec![
        state.tone(tone),
        agent_cell(Some(&record.agent)),
        Cell::optional(record.channel),
        Cell::optional(record.user),
        Cell::new(record.waiting.to_string()),
        Cell::new(record.attempts.to_string()),
        Cell::time(record.waiting_since.as_deref()),
        Cell::time(record.next_at.as_deref()),
        Cell::new(record.last_error),
    ];
    let item = format!("{}.{}", record.connection, record.lane);
    Row { item, cells, actions: vec!["retry", "skip", "cancel"] }
}

/// Loads dead letters.
pub async fn dead_letters(
    store: &Store,
    caller: &ApiCaller,
    fields: &Fields,
) -> Result<Loaded, Problem> {
    let (limit, filter) = (limit(&fields.page())?, failure_filter(caller, fields)?);
    let all = FailureFilter { below: None, ..filter.clone() };
    let (number, _) = store.count_dead_letters_bounded(&all).await?;
    let records = store.dead_letters(&filter, limit + 1, false).await?;
    let (rows, cursor) = page_of(records, limit, |r: &DeadLetter| [r.id.to_string()], dead_row);
    Ok(Loaded { rows, cursor, count: format!("{number} dead letters") })
}

fn dead_row(record: DeadLetter) -> Row {
    let cells = vec![
        Cell::time(record.at.as_deref()),
        webhook_cell(record.dedup_key.as_deref(), record.event_id.as_deref()),
        Cell::new(record.stage),
        Cell::new(record.reason).tone("bad"),
        Cell::new(record.last_error),
        agent_cell(record.agent.as_deref()),
        Cell::optional(record.channel),
        Cell::new(record.attempts.to_string()),
        Cell::time(record.redrive_at.as_deref()),
    ];
    let actions = vec!["redrive", "delete-dead-letters"];
    Row { item: record.id.to_string(), cells, actions }
}

/// Loads messages that Slack rejected.
pub async fn outbox_failures(
    store: &Store,
    caller: &ApiCaller,
    fields: &Fields,
) -> Result<Loaded, Problem> {
    let (limit, filter) = (limit(&fields.page())?, failure_filter(caller, fields)?);
    let all = FailureFilter { below: None, ..filter.clone() };
    let (number, _) = store.count_outbox_failures_bounded(&all).await?;
    let records = store.outbox_failures(&filter, limit + 1).await?;
    let key = |record: &OutboxFailure| [record.id.to_string()];
    let (rows, cursor) = page_of(records, limit, key, failure_row);
    Ok(Loaded { rows, cursor, count: format!("{number} messages") })
}

fn failure_row(record: OutboxFailure) -> Row {
    let cells = vec![
        Cell::time(Some(&record.at)),
        webhook_cell(Some(&record.dedup_key), None),
        Cell::new(record.method),
        Cell::new(record.channel_key),
        Cell::new(record.error).tone("bad"),
        Cell::new(record.attempts.to_string()),
        Cell::time(Some(&record.created_at)),
    ];
    Row { item: record.id.to_string(), cells, actions: vec!["resend", "delete-failures"] }
}

/// Loads usage.
pub async fn usage(store: &Store, caller: &ApiCaller, fields: &Fields) -> Result<Loaded, Problem> {
    let page = fields.page();
    let limit = limit(&page)?;
    let from = match time_of(fields, "from")? {
        Some(from) => from,
        None => store.now().await? - USAGE_PERIOD,
    };
    let filter = UsageFilter {
        org: organization(caller, fields)?,
        connection: fields.parsed::<ConnectionId>("connection")?,
        from: Some(from),
        to: time_of(fields, "to")?,
        after: page.after_time()?.map(|[hour, connection]| (hour, connection)),
    };
    let number = store.count_usage(&filter).await?;
    let records = store.usage(&filter, limit + 1).await?;
    let key = |record: &HourlyUsage| [record.hour.clone(), record.connection.clone()];
    let (rows, cursor) = page_of(records, limit, key, usage_row);
    Ok(Loaded { rows, cursor, count: format!("{number} hours of connections") })
}

fn usage_row(record: HourlyUsage) -> Row {
    let number = |n: i64| Cell::new(n.to_string());
    let cells = vec![
        Cell::time(Some(&record.hour)),
        Cell::optional(record.organization),
        Cell::new(record.connection.clone()),
        number(record.webhooks),
        number(record.ignored),
        number(record.deliveries),
        number(record.attempts),
        Cell::new(format!("{} s", record.agent_ms / 1000)),
        number(record.replies),
        number(record.failures),
    ];
    Row { item: record.connection, cells, actions: Vec::new() }
}

/// Returns the time in a field.
pub fn time_of(fields: &Fields, name: &str) -> Result<Option<OffsetDateTime>, Problem> {
    let parse = |text| OffsetDateTime::parse(text, &Rfc3339);
    let malformed =
        |_| Problem::bad_request(format!("{name} must be a time such as 2026-01-31T12:00:00Z"));
    fields.get(name).map(parse).transpose().map_err(malformed)
}
