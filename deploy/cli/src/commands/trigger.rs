//! `tidegate trigger`: sends a signed webhook as documented by Slack to a deployment.
//!
//! The webhooks are the rows in `deploy/cli/shapes`. Arguments replace the ids of a row. Timestamps
//! and event ids are new, so that the webhook is not a duplicate.

use crate::{output, settings};
use anyhow::{Context, bail, ensure};
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::{domain::ConnectionId, secrets::Secret, signature};
use std::time::Duration;

const ROWS: [&str; 7] = [
    include_str!("../../shapes/messages.jsonl"),
    include_str!("../../shapes/mentions.jsonl"),
    include_str!("../../shapes/channels.jsonl"),
    include_str!("../../shapes/users.jsonl"),
    include_str!("../../shapes/items.jsonl"),
    include_str!("../../shapes/apps.jsonl"),
    include_str!("../../shapes/interactions.jsonl"),
];
/// Maximum time for a response. Slack waits 3 s.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Arguments of `tidegate trigger`.
#[derive(Debug, clap::Args)]
pub struct Trigger {
    /// Name of the webhook, as --list prints it.
    #[arg(required_unless_present = "list")]
    kind: Option<String>,
    /// List the names of the webhooks, and the sources of their shapes.
    #[arg(long)]
    list: bool,
    /// URL of the connection, for example
    /// http://localhost:8080/api/v1/webhooks/<connection>.
    #[arg(long, required_unless_present = "list")]
    url: Option<Url>,
    /// Signing secret of the connection, as file:<path>, env:<name>, or - for standard input.
    #[arg(long, value_parser = settings::secret, required_unless_present = "list")]
    secret: Option<Secret>,
    /// App id of the connection.
    #[arg(long, default_value = "A0001APP")]
    app: String,
    /// Workspace id of the connection.
    #[arg(long, default_value = "T0001TEAM")]
    team: String,
    /// Channel id.
    #[arg(long, default_value = "C0001CHAN")]
    channel: String,
    /// User id.
    #[arg(long, default_value = "U0001USER")]
    user: String,
    /// Text of the message or command. Default: the text of the row.
    #[arg(long)]
    text: Option<String>,
}

/// Row of `deploy/cli/shapes`, without the columns for tests.
#[derive(Deserialize)]
struct Row {
    name: String,
    source: String,
    event: Option<Value>,
    outer: Option<Map<String, Value>>,
    body: Option<Value>,
    form: Option<Map<String, Value>>,
    payload: Option<Value>,
}

fn rows() -> anyhow::Result<Vec<Row>> {
    let lines = ROWS.iter().flat_map(|rows| rows.lines());
    lines
        .map(|line| serde_json::from_str(line).context("malformed row in deploy/cli/shapes"))
        .collect()
}

