//! Table of the webhooks that Slack documents, with the expected treatment of each.
//!
//! The rows are the lines of `deploy/cli/shapes`; the README beside them describes the columns.
//! The unit tests of `worker` compile this file, too, so it uses no other module.

use serde::Deserialize;
use serde_json::{Value, json};

const ROWS: [&str; 7] = [
    include_str!("../../deploy/cli/shapes/messages.jsonl"),
    include_str!("../../deploy/cli/shapes/mentions.jsonl"),
    include_str!("../../deploy/cli/shapes/channels.jsonl"),
    include_str!("../../deploy/cli/shapes/users.jsonl"),
    include_str!("../../deploy/cli/shapes/items.jsonl"),
    include_str!("../../deploy/cli/shapes/apps.jsonl"),
    include_str!("../../deploy/cli/shapes/interactions.jsonl"),
];

/// Row of the table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Name, unique in the table.
    pub name: String,
    /// Page, file or issue that shows the shape.
    pub source: String,
    /// Installation that the webhook is for: workspace, organization, or both.
    pub install: Option<String>,
    /// Channel, which decides the partition.
    pub channel: Option<String>,
    /// Conversation, which decides the lane.
    pub lane: String,
    /// Kind of the dedup key.
    pub key: String,
    /// True if Slack reads the body of the response.
    #[serde(default)]
    pub sync: bool,
    /// Expected receiver if agents have mode `forward`.
    pub app: String,
    /// Expected receiver if agents have mode `reply`.
    pub agent: String,
    /// Kind of the Bolt listener that receives the webhook.
    pub bolt: Option<String>,
    /// Reason why no Bolt app receives the webhook.
    pub unreceived: Option<String>,
    /// Reason why Bolt for Python does not receive it.
    pub not_python: Option<String>,
    /// Reason why Bolt for JavaScript does not receive it.
    pub not_javascript: Option<String>,
    event: Option<Value>,
    outer: Option<Value>,
    body: Option<Value>,
    form: Option<Value>,
    payload: Option<Value>,
}

impl Shape {
    /// Returns the content: an object is a JSON body, `_form` has form fields, `_payload` is the
    /// form field `payload`. Its `token`, which no receiver checks, is the name of the row.
    pub fn content(&self) -> Value {
        let named = |value: &Value| {
            let mut value = value.clone();
            value["token"] = self.name.as_str().into();
            value
        };
        match (&self.event, &self.form, &self.payload, &self.body) {
            (Some(event), None, None, None) => named(&self.with_outer(event)),
            (None, Some(form), None, None) => json!({ "_form": named(form) }),
            (None, None, Some(payload), None) => json!({ "_payload": named(payload) }),
            (None, None, None, Some(body)) => named(body),
            _ => panic!("{} needs one of event, form, payload and body", self.name),
        }
    }

    /// Returns the event in the outer object of the Events API.
    fn with_outer(&self, event: &Value) -> Value {
        let id: String = self.name.chars().filter(char::is_ascii_alphanumeric).collect();
        let mut content = json!({
            "team_id": "T0001TEAM", "api_app_id": "A0001APP", "event": event,
            "type": "event_callback", "event_id": format!("Ev0{}", id.to_uppercase()),
            "event_time": 1_234_567_890, "is_ext_shared_channel": false, "event_context": "4-own",
            "authorizations": [{
                "enterprise_id": null, "team_id": "T0001TEAM", "user_id": "U0BOT", "is_bot": true,
                "is_enterprise_install": false,
            }],
        });
        let fields = content.as_object_mut().expect("an object");
        for (name, value) in self.outer.as_ref().and_then(Value::as_object).into_iter().flatten() {
            match value {
                Value::Null => drop(fields.remove(name)),
                value => drop(fields.insert(name.clone(), value.clone())),
            }
        }
        content
    }

    /// Returns true if ingest stores the webhook. It answers the two handshakes itself.
    pub fn is_stored(&self) -> bool {
        self.app != "none"
    }

    /// Returns the `api_app_id`. Old interactions and shortcuts have none.
    pub fn api_app_id(&self) -> Option<String> {
        let content = self.content();
        let object = content.get("_form").or_else(|| content.get("_payload")).unwrap_or(&content);
        object["api_app_id"].as_str().map(str::to_owned)
    }
}

/// Returns the rows.
pub fn all() -> Vec<Shape> {
    let lines = ROWS.iter().flat_map(|rows| rows.lines());
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}
