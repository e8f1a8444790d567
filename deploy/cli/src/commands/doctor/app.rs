//! A Slack app's manifest, as Slack exports it, compared with what this deployment needs.
//!
//! In: JSON. Out: findings. A slash command with a wrong address is the one that nobody notices until a user does: Slack sends it
//! somewhere else, says "app did not respond", and never sends it again.

use super::Finding;
use crate::app_manifest::{EVENTS, scopes};
use serde_json::Value;
use std::collections::BTreeSet;

const OF: &str = "app";

/// Compares.
pub(super) fn examine(text: &str, name: &str, url: &str) -> Vec<Finding> {
    let Ok(manifest) = serde_json::from_str::<Value>(text) else {
        return vec![Finding::problem(
            OF,
            "the manifest is not JSON",
            "export it as JSON: api.slack.com/apps, App Manifest, JSON",
        )];
    };
    let mut found = Vec::new();
    let at = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default();

    let commands = manifest.pointer("/features/slash_commands").and_then(Value::as_array);
    let command = commands.into_iter().flatten().find(|c| c["command"] == name);
    match command {
        None => found.push(Finding::problem(
            OF,
            format!("there is no slash command {name}"),
            format!("Slash Commands: create {name} with the Request URL {url}"),
        )),
        Some(command) => compare(
            &mut found,
            &format!("the slash command {name}"),
            command["url"].as_str().unwrap_or_default(),
            url,
            "users read \"app did not respond\", and nothing reaches us",
            &format!("Slash Commands, {name}: set the Request URL to {url}"),
        ),
    }
    compare(
        &mut found,
        "events",
        at("/settings/event_subscriptions/request_url"),
        url,
        "no message reaches us",
        &format!("Event Subscriptions: set the Request URL to {url}"),
    );
    compare(
        &mut found,
        "clicks and views",
        at("/settings/interactivity/request_url"),
        url,
        "no click reaches us",
        &format!("Interactivity & Shortcuts: switch it on, and set the Request URL to {url}"),
    );
    let menus = at("/settings/interactivity/message_menu_options_url");
    if !menus.is_empty() {
        let remedy = format!("Interactivity & Shortcuts: set the Options Load URL to {url}");
        compare(&mut found, "menus", menus, url, "menus stay empty", &remedy);
    }
    if manifest.pointer("/settings/socket_mode_enabled") == Some(&Value::Bool(true)) {
        found.push(Finding::problem(
            OF,
            "socket mode is on: Slack sends no webhooks at all",
            "Socket Mode: switch it off",
        ));
    }
    subscriptions(&manifest, &mut found);
    if found.is_empty() {
        found.push(Finding::good(OF, "the manifest has every address, event and scope"));
    }
    found
}

fn compare(
    found: &mut Vec<Finding>,
    what: &str,
    there: &str,
    wanted: &str,
    so: &str,
    remedy: &str,
) {
    if there.trim_end_matches('/') != wanted {
        let there = if there.is_empty() { "nowhere" } else { there };
        found.push(Finding::problem(
            OF,
            format!("{what}: sent to {there}, not to {wanted}: {so}"),
            remedy,
        ));
    }
}

