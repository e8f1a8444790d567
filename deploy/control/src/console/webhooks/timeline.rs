//! Timeline of a webhook: from Slack's request to each call to Slack, with durations.
//!
//! For all attempts together, the first start, the end and the number are recorded.

use serde_json::Value;
use shared::store::WebhookRecord;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

/// Width of the chart.
const WIDTH: i128 = 1000;
/// Width of the shortest bar.
const BAR_MIN: i128 = 4;

/// Step of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub name: &'static str,
    pub begin: String,
    pub duration: String,
    pub detail: String,
    pub tone: &'static str,
    /// Position of the bar.
    pub x: i128,
    pub width: i128,
}

/// Step before rendering. Without an end it is in progress.
struct Span {
    name: &'static str,
    from: OffsetDateTime,
    to: Option<OffsetDateTime>,
    detail: String,
    tone: &'static str,
}

/// Returns the steps of a webhook in order of their start.
pub fn steps(record: &WebhookRecord, now: OffsetDateTime) -> Vec<Step> {
    let spans = spans(record);
    let Some(first) = spans.iter().map(|span| span.from).min() else { return Vec::new() };
    let end = |span: &Span| span.to.unwrap_or(now).max(span.from);
    let last = spans.iter().map(end).max().unwrap_or(first);
    let all = (last - first).whole_microseconds().max(1);
    let step = |span: &Span| {
        let from = (span.from - first).whole_microseconds() * WIDTH / all;
        let to = (end(span) - first).whole_microseconds() * WIDTH / all;
        let x = from.min(WIDTH - BAR_MIN);
        let lasts = if span.to.is_none() { " so far" } else { "" };
        Step {
            name: span.name,
            begin: span
                .from
                .format(&Rfc3339)
                .map(|at| at.chars().take(23).collect())
                .unwrap_or_default(),
            duration: duration_text(end(span) - span.from) + lasts,
            detail: span.detail.clone(),
            tone: span.tone,
            x,
            width: (to - from).max(BAR_MIN).min(WIDTH - x),
        }
    };
    spans.iter().map(step).collect()
}

fn spans(record: &WebhookRecord) -> Vec<Span> {
    let mut spans = Vec::new();
    // A dead letter of dispatch has the times of its delivery in the log, too.
    let of = |section: &str| rows(record, section);
    if let Some(row) = of("delivery").last().or_else(|| of("delivery_log").last()) {
        let is_open = record.rows.contains_key("delivery");
        add_delivery(&mut spans, row, is_open);
    }
    for row in of("run") {
        let (parts, sent) = (&row["parts"], &row["sent"]);
        let detail = format!("{parts} parts, {sent} sent");
        add(&mut spans, "Agent's stream", time(row, "started_at"), None, detail, "warn");
    }
    for row in of("ignored") {
        let why = why_ignored(text(row, "reason"));
        add(&mut spans, "Ignored", time(row, "at"), time(row, "at"), why, "warn");
    }
    for row in of("dead_letter") {
        let detail = format!("{}: {}", text(row, "reason"), text(row, "last_error"));
        add(&mut spans, "Dead letter", time(row, "at"), time(row, "at"), detail, "bad");
    }
    for row in of("outbox") {
        let detail = format!("{}, waits: {}", text(row, "method"), text(row, "last_error"));
        add(&mut spans, "Call to Slack", time(row, "created_at"), None, detail, "warn");
    }
    for row in of("outbox_log") {
        let detail = format!("{}, {} attempts", text(row, "method"), row["attempts"]);
        add(&mut spans, "Call to Slack", time(row, "created_at"), time(row, "at"), detail, "good");
    }
    for row in of("outbox_failure") {
        let detail = format!("{}, rejected: {}", text(row, "method"), text(row, "error"));
        add(&mut spans, "Call to Slack", time(row, "created_at"), time(row, "at"), detail, "bad");
    }
    spans.sort_by_key(|span| span.from);
    spans
}

/// Adds the steps of an open or ended delivery.
fn add_delivery(spans: &mut Vec<Span>, row: &Value, is_open: bool) {
    let (received, stored) = (time(row, "received_at"), time(row, "stored_at"));
    let (inserted, begun) = (time(row, "inserted_at"), time(row, "first_attempt_at"));
    let ended = if is_open { None } else { time(row, "at") };
    let place = format!(
        "partition {}, generation {}, sequence {}",
        row["partition"], row["generation"], row["sequence"]
    );
    // Clocks of machines differ: `steps` moves an end before the start to the start.
    add(spans, "Slack's request to ack", received, stored, place, "");
    let agent = format!("delivery to {}/{}", text(row, "org_id"), text(row, "agent_id"));
    add(spans, "Decision", stored, inserted, agent, "");
    let state = if is_open { text(row, "state") } else { "" };
    add(spans, "Waiting", inserted, begun.or(ended), state.to_owned(), "warn");
    let (attempts, error) = (row["attempts"].as_i64().unwrap_or_default(), row_error(row));
    let outcome = if is_open { "in progress" } else { text(row, "outcome") };
    let tone = match outcome {
        "completed" => "good",
        "in progress" => "warn",
        _ => "bad",
    };
    let error = if error.is_empty() { String::new() } else { format!(", {error}") };
    let detail = format!("{attempts} attempts, {}{error}", outcome.replace('_', " "));
    add(spans, "Attempts", begun, ended, detail, tone);
}

