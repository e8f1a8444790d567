//! Lists of declared objects and their changes: agents, connections, apps, link codes, bindings,
//! audit log.

use super::{Cell, Loaded, Row, limit, page_of, traffic::organization, traffic::time_of};
use crate::{
    api::{Problem, unknown_cursor},
    console::{fields::Fields, webhooks::require_connection},
};
use shared::{
    domain::{AppId, ConnectionId, ConnectionStatus},
    store::{
        AgentState, ApiCaller, AppSummary, AuditEntry, AuditLogFilter, BindingRecord,
        ConnectionSummary, LinkCodeRecord, MAX_APPS, Store,
    },
};

/// Loads agents.
pub async fn agents(store: &Store, caller: &ApiCaller, fields: &Fields) -> Result<Loaded, Problem> {
    let (page, org) = (fields.page(), organization(caller, fields)?);
    let (limit, after) = (limit(&page)?, page.after::<2>()?);
    let after = after.as_ref().map(|[org, id]| (org.as_str(), id.as_str()));
    let number = store.count_agents(org.as_ref()).await?;
    let records = store.agents_page(org.as_ref(), after, limit + 1).await?;
    let key = |record: &AgentState| [record.organization.clone(), record.id.clone()];
    let (rows, cursor) = page_of(records, limit, key, agent_row);
    Ok(Loaded { rows, cursor, count: format!("{number} agents") })
}

fn agent_row(record: AgentState) -> Row {
    let (state, tone, action) = match (&record.paused_at, &record.circuit_opened_at) {
        (Some(_), _) => ("paused", "warn", "resume-agent"),
        (None, Some(_)) => ("circuit open", "bad", "pause-agent"),
        (None, None) => ("active", "good", "pause-agent"),
    };
    let item = format!("{}/{}", record.organization, record.id);
    let of_agent = Fields::default().with("agent", &item);
    let cells = vec![
        Cell::link(&item, of_agent.url("/webhooks")),
        Cell::new(record.name),
        Cell::new(state).tone(tone),
        Cell::new(record.mode),
        Cell::new(format!("{} of {}", record.running, record.max_concurrent)),
        Cell::link(record.deliveries.to_string(), of_agent.url("/conversations")),
        Cell::new(record.bindings.to_string()),
        Cell::new(record.url),
        Cell::optional(record.circuit_error),
    ];
    Row { item, cells, actions: vec![action] }
}

/// Loads connections.
pub async fn connections(
    store: &Store,
    caller: &ApiCaller,
    fields: &Fields,
) -> Result<Loaded, Problem> {
    let (page, org) = (fields.page(), organization(caller, fields)?);
    let (limit, after) = (limit(&page)?, page.after::<1>()?);
    let after = after.map(|[id]| id.parse().map_err(|_| unknown_cursor())).transpose()?;
    let number = store.count_connections(org.as_ref()).await?;
    let records = store.connections_page(org.as_ref(), after, limit + 1).await?;
    let key = |record: &ConnectionSummary| [record.id.to_string()];
    let (rows, cursor) = page_of(records, limit, key, connection_row);
    Ok(Loaded { rows, cursor, count: format!("{number} connections") })
}

fn connection_row(record: ConnectionSummary) -> Row {
    let id = record.id.to_string();
    let of_connection = Fields::default().with("connection", &id);
    let (tone, action) = match record.status {
        ConnectionStatus::Active => ("good", Some("disable")),
        ConnectionStatus::Pending | ConnectionStatus::Stopped => ("warn", Some("enable")),
        ConnectionStatus::Error => ("bad", Some("disable")),
        ConnectionStatus::Revoked => ("bad", None),
    };
    let status = match record.reason.as_str() {
        "" => record.status.to_string(),
        reason => format!("{}: {reason}", record.status),
    };
    let is_paused = record.sending_paused_at.is_some();
    let sending = if is_paused { Cell::new("paused").tone("warn") } else { Cell::new("on") };
    let cells = vec![
        Cell::link(&id, of_connection.url("/webhooks")),
        Cell::new(record.organization.to_string()),
        Cell::new(record.app.to_string()),
        Cell::optional(record.team.map(|id| id.to_string())),
        Cell::new(status).tone(tone),
        Cell::optional(record.agent.map(|id| id.to_string())),
        sending,
        Cell::link(record.bindings.to_string(), of_connection.url("/bindings")),
    ];
    let sending = if is_paused { "resume-sending" } else { "pause-sending" };
    Row { item: id, cells, actions: action.into_iter().chain([sending]).collect() }
}

/// Loads apps. There are at most [`MAX_APPS`].
pub async fn apps(store: &Store, caller: &ApiCaller, fields: &Fields) -> Result<Loaded, Problem> {
    let page = fields.page();
    let (limit, after) = (limit(&page)?, page.after::<1>()?);
    let after: Option<AppId> =
        after.map(|[id]| id.parse().map_err(|_| unknown_cursor())).transpose()?;
    let org = caller.org.as_ref();
    let number = store.app_summaries(org, None, MAX_APPS as i64).await?.len();
    let records = store.app_summaries(org, after.as_ref(), limit + 1).await?;
    let (rows, cursor) = page_of(records, limit, |r: &AppSummary| [r.id.to_string()], app_row);
    Ok(Loaded { rows, cursor, count: format!("{number} apps") })
}

