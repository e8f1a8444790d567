//! Limits on messages of agents and apps: no broadcasts, no unfurled links.
//!
//! A broadcast notifies a channel or user group, and any person can make an agent write one. A
//! connection's setting `broadcasts` allows them to agents of its own organization.

use crate::dispatch::content::{plain_markdown, without_broadcasts};
use serde_json::{Value, json};
use shared::domain::APPROVAL_ACTION_PREFIX;
use shared::store::{Agent, Connection};

/// Applies the limits of a connection to a message of an agent or app.
pub(super) fn restrict(message: &mut Value, agent: &Agent, connection: &Connection) {
    if !AnswerPolicy::new(agent, connection).broadcasts {
        neutralize(message);
    }
    if let Some(blocks) = message.get_mut("blocks") {
        release_reserved_ids(blocks);
    }
    for name in ["unfurl_links", "unfurl_media"] {
        if message.get(name).is_none_or(Value::is_null) {
            message[name] = false.into();
        }
    }
}

/// Limits on a streamed answer.
#[derive(Debug, Clone, Copy)]
pub struct AnswerPolicy {
    /// True if the answer may notify a channel or a user group.
    pub broadcasts: bool,
}

impl AnswerPolicy {
    /// Returns the limits on an agent's answers in a connection.
    pub fn new(agent: &Agent, connection: &Connection) -> Self {
        Self { broadcasts: connection.settings.broadcasts && agent.org == connection.org }
    }

    /// Applies the limits to Block Kit blocks.
    pub fn restrict_blocks(&self, blocks: &mut [Value]) {
        if !self.broadcasts {
            blocks.iter_mut().for_each(neutralize);
        }
        blocks.iter_mut().for_each(release_reserved_ids);
    }
}

/// Renames action ids that are reserved for the buttons of approvals, so that a click on an agent's
/// own button never decides one.
fn release_reserved_ids(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(release_reserved_ids),
        Value::Object(fields) => {
            if let Some(Value::String(id)) = fields.get_mut("action_id")
                && id.starts_with(APPROVAL_ACTION_PREFIX)
            {
                id.insert(0, '_');
            }
            fields.values_mut().for_each(release_reserved_ids);
        }
        _ => {}
    }
}

/// Replaces broadcasts by plain text in all texts and rich text elements of a value.
fn neutralize(value: &mut Value) {
    match value {
        Value::String(text) if text.contains("<!") => *text = without_broadcasts(text),
        Value::Array(items) => items.iter_mut().for_each(neutralize),
        Value::Object(fields) => {
            if fields.get("type").is_some_and(|kind| kind == "markdown") {
                if let Some(Value::String(text)) = fields.get_mut("text") {
                    *text = plain_markdown(text);
                }
                return;
            }
            let name = match fields.get("type").and_then(Value::as_str) {
                Some("broadcast") => fields.get("range"),
                Some("usergroup") => fields.get("usergroup_id"),
                _ => None,
            };
            match name.map(|name| name.as_str().unwrap_or("channel").to_owned()) {
                Some(name) => *value = json!({ "type": "text", "text": format!("@{name}") }),
                None => fields.values_mut().for_each(neutralize),
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neutralizes_broadcasts() {
        let mut message = json!({
            "text": "x",
            "blocks": [
                { "type": "section", "fields": [{ "type": "mrkdwn", "text": "<!here>" }] },
                { "type": "markdown", "text": "<!DOCTYPE html> <!group>" },
                { "type": "rich_text", "elements": [{ "type": "rich_text_section", "elements": [
                    { "type": "broadcast", "range": "everyone" },
                    { "type": "usergroup", "usergroup_id": "S1" },
                    { "type": "user", "user_id": "U1" },
                ] }] },
            ],
            "attachments": [{ "pretext": "<!channel>" }],
        });
        neutralize(&mut message);
        let markdown = message["blocks"][1]["text"].take();
        assert_eq!(markdown, "<!DOCTYPE html> @group");
        let text = message.to_string();
        for broadcast in ["<!", "broadcast", "usergroup"] {
            assert!(!text.contains(broadcast), "{text}");
        }
        for kept in ["@here", "@everyone", "@S1", "@channel", "U1"] {
            assert!(text.contains(kept), "{text}");
        }
    }
}
