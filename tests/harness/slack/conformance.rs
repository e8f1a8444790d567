//! Checks of answers: whether Slack and a user would accept them.

use super::{Answer, delivery::ANSWER_TIMEOUT};
use serde_json::Value;

/// Kind of answer that Slack expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expects {
    /// For an event: any 2xx.
    Taken,
    /// For a slash command: 200, empty or with a message.
    Message,
    /// For a click or a shortcut: 200.
    Ack,
    /// For the submission of a view: 200, empty or with an action.
    View,
    /// For a menu: options.
    Options,
    /// For a handshake: the challenge.
    Challenge,
    /// For a forgery, which Slack never sends: a rejection.
    Refusal,
}

/// Returns the kind of answer that Slack expects to a body.
pub fn expects(content: &Value) -> Expects {
    let kind = |value: &Value| value["type"].as_str().unwrap_or_default().to_owned();
    if content.get("_form").is_some() {
        return match content["_form"]["ssl_check"] == "1" {
            true => Expects::Ack,
            false => Expects::Message,
        };
    }
    if let Some(payload) = content.get("_payload") {
        return match kind(payload).as_str() {
            "view_submission" => Expects::View,
            "block_suggestion" | "dialog_suggestion" => Expects::Options,
            "interactive_message" if payload.get("actions").is_none() => Expects::Options,
            _ => Expects::Ack,
        };
    }
    match kind(content).as_str() {
        "url_verification" => Expects::Challenge,
        _ => Expects::Taken,
    }
}

/// Returns the problem of an answer, if there is one.
pub fn wrong(expects: Expects, challenge: &str, answer: &Answer) -> Option<String> {
    if answer.took >= ANSWER_TIMEOUT {
        return Some(format!("later than {} s", ANSWER_TIMEOUT.as_secs()));
    }
    let (status, body) = (answer.status, answer.body.as_str());
    if expects == Expects::Refusal {
        return (status != 401).then(|| "a forgery was not refused".into());
    }
    let good = match expects {
        Expects::Taken => (200..300).contains(&status),
        _ => status == 200,
    };
    if !good {
        return Some(format!("status {status}"));
    }
    let json: Option<Value> = serde_json::from_str(body).ok();
    match expects {
        Expects::Message => {
            let object = json.filter(Value::is_object);
            let silent = object.is_some_and(|m| m["text"].is_null() && m["blocks"].is_null());
            silent.then(|| "JSON that is no message".into())
        }
        Expects::View if !body.is_empty() => {
            let action = json.as_ref().and_then(|answer| answer["response_action"].as_str());
            let known = ["errors", "update", "push", "clear"];
            action
                .is_none_or(|action| !known.contains(&action))
                .then(|| "no response_action that Slack knows".into())
        }
        Expects::Options => {
            let list = json.as_ref().and_then(|answer| {
                answer["options"].as_array().or_else(|| answer["option_groups"].as_array())
            });
            list.is_none_or(|list| list.len() > 100).then(|| "no options".into())
        }
        Expects::Challenge => (!body.contains(challenge)).then(|| "without the challenge".into()),
        _ => None,
    }
}
