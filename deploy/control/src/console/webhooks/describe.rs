//! Content of the page of a webhook: summary, ids, actions, and all rows.

use super::timeline;
use crate::console::{
    actions,
    lists::{Link, outcome_tone, time_text},
};
use serde_json::Value;
use shared::store::WebhookRecord;

/// Row of a table about the webhook.
pub struct Section {
    pub name: String,
    pub values: Vec<(String, String)>,
}

/// Returns the last row of a section.
fn last<'r>(record: &'r WebhookRecord, section: &str) -> Option<&'r Value> {
    record.rows.get(section)?.as_array()?.last()
}

/// Returns the text in a column of a row, unless it is empty.
fn text<'r>(row: &'r Value, name: &str) -> Option<&'r str> {
    row[name].as_str().filter(|text| !text.is_empty())
}

/// Returns whether Postgres has the body of a webhook.
pub fn has_body(record: &WebhookRecord) -> bool {
    let has_payload = |row: &Value| row["has_payload"] == true;
    record.rows.contains_key("delivery") || last(record, "dead_letter").is_some_and(has_payload)
}

/// Returns one sentence about the state of a webhook, and its tone.
pub fn summary(record: &WebhookRecord) -> (String, &'static str) {
    let word = |row: &Value, name: &str| text(row, name).unwrap_or_default().replace('_', " ");
    if let Some(row) = last(record, "dead_letter") {
        let error = word(row, "last_error");
        let error = if error.is_empty() { error } else { format!(": {error}") };
        return (format!("Tidegate gave up: {}{error}.", word(row, "reason")), "bad");
    }
    if let Some(row) = last(record, "delivery") {
        let state = word(row, "state");
        let error = word(row, "last_error");
        let error = if error.is_empty() { error } else { format!("; last error: {error}") };
        return (format!("The delivery {state}{error}."), "warn");
    }
    if let Some(row) = last(record, "outbox_failure") {
        return (format!("Slack rejected the answer: {}.", word(row, "error")), "bad");
    }
    if let Some(row) = last(record, "delivery_log") {
        let (outcome, error) = (word(row, "outcome"), word(row, "error"));
        let error = if error.is_empty() { error } else { format!(": {error}") };
        return (
            format!("The delivery ended as {outcome}{error}."),
            outcome_tone(&row_outcome(row)),
        );
    }
    if let Some(row) = last(record, "ignored") {
        return (timeline::why_ignored(text(row, "reason").unwrap_or_default()), "warn");
    }
    match last(record, "processed") {
        Some(row) => (format!("Processed as {}.", word(row, "as")), "good"),
        None => ("Only messages to Slack are recorded.".into(), ""),
    }
}

fn row_outcome(row: &Value) -> String {
    text(row, "outcome").unwrap_or_default().to_owned()
}

/// Returns ids and names of a webhook.
pub fn facts(record: &WebhookRecord) -> Vec<(&'static str, String)> {
    let sections = ["delivery", "delivery_log", "dead_letter", "ignored"];
    let find = |name: &str| {
        sections.iter().find_map(|section| text(last(record, section)?, name).map(str::to_owned))
    };
    let agent = find("org_id").zip(find("agent_id")).map(|(org, agent)| format!("{org}/{agent}"));
    let mut facts = vec![("Dedup key", record.dedup_key.clone())];
    let connection = record.dedup_key.split(':').next().unwrap_or_default();
    facts.push(("Connection", connection.to_owned()));
    for (name, value) in [
        ("Event id", find("event_id")),
        ("Kind", find("kind")),
        ("Agent", agent),
        ("Channel", find("channel_id")),
        ("Message", find("ts")),
        ("User", find("user_id")),
        ("Received", find("received_at").map(|at| time_text(&at))),
    ] {
        facts.extend(value.map(|value| (name, value)));
    }
    facts
}

/// Returns the actions that the state of a webhook allows.
pub fn links(record: &WebhookRecord, back: &str) -> Vec<Link> {
    let link = |name: &str, item: &str| {
        let action = actions::find(name)?;
        Some(Link { text: action.label, href: action.url(item, back) })
    };
    let mut links = Vec::new();
    if let Some(row) = last(record, "delivery")
        && let (Some(lane), Some(position)) = (text(row, "lane"), row["position"].as_i64())
        && row["head"].as_i64() == Some(position)
    {
        let connection = record.dedup_key.split(':').next().unwrap_or_default();
        let item = format!("{connection}.{lane}.{position}");
        links.extend(
            ["retry", "skip", "cancel", "cancel-all"].iter().filter_map(|name| link(name, &item)),
        );
    }
    if let Some(id) = last(record, "dead_letter").and_then(|row| row["id"].as_i64()) {
        let item = id.to_string();
        let names = ["redrive", "delete-dead-letters"];
        links.extend(names.iter().filter_map(|name| link(name, &item)));
    }
    if let Some(id) = last(record, "outbox_failure").and_then(|row| row["id"].as_i64()) {
        let item = id.to_string();
        let names = ["resend", "delete-failures"];
        links.extend(names.iter().filter_map(|name| link(name, &item)));
    }
    links
}

/// Returns all rows about a webhook.
pub fn sections(record: &WebhookRecord) -> Vec<Section> {
    let value = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let mut sections = Vec::new();
    for (name, rows) in &record.rows {
        for row in rows.as_array().into_iter().flatten() {
            let values = row.as_object().into_iter().flatten();
            let values = values.filter_map(|(name, v)| Some((name.replace('_', " "), value(v)?)));
            sections.push(Section { name: name.replace('_', " "), values: values.collect() });
        }
    }
    sections
}
