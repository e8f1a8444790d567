//! Late response to a view submission: replaces the sync response by a call of `views.update`.
//!
//! By then ingest has replaced the view by one that asks the person to wait. It is updated to a
//! view "Done" if the response closes the view, to the new view if the response pushes or updates
//! one, and to the submitted view with its input and the errors if the response has errors.

use serde_json::{Value, json};
use shared::{
    domain::{Destination, OutgoingMessage},
    slack::BodyParts,
    slack::repair,
    stream::Envelope,
};

/// Returns the update of the view, `None` if the submission has no view id.
pub(super) fn build(submission: &Value, answer: &Value) -> Option<OutgoingMessage> {
    let submitted = &submission["view"];
    let view_id = submitted["id"].as_str()?.to_owned();
    let view = match answer["response_action"].as_str() {
        Some("update" | "push") if answer["view"].is_object() => answer["view"].clone(),
        Some("errors") => with_errors(submitted, &answer["errors"]),
        _ => done(),
    };
    Some(OutgoingMessage { to: Destination::UpdateView { view_id }, message: view })
}

/// Returns the update which shows that a submission was not delivered. `None` without a view id.
pub(super) fn build_failure(submission: &Value, text: &str) -> Option<OutgoingMessage> {
    let view_id = submission["view"]["id"].as_str()?.to_owned();
    Some(OutgoingMessage {
        to: Destination::UpdateView { view_id },
        message: modal("Failed", text),
    })
}

/// Returns the payload of a view submission, null if it is no JSON.
pub(super) fn parse_submission(envelope: &Envelope) -> Value {
    match BodyParts::split(envelope.media, &envelope.body) {
        BodyParts::Payload(json) => {
            serde_json::from_str(&repair(json.as_bytes())).unwrap_or_default()
        }
        _ => Value::Null,
    }
}

fn done() -> Value {
    modal("Done", "Your request is done.")
}

fn modal(title: &str, text: &str) -> Value {
    json!({
        "type": "modal",
        "title": { "type": "plain_text", "text": title },
        "blocks": [{ "type": "section", "text": { "type": "plain_text", "text": text } }],
    })
}

/// Fields of a submitted view that `views.update` accepts.
#[rustfmt::skip]
const ACCEPTED_FIELDS: [&str; 10] = [
    "type", "title", "submit", "close", "callback_id", "private_metadata", "external_id",
    "clear_on_close", "notify_on_close", "submit_disabled",
];
/// Slack's limit of blocks in a view.
const BLOCKS_MAX: usize = 100;

fn with_errors(submitted: &Value, errors: &Value) -> Value {
    let mut view = json!({});
    for name in ACCEPTED_FIELDS {
        // Slack submits empty fields, too, but rejects an empty `external_id`.
        match &submitted[name] {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            value => view[name] = value.clone(),
        }
    }
    let mut blocks = Vec::new();
    for block in submitted["blocks"].as_array().into_iter().flatten() {
        let mut block = block.clone();
        let id = block["block_id"].as_str().unwrap_or_default().to_owned();
        if let Some(element) = block.get_mut("element") {
            fill_in(element, &submitted["state"]["values"][&id]);
        }
        blocks.push(block);
        if let Some(error) = errors[&id].as_str() {
            let text = format!(":warning: {error}");
            blocks.push(json!({
                "type": "context",
                "elements": [{ "type": "plain_text", "text": text, "emoji": true }],
            }));
        }
    }
    blocks.truncate(BLOCKS_MAX);
    view["blocks"] = blocks.into();
    view
}

/// Sets the initial value of an input to the submitted value, which has another name.
fn fill_in(element: &mut Value, values: &Value) {
    let Some(action) = element["action_id"].as_str() else { return };
    let state = &values[action];
    for (reported, accepted) in [
        ("value", "initial_value"),
        ("rich_text_value", "initial_value"),
        ("selected_option", "initial_option"),
        ("selected_options", "initial_options"),
        ("selected_user", "initial_user"),
        ("selected_users", "initial_users"),
        ("selected_channel", "initial_channel"),
        ("selected_channels", "initial_channels"),
        ("selected_conversation", "initial_conversation"),
        ("selected_conversations", "initial_conversations"),
        ("selected_date", "initial_date"),
        ("selected_time", "initial_time"),
        ("selected_date_time", "initial_date_time"),
    ] {
        let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        match &state[reported] {
            Value::Null => {}
            value if empty(value) => {}
            value => element[accepted] = value.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission() -> Value {
        json!({ "view": {
            "id": "V1", "hash": "1.x", "type": "modal", "callback_id": "ticket",
            "external_id": "", "bot_id": "B1",
            "title": { "type": "plain_text", "text": "New ticket" },
            "blocks": [
                { "type": "input", "block_id": "title",
                  "element": { "type": "plain_text_input", "action_id": "text" } },
                { "type": "input", "block_id": "kind",
                  "element": { "type": "static_select", "action_id": "pick" } },
            ],
            "state": { "values": {
                "title": { "text": { "type": "plain_text_input", "value": "typed" } },
                "kind": { "pick": {
                    "type": "static_select", "selected_option": { "value": "bug" } } },
            } },
        } })
    }

    fn view(answer: Value) -> Value {
        build(&submission(), &answer).expect("a view").message
    }

    #[test]
    fn shows_errors_with_input() {
        let shown =
            view(json!({ "response_action": "errors", "errors": { "title": "too short" } }));
        assert_eq!(shown["callback_id"], "ticket");
        for left_out in ["id", "hash", "bot_id", "state", "external_id"] {
            assert!(shown.get(left_out).is_none(), "{left_out}: rejected by views.update");
        }
        assert_eq!(shown["blocks"][0]["element"]["initial_value"], "typed");
        assert_eq!(shown["blocks"][1]["elements"][0]["text"], ":warning: too short");
        assert_eq!(shown["blocks"][2]["element"]["initial_option"]["value"], "bug");
    }

    #[test]
    fn shows_done_for_close() {
        for answer in [Value::Null, json!({}), json!({ "response_action": "clear" })] {
            assert_eq!(view(answer)["title"]["text"], "Done");
        }
    }

    #[test]
    fn shows_other_views() {
        for action in ["update", "push"] {
            let next = json!({ "type": "modal", "blocks": [] });
            assert_eq!(view(json!({ "response_action": action, "view": next })), next);
        }
        assert!(build(&Value::Null, &Value::Null).is_none(), "no view id");
    }
}