fn row_error(row: &Value) -> &str {
    match text(row, "error") {
        "" => text(row, "last_error"),
        error => error,
    }
}

fn add(
    spans: &mut Vec<Span>,
    name: &'static str,
    from: Option<OffsetDateTime>,
    to: Option<OffsetDateTime>,
    detail: String,
    tone: &'static str,
) {
    spans.extend(from.map(|from| Span { name, from, to, detail, tone }));
}

fn rows<'r>(record: &'r WebhookRecord, section: &str) -> &'r [Value] {
    record.rows.get(section).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'r>(row: &'r Value, name: &str) -> &'r str {
    row[name].as_str().unwrap_or_default()
}

fn time(row: &Value, name: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(row[name].as_str()?, &Rfc3339).ok()
}

/// Formats a duration.
fn duration_text(duration: Duration) -> String {
    let ms = duration.whole_milliseconds().max(0);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// Returns a sentence about the reason for which a webhook was ignored.
pub fn why_ignored(reason: &str) -> String {
    let why = match reason {
        "duplicate" => "it was processed before",
        "same_trigger" => "another webhook about the same message was processed",
        "connection_stopped" => "the connection is stopped",
        "connection_revoked" => "the app was removed from the workspace",
        "connection_deleted" => "the connection was deleted",
        "no_agent" => "no agent is linked to the conversation",
        "from_bot" => "a bot wrote the message",
        "not_a_message" => "the event is not a message to an agent",
        "surface_disabled" => "the app is disabled in this type of conversation",
        "too_late" => "it arrived too late for a reply",
        "nothing_to_change" => "there was nothing to change",
        "too_many_questions" => "the person sent too many questions in a minute",
        "too_many_dead_letters" => "the connection has too many dead letters",
        "too_many_messages" => "the connection has too many messages, so its reply was dropped",
        other => return format!("Ignored: {}.", other.replace('_', " ")),
    };
    format!("Ignored: {why}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(rows: Value) -> WebhookRecord {
        let rows = rows.as_object().expect("sections").clone();
        WebhookRecord { dedup_key: "key".into(), rows }
    }

    fn at(second: u32) -> String {
        format!("2026-01-31T12:00:{second:02}.5+00:00")
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::parse(&at(50), &Rfc3339).expect("a time")
    }

    #[test]
    fn shows_steps_in_order() {
        let record = record(json!({
            "delivery_log": [{
                "received_at": at(0), "stored_at": at(1), "inserted_at": at(2),
                "first_attempt_at": at(4), "at": at(9), "outcome": "completed", "error": "",
                "attempts": 2, "org_id": "acme", "agent_id": "helper",
            }],
            "outbox_log": [{
                "created_at": at(9), "at": at(10), "method": "chat.postMessage", "attempts": 1,
            }],
        }));
        let steps = steps(&record, now());
        let names: Vec<_> = steps.iter().map(|step| (step.name, step.duration.as_str())).collect();
        let expected = [
            ("Slack's request to ack", "1.0 s"),
            ("Decision", "1.0 s"),
            ("Waiting", "2.0 s"),
            ("Attempts", "5.0 s"),
            ("Call to Slack", "1.0 s"),
        ];
        assert_eq!(names, expected);
        assert_eq!((steps[3].x, steps[3].width, steps[3].tone), (400, 500, "good"));
        assert_eq!(steps[3].detail, "2 attempts, completed");
    }

    #[test]
    fn open_steps_last_until_now() {
        let record = record(json!({
            "delivery": [{
                "received_at": at(0), "stored_at": at(0), "inserted_at": at(0),
                "first_attempt_at": at(10), "state": "waits", "attempts": 3, "last_error": "timeout",
            }],
        }));
        let last = steps(&record, now()).pop().expect("a step");
        assert_eq!((last.duration.as_str(), last.tone), ("40.0 s so far", "warn"));
        assert_eq!(last.detail, "3 attempts, in progress, timeout");
    }

    /// Clock skew causes no negative bars, and no bar leaves the chart.
    #[test]
    fn bars_stay_in_chart() {
        let record = record(json!({
            "delivery_log": [{
                "received_at": at(9), "stored_at": at(3), "inserted_at": at(9),
                "first_attempt_at": at(2), "at": at(9), "outcome": "dead_letter",
            }],
        }));
        for step in steps(&record, now()) {
            assert!(
                step.x >= 0 && step.width >= BAR_MIN && step.x + step.width <= WIDTH,
                "{step:?}"
            );
        }
        assert!(steps(&self::record(json!({})), now()).is_empty());
    }

    #[test]
    fn explains_ignored_webhook() {
        assert_eq!(why_ignored("no_agent"), "Ignored: no agent is linked to the conversation.");
        assert_eq!(why_ignored("new_reason"), "Ignored: new reason.");
    }
}