fn app_row(record: AppSummary) -> Row {
    let cells = vec![
        Cell::new(record.id.to_string()),
        Cell::new(record.name),
        Cell::new(record.organization.map_or("any".into(), |id| id.to_string())),
        Cell::new(record.connections.to_string()),
        Cell::new(record.scopes.join(", ")),
        Cell::new(record.redirect_url),
    ];
    Row { item: record.id.to_string(), cells, actions: Vec::new() }
}

/// Loads link codes.
pub async fn link_codes(
    store: &Store,
    caller: &ApiCaller,
    fields: &Fields,
) -> Result<Loaded, Problem> {
    let (page, org) = (fields.page(), organization(caller, fields)?);
    let (limit, after) = (limit(&page)?, page.after_time()?);
    let after = after.as_ref().map(|[at, id]| (at.as_str(), id.as_str()));
    let number = store.count_link_codes(org.as_ref()).await?;
    let records = store.link_codes_page(org.as_ref(), after, limit + 1).await?;
    let key = |record: &LinkCodeRecord| {
        [record.created_at.clone().unwrap_or_default(), record.id.clone()]
    };
    let (rows, cursor) = page_of(records, limit, key, link_code_row);
    Ok(Loaded { rows, cursor, count: format!("{number} link codes") })
}

fn link_code_row(record: LinkCodeRecord) -> Row {
    let is_open = record.state == "open";
    let cells = vec![
        Cell::new(record.id.clone()),
        Cell::new(record.state).tone(if is_open { "good" } else { "" }),
        Cell::new(format!("{}/{}", record.org, record.agent)),
        Cell::new(record.surfaces.join(", ")),
        Cell::time(record.created_at.as_deref()),
        Cell::time(record.expires_at.as_deref()),
        Cell::new(record.created_by),
        Cell::optional(record.consumed_channel.map(|id| id.to_string())),
        Cell::optional(record.consumed_user.map(|id| id.to_string())),
    ];
    let actions = if is_open { vec!["revoke"] } else { Vec::new() };
    Row { item: record.id, cells, actions }
}

/// Loads the bindings of a connection.
pub async fn bindings(
    store: &Store,
    caller: &ApiCaller,
    fields: &Fields,
) -> Result<Loaded, Problem> {
    let Some(connection) = fields.parsed::<ConnectionId>("connection")? else {
        return Ok(Loaded { rows: Vec::new(), cursor: None, count: String::new() });
    };
    require_connection(store, caller, connection).await?;
    let page = fields.page();
    let (limit, after) = (limit(&page)?, page.after::<2>()?);
    let after = after.as_ref().map(|[team, channel]| (team.as_str(), channel.as_str()));
    let number = store.count_bindings(connection).await?;
    let records = store.bindings_page(connection, after, limit + 1).await?;
    let key = |record: &BindingRecord| [record.team.clone(), record.channel.clone()];
    let (rows, cursor) = page_of(records, limit, key, binding_row);
    Ok(Loaded { rows, cursor, count: format!("{number} bindings") })
}

fn binding_row(record: BindingRecord) -> Row {
    let item = format!("{}/{}/{}", record.connection, record.team, record.channel);
    let cells = vec![
        Cell::new(record.channel),
        Cell::new(record.team),
        Cell::new(record.agent),
        Cell::new(record.bound_by),
        Cell::time(Some(&record.bound_at)),
        Cell::optional(record.last_send_error).tone("bad"),
    ];
    Row { item, cells, actions: vec!["unbind"] }
}

/// Loads the audit log.
pub async fn audit_log(
    store: &Store,
    caller: &ApiCaller,
    fields: &Fields,
) -> Result<Loaded, Problem> {
    let page = fields.page();
    let limit = limit(&page)?;
    let text = |name: &str| fields.get(name).map(str::to_owned);
    let filter = AuditLogFilter {
        actor: text("actor"),
        action: text("action"),
        object_kind: text("object_kind"),
        object_id: text("object_id"),
        org: organization(caller, fields)?,
        from: time_of(fields, "from")?,
        to: time_of(fields, "to")?,
        after: page.after_id()?,
    };
    let number = store.count_audit_log(&filter).await?;
    let records = store.audit_log(&filter, limit + 1).await?;
    let (rows, cursor) = page_of(records, limit, |r: &AuditEntry| [r.id.to_string()], audit_row);
    Ok(Loaded { rows, cursor, count: format!("{number} changes") })
}

fn audit_row(record: AuditEntry) -> Row {
    let value =
        |value: Option<serde_json::Value>| Cell::optional(value.map(|value| value.to_string()));
    let cells = vec![
        Cell::time(Some(&record.at)),
        Cell::new(record.actor),
        Cell::new(record.action),
        Cell::new(record.object_id),
        Cell::optional(record.organization),
        value(record.before),
        value(record.after),
    ];
    Row { item: record.id.to_string(), cells, actions: Vec::new() }
}
