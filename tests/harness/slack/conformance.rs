//! Checks that Slack and a user would accept an answer.

use super::{Answer, delivery::ANSWER_TIMEOUT};
use serde_json::Value;

/// Answer that Slack expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expects {
    /// Any 2xx, for an event.
    Accepted,
    /// 200, empty or with a message, for a slash command.
    Message,
    /// 200, for a click or a shortcut.
    Ack,
    /// 200, empty or with a response action, for a view submission.
    View,
    /// 200 with options, for a menu.
    Options,
    /// 200 with the challenge, for a handshake.
    Challenge,
    /// 401, for a forgery, which Slack never sends.
    Refusal,
}

/// Returns the answer that Slack expects to a content.
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
        _ => Expects::Accepted,
    }
}

/// Returns the reason why an answer is wrong, or `None` if it is right.
pub fn wrong(expects: Expects, challenge: &str, answer: &Answer) -> Option<String> {
    if answer.took >= ANSWER_TIMEOUT {
        return Some(format!("later than {} s", ANSWER_TIMEOUT.as_secs()));
    }
    let (status, body) = (answer.status, answer.body.as_str());
    if expects == Expects::Refusal {
        return (status != 401).then(|| "a forgery was not refused".into());
    }
    let good = match expects {
        Expects::Accepted => (200..300).contains(&status),
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
