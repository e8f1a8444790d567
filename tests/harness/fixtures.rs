//! Webhooks in the shapes that Slack documents, ready to be signed and sent.
//!
//! They name the app `A0001APP` and the team `T0001TEAM`. A test that routes them creates a
//! connection with these ids ([`crate::provision::of_fixtures`]).

use crate::{
    shapes::{self, Shape},
    slack::webhook::Webhook,
};
use serde_json::Value;
use shared::stream::DedupKey;

/// A webhook of the table.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// The row.
    pub shape: Shape,
    /// The content, for tests that change it.
    pub content: Value,
    /// The webhook. Its dedup key is empty, because it depends on the connection.
    pub webhook: Webhook,
}

/// Returns all webhooks, in the order of the table.
pub fn all() -> Vec<Fixture> {
    let fixture = |shape: Shape| {
        let content = shape.content();
        Fixture { webhook: webhook(&shape.name, &content), content, shape }
    };
    shapes::all().into_iter().map(fixture).collect()
}

/// Returns the webhook with a name.
pub fn named(name: &str) -> Fixture {
    let found = all().into_iter().find(|fixture| fixture.shape.name == name);
    found.unwrap_or_else(|| panic!("no webhook is named {name} in deploy/cli/shapes"))
}

/// Returns the webhook of a content, encoded as Slack encodes it.
pub fn webhook(name: &str, content: &Value) -> Webhook {
    let form = |fields: &mut dyn Iterator<Item = (&str, String)>| {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (content_type, body) = if let Some(fields) = content["_form"].as_object() {
        let mut fields = fields.iter().map(|(name, value)| (name.as_str(), text(value)));
        ("application/x-www-form-urlencoded", form(&mut fields))
    } else if let Some(payload) = content.get("_payload") {
        let mut fields = [("payload", payload.to_string())].into_iter();
        ("application/x-www-form-urlencoded", form(&mut fields))
    } else {
        ("application/json", content.to_string())
    };
    Webhook {
        what: name.to_owned(),
        content_type,
        body: body.into_bytes(),
        dedup_key: DedupKey::from_stored(String::new()),
        response_url: String::new(),
    }
}
