//! Whether Slack, and whoever looks at its screen, would be satisfied with an answer.
//!
//! In: what was sent, and the answer. Out: nothing, or in a few words what is wrong with it.

use super::{Answer, delivery::PATIENCE};
use serde_json::Value;

/// What Slack expects an answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expects {
    /// An event: any 2xx.
    Taken,
    /// A slash command: 200, and nothing in it or a message.
    Message,
    /// A click or a shortcut: 200.
    Ack,
    /// A view's submission: 200, and nothing in it or what becomes of the view.
    View,
    /// A menu's options.
    Options,
    /// The challenge, back.
    Challenge,
    /// A forgery: Slack never sends one, and it must be refused.
    Refusal,
}

/// What Slack expects an answer to this body to be.
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
            "block_suggestion" => Expects::Options,
            _ => Expects::Ack,
        };
    }
    match kind(content).as_str() {
        "url_verification" => Expects::Challenge,
        _ => Expects::Taken,
    }
}

/// What is wrong with an answer, if anything.
pub fn wrong(expects: Expects, challenge: &str, answer: &Answer) -> Option<String> {
    if answer.took >= PATIENCE {
        return Some(format!("later than {} s", PATIENCE.as_secs()));
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