impl Trigger {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let rows = rows()?;
        let (Some(kind), Some(url), Some(secret)) = (&self.kind, &self.url, &self.secret) else {
            for row in rows {
                output::print_line(&format!("{:<40} {}", row.name, row.source))?;
            }
            return Ok(());
        };
        let Some(row) = rows.into_iter().find(|row| row.name == *kind) else {
            bail!("no webhook is named {kind}; list the names with tidegate trigger --list");
        };
        let now = signature::unix_now();
        let unique = ConnectionId::random()?.to_string();
        let (content_type, body) = self.body(row, now, &unique);
        let _ = rustls::crypto::ring::default_provider().install_default(); // once in a process
        let http = Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        let sent = http
            .post(url.clone())
            .header("content-type", content_type)
            .header("x-slack-request-timestamp", now)
            .header("x-slack-signature", signature::slack(secret, now, body.as_bytes()))
            .body(body)
            .send()
            .await;
        let failed = || format!("failed to send the webhook to {url}; check that ingest runs");
        let response = sent.map_err(reqwest::Error::without_url).with_context(failed)?;
        let status = response.status();
        let answer = response.text().await.map_err(reqwest::Error::without_url)?;
        output::print_line(&format!("{kind}: answered {status}"))?;
        if !answer.is_empty() {
            output::print_line(&output::sanitize(&answer))?;
        }
        let hint = match status.as_u16() {
            401 => ": pass the signing secret of this connection with --secret",
            404 => ": check the connection in --url, and that it is enabled",
            _ => "",
        };
        ensure!(status.is_success(), "the webhook was not accepted{hint}");
        Ok(())
    }

    /// Returns the content type and body of the webhook.
    fn body(&self, row: Row, now: u64, unique: &str) -> (&'static str, String) {
        let form = "application/x-www-form-urlencoded";
        let fields = |fields: Map<String, Value>| {
            let text =
                |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let pairs = fields.into_iter().map(|(name, value)| (name, text(value)));
            form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
        };
        match row {
            Row { form: Some(values), .. } => {
                let mut values = Value::Object(values);
                self.personalize(&mut values, now, unique);
                (form, fields(values.as_object().cloned().unwrap_or_default()))
            }
            Row { payload: Some(mut payload), .. } => {
                self.personalize(&mut payload, now, unique);
                let payload = Map::from_iter([("payload".into(), payload.to_string().into())]);
                (form, fields(payload))
            }
            Row { event: Some(event), outer, .. } => {
                let mut content = json!({
                    "team_id": "T0001TEAM", "api_app_id": "A0001APP", "event": event,
                    "type": "event_callback", "event_id": "", "event_time": 0,
                    "authorizations": [{
                        "enterprise_id": null, "team_id": "T0001TEAM", "user_id": "U0BOT",
                        "is_bot": true, "is_enterprise_install": false,
                    }],
                });
                for (name, value) in outer.unwrap_or_default() {
                    content[name] = value;
                }
                content["event_id"] = format!("Ev0{}", unique.to_uppercase()).into();
                content["event_time"] = now.into();
                self.personalize(&mut content, now, unique);
                ("application/json", content.to_string())
            }
            Row { body, .. } => {
                let mut body = body.unwrap_or_default();
                self.personalize(&mut body, now, unique);
                ("application/json", body.to_string())
            }
        }
    }

    /// Replaces ids by arguments, and timestamps and trigger ids by new ones, recursively.
    fn personalize(&self, value: &mut Value, now: u64, unique: &str) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields.iter_mut() {
                    match (name.as_str(), value.is_string()) {
                        ("ts" | "event_ts", true) => {
                            let micros = u32::from_str_radix(&unique[..5], 16).unwrap_or_default();
                            *value = format!("{now}.{:06}", micros % 1_000_000).into();
                        }
                        ("trigger_id", true) => *value = format!("{now}.{unique}").into(),
                        ("text", true) if self.text.is_some() => {
                            *value = self.text.clone().into();
                        }
                        _ => self.personalize(value, now, unique),
                    }
                }
            }
            Value::Array(items) => {
                items.iter_mut().for_each(|item| self.personalize(item, now, unique));
            }
            Value::String(text) => {
                for (from, to) in [
                    ("A0001APP", &self.app),
                    ("T0001TEAM", &self.team),
                    ("C0001CHAN", &self.channel),
                    ("U0001USER", &self.user),
                ] {
                    *text = text.replace(from, to);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_body_of_every_row() {
        let trigger = Trigger {
            kind: None,
            list: true,
            url: None,
            secret: None,
            app: "A9".into(),
            team: "T9".into(),
            channel: "C9".into(),
            user: "U9".into(),
            text: None,
        };
        let rows = rows().expect("the table");
        assert!(rows.len() > 200, "{}", rows.len());
        for row in rows {
            let name = row.name.clone();
            let (_, body) = trigger.body(row, 1_700_000_000, &"ab".repeat(16));
            assert!(body.len() > 2, "{name}: {body}");
            assert!(!body.contains("T0001TEAM") && !body.contains("A0001APP"), "{name}: {body}");
        }
    }
}
