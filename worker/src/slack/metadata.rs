//! Metadata of messages that Tidegate posts: a mark that identifies the message, and its number of
//! hops.

use super::message_limits;
use serde_json::{Value, json};

const EVENT_TYPE: &str = "tidegate";
/// Fields of a message that an agent or an app may set. Others could change its channel or author.
const MESSAGE_FIELDS: [&str; 6] =
    ["text", "blocks", "attachments", "mrkdwn", "unfurl_links", "unfurl_media"];

/// Returns the fields of a message that may reach Slack, within Slack's limits, with `mark` in its
/// metadata.
pub fn postable(message: &Value, mark: Option<&str>) -> Value {
    let mut postable = json!({});
    for name in MESSAGE_FIELDS {
        if let Some(value) = message.get(name).filter(|value| !value.is_null()) {
            postable[name] = value.clone();
        }
    }
    message_limits::fit(&mut postable);
    if let Some(mark) = mark {
        let mut payload = json!({ "id": mark });
        let field = |name: &str| message.pointer("/metadata/event_payload")?.get(name);
        if let Some(hops) = field("hops").and_then(Value::as_u64) {
            payload["hops"] = hops.into();
        }
        if let Some(agent) = field("agent").and_then(Value::as_str) {
            payload["agent"] = agent.into();
        }
        postable["metadata"] = json!({ "event_type": EVENT_TYPE, "event_payload": payload });
    }
    postable
}

/// Returns the metadata of an answer: its number of hops, and its agent as
/// `<organization>/<agent>`, to which clicks on the answer go.
pub fn answer_metadata(hops: i32, agent: &str) -> Value {
    json!({ "event_type": EVENT_TYPE, "event_payload": { "hops": hops, "agent": agent } })
}

/// Returns whether a message in Slack has the mark.
pub fn has_mark(message: &Value, mark: &str) -> bool {
    let metadata = &message["metadata"];
    metadata["event_type"] == EVENT_TYPE && metadata["event_payload"]["id"] == *mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_other_fields_and_metadata() {
        let message = json!({
            "text": "hi", "username": "boss", "channel": "C9", "thread_ts": "1", "metadata": "boom",
        });
        let postable = postable(&message, Some("m"));
        assert_eq!(postable["text"], "hi");
        assert_eq!(postable.as_object().map(serde_json::Map::len), Some(2));
        assert!(has_mark(&postable, "m") && !has_mark(&postable, "n"));
        let hops =
            json!({ "text": "x", "metadata": { "event_payload": { "hops": 2, "id": "y" } } });
        assert_eq!(super::postable(&hops, Some("m"))["metadata"]["event_payload"]["hops"], 2);
    }
}