fn subscriptions(manifest: &Value, found: &mut Vec<Finding>) {
    let listed = |pointer: &str| -> BTreeSet<&str> {
        let list = manifest.pointer(pointer).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let granted = listed("/oauth_config/scopes/bot");
    for scope in scopes() {
        if !granted.contains(scope) {
            found.push(Finding::problem(
                OF,
                format!("the scope {scope} is missing"),
                format!(
                    "OAuth & Permissions: add the bot scope {scope}, and install the app again"
                ),
            ));
        }
    }
    let bot = listed("/settings/event_subscriptions/bot_events");
    let user = listed("/settings/event_subscriptions/user_events");
    for (event, _) in EVENTS {
        if !bot.contains(event) {
            found.push(Finding::problem(
                OF,
                format!("the event {event} is not subscribed to"),
                format!("Event Subscriptions: add the bot event {event}"),
            ));
        }
    }
    for event in bot.intersection(&user) {
        found.push(Finding::warning(
            OF,
            format!("the event {event} is subscribed to twice, for the bot and for users: Slack sends each twice"),
            format!("Event Subscriptions: remove {event} from the events on behalf of users"),
        ));
    }
    if bot.contains("app_mention") && bot.contains("message.channels") {
        found.push(Finding::warning(
            OF,
            "app_mention and message.channels are both subscribed to: Slack tells every mention twice",
            "Event Subscriptions: remove app_mention; the agent is asked once either way",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::app_manifest;
    const URL: &str = "https://gw.example.com/slack/events";

    fn found(change: impl FnOnce(&mut Value)) -> Vec<(Level, String)> {
        let mut manifest = app_manifest::build("/lobu", URL, "Lobu");
        change(&mut manifest);
        let found = examine(&manifest.to_string(), "/lobu", URL);
        assert!(found.iter().all(|f| f.level == Level::Good || !f.remedy.is_empty()), "{found:?}");
        found.into_iter().map(|f| (f.level, f.what)).collect()
    }

    #[test]
    fn our_own_manifest_is_good() {
        let found = found(|_| {});
        assert_eq!((found.len(), found[0].0), (1, Level::Good), "{found:?}");
    }

    #[test]
    fn each_thing_that_is_wrong_is_found_alone() {
        type Change = fn(&mut Value);
        let cases: [(Change, Level, &str); 9] = [
            // The incident that the original's users lived through.
            (
                |m| {
                    m["features"]["slash_commands"][0]["url"] =
                        "https://old.example.com/slack/events".into()
                },
                Level::Problem,
                "the slash command /lobu: sent to https://old.example.com/slack/events, not to https://gw.example.com/slack/events: users read",
            ),
            (
                |m| m["features"]["slash_commands"][0]["command"] = "/other".into(),
                Level::Problem,
                "there is no slash command /lobu",
            ),
            (
                |m| m["settings"]["event_subscriptions"]["request_url"] = Value::Null,
                Level::Problem,
                "events: sent to nowhere",
            ),
            (
                |m| m["settings"]["interactivity"]["request_url"] = "https://x.example/".into(),
                Level::Problem,
                "clicks and views: sent to https://x.example/",
            ),
            (
                |m| {
                    m["oauth_config"]["scopes"]["bot"]
                        .as_array_mut()
                        .expect("scopes")
                        .retain(|s| s != "im:history");
                },
                Level::Problem,
                "the scope im:history is missing",
            ),
            (
                |m| {
                    m["settings"]["event_subscriptions"]["bot_events"]
                        .as_array_mut()
                        .expect("events")
                        .retain(|e| e != "tokens_revoked");
                },
                Level::Problem,
                "the event tokens_revoked is not",
            ),
            (
                |m| {
                    m["settings"]["event_subscriptions"]["user_events"] =
                        serde_json::json!(["message.im"])
                },
                Level::Warning,
                "the event message.im is subscribed to twice",
            ),
            (
                |m| {
                    m["settings"]["event_subscriptions"]["bot_events"]
                        .as_array_mut()
                        .expect("events")
                        .push("app_mention".into())
                },
                Level::Warning,
                "app_mention and message.channels are both",
            ),
            (
                |m| m["settings"]["socket_mode_enabled"] = true.into(),
                Level::Problem,
                "socket mode is on",
            ),
        ];
        for (change, level, says) in cases {
            let found = found(change);
            assert_eq!(found.len(), 1, "{says}: {found:?}");
            assert!(found[0].0 == level && found[0].1.starts_with(says), "{says}: {found:?}");
        }
        assert_eq!(
            examine("display_information:\n", "/lobu", URL)[0].what,
            "the manifest is not JSON"
        );
    }
}
