//! Comparison of a Slack app's exported manifest with the URLs, events and scopes that Tidegate
//! requires.
//!
//! A wrong URL of the slash command is easy to miss: Slack sends the command elsewhere, shows the
//! user "app did not respond", and does not resend it.

use super::Finding;
use crate::app_manifest::{Feature, events, scopes};
use serde_json::Value;
use std::collections::BTreeSet;

const COMPONENT: &str = "app";

/// Compares the manifest `text` with the slash command `name`, the webhook URL `url`, and the
/// features of the app.
pub(super) fn check(text: &str, name: &str, url: &str, features: &[Feature]) -> Vec<Finding> {
    let Ok(manifest) = serde_json::from_str::<Value>(text) else {
        return vec![Finding::problem(
            COMPONENT,
            "the manifest is not JSON",
            "export the manifest as JSON at api.slack.com/apps, App Manifest",
        )];
    };
    let mut found = Vec::new();
    let at = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default();

    let commands = manifest.pointer("/features/slash_commands").and_then(Value::as_array);
    let command = commands.into_iter().flatten().find(|c| c["command"] == name);
    match command {
        None if !features.contains(&Feature::Command) => {}
        None => found.push(Finding::problem(
            COMPONENT,
            format!("slash command {name} is missing"),
            format!("create {name} under Slash Commands with the Request URL {url}"),
        )),
        Some(command) => compare(
            &mut found,
            &format!("slash command {name}"),
            command["url"].as_str().unwrap_or_default(),
            url,
            "users see \"app did not respond\"",
            &format!("set the Request URL of {name} under Slash Commands to {url}"),
        ),
    }
    compare(
        &mut found,
        "events",
        at("/settings/event_subscriptions/request_url"),
        url,
        "Tidegate receives no events",
        &format!("set the Request URL under Event Subscriptions to {url}"),
    );
    compare(
        &mut found,
        "interactions",
        at("/settings/interactivity/request_url"),
        url,
        "Tidegate receives no clicks and no views",
        &format!("enable Interactivity & Shortcuts, and set its Request URL to {url}"),
    );
    let menus = at("/settings/interactivity/message_menu_options_url");
    if !menus.is_empty() {
        let remedy = format!("set the Options Load URL under Interactivity & Shortcuts to {url}");
        compare(&mut found, "options", menus, url, "menus are empty", &remedy);
    }
    if manifest.pointer("/settings/socket_mode_enabled") == Some(&Value::Bool(true)) {
        found.push(Finding::problem(
            COMPONENT,
            "socket mode is enabled: Slack sends no webhooks",
            "disable Socket Mode",
        ));
    }
    subscriptions(&manifest, features, &mut found);
    if found.is_empty() {
        found.push(Finding::good(COMPONENT, "the manifest has every URL, event and scope"));
    }
    found
}

/// Appends a finding if an actual URL differs from the required one.
fn compare(
    found: &mut Vec<Finding>,
    kind: &str,
    actual: &str,
    required: &str,
    effect: &str,
    remedy: &str,
) {
    if actual.trim_end_matches('/') != required {
        let actual = if actual.is_empty() { "no URL" } else { actual };
        found.push(Finding::problem(
            COMPONENT,
            format!("{kind}: sent to {actual} instead of {required}: {effect}"),
            remedy,
        ));
    }
}

/// Appends findings about scopes and event subscriptions.
fn subscriptions(manifest: &Value, features: &[Feature], found: &mut Vec<Finding>) {
    let listed = |pointer: &str| -> BTreeSet<&str> {
        let list = manifest.pointer(pointer).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let granted = listed("/oauth_config/scopes/bot");
    for scope in scopes(features) {
        if !granted.contains(scope) {
            found.push(Finding::problem(
                COMPONENT,
                format!("scope {scope} is missing"),
                format!(
                    "add the bot scope {scope} under OAuth & Permissions, and install the app again"
                ),
            ));
        }
    }
    let bot = listed("/settings/event_subscriptions/bot_events");
    let user = listed("/settings/event_subscriptions/user_events");
    for event in events(features) {
        if !bot.contains(event) {
            found.push(Finding::problem(
                COMPONENT,
                format!("event {event} is not subscribed"),
                format!("add the bot event {event} under Event Subscriptions"),
            ));
        }
    }
    for event in bot.intersection(&user) {
        found.push(Finding::warning(
            COMPONENT,
            format!("event {event} is subscribed for the bot and for users: Slack sends it twice"),
            format!("remove {event} from the user events under Event Subscriptions"),
        ));
    }
    if bot.contains("app_mention") && bot.contains("message.channels") {
        found.push(Finding::warning(
            COMPONENT,
            "app_mention and message.channels are both subscribed: Slack sends mentions twice",
            "remove app_mention under Event Subscriptions; agents still receive mentions",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app_manifest::{self, DEFAULT_FEATURES, Delivery};
    use crate::commands::doctor::{Level, render};
    const URL: &str = "https://gw.example.com/slack/events";

    fn found(change: impl FnOnce(&mut Value)) -> Vec<(Level, String)> {
        let mut manifest =
            app_manifest::build("/lobu", Delivery::Http(URL), "Lobu", &DEFAULT_FEATURES);
        change(&mut manifest);
        let found = check(&manifest.to_string(), "/lobu", URL, &DEFAULT_FEATURES);
        assert!(found.iter().all(|f| f.level == Level::Good || !f.remedy.is_empty()), "{found:?}");
        found.into_iter().map(|f| (f.level, f.summary)).collect()
    }

    #[test]
    fn renders_findings() {
        let old = Delivery::Http("https://old.example.com");
        let mut manifest = app_manifest::build("/other", old, "Lobu", &DEFAULT_FEATURES);
        let settings = &mut manifest["settings"];
        settings["socket_mode_enabled"] = true.into();
        let events = &mut settings["event_subscriptions"];
        events["bot_events"] = serde_json::json!(["message.channels", "app_mention"]);
        events["user_events"] = serde_json::json!(["message.channels"]);
        manifest["oauth_config"]["scopes"]["bot"] = serde_json::json!(["commands"]);
        insta::assert_snapshot!(render(&check(&manifest.to_string(), "/lobu", URL, &DEFAULT_FEATURES)), @r"
        problem  app       slash command /lobu is missing
                           → create /lobu under Slash Commands with the Request URL https://gw.example.com/slack/events
        problem  app       events: sent to https://old.example.com instead of https://gw.example.com/slack/events: Tidegate receives no events
                           → set the Request URL under Event Subscriptions to https://gw.example.com/slack/events
        problem  app       interactions: sent to https://old.example.com instead of https://gw.example.com/slack/events: Tidegate receives no clicks and no views
                           → enable Interactivity & Shortcuts, and set its Request URL to https://gw.example.com/slack/events
        problem  app       options: sent to https://old.example.com instead of https://gw.example.com/slack/events: menus are empty
                           → set the Options Load URL under Interactivity & Shortcuts to https://gw.example.com/slack/events
        problem  app       socket mode is enabled: Slack sends no webhooks
                           → disable Socket Mode
        problem  app       scope channels:history is missing
                           → add the bot scope channels:history under OAuth & Permissions, and install the app again
        problem  app       scope channels:read is missing
                           → add the bot scope channels:read under OAuth & Permissions, and install the app again
        problem  app       scope chat:write is missing
                           → add the bot scope chat:write under OAuth & Permissions, and install the app again
        problem  app       scope groups:history is missing
                           → add the bot scope groups:history under OAuth & Permissions, and install the app again
        problem  app       scope im:history is missing
                           → add the bot scope im:history under OAuth & Permissions, and install the app again
        problem  app       scope im:write is missing
                           → add the bot scope im:write under OAuth & Permissions, and install the app again
        problem  app       scope mpim:history is missing
                           → add the bot scope mpim:history under OAuth & Permissions, and install the app again
        problem  app       scope users:read is missing
                           → add the bot scope users:read under OAuth & Permissions, and install the app again
        problem  app       event app_uninstalled is not subscribed
                           → add the bot event app_uninstalled under Event Subscriptions
        problem  app       event channel_id_changed is not subscribed
                           → add the bot event channel_id_changed under Event Subscriptions
        problem  app       event message.groups is not subscribed
                           → add the bot event message.groups under Event Subscriptions
        problem  app       event message.im is not subscribed
                           → add the bot event message.im under Event Subscriptions
        problem  app       event message.mpim is not subscribed
                           → add the bot event message.mpim under Event Subscriptions
        problem  app       event team_join is not subscribed
                           → add the bot event team_join under Event Subscriptions
        problem  app       event tokens_revoked is not subscribed
                           → add the bot event tokens_revoked under Event Subscriptions
        warning  app       event message.channels is subscribed for the bot and for users: Slack sends it twice
                           → remove message.channels from the user events under Event Subscriptions
        warning  app       app_mention and message.channels are both subscribed: Slack sends mentions twice
                           → remove app_mention under Event Subscriptions; agents still receive mentions
        ");
        insta::assert_snapshot!(render(&check("not JSON", "/lobu", URL, &DEFAULT_FEATURES)), @r"
        problem  app       the manifest is not JSON
                           → export the manifest as JSON at api.slack.com/apps, App Manifest
        ");
    }

    #[test]
    fn accepts_built_manifest() {
        let found = found(|_| {});
        assert_eq!((found.len(), found[0].0), (1, Level::Good), "{found:?}");
    }

    #[test]
    fn finds_each_problem() {
        type Change = fn(&mut Value);
        let cases: [(Change, Level, &str); 9] = [
            (
                |m| {
                    m["features"]["slash_commands"][0]["url"] =
                        "https://old.example.com/slack/events".into()
                },
                Level::Problem,
                "slash command /lobu: sent to https://old.example.com/slack/events instead of",
            ),
            (
                |m| m["features"]["slash_commands"][0]["command"] = "/other".into(),
                Level::Problem,
                "slash command /lobu is missing",
            ),
            (
                |m| m["settings"]["event_subscriptions"]["request_url"] = Value::Null,
                Level::Problem,
                "events: sent to no URL",
            ),
            (
                |m| m["settings"]["interactivity"]["request_url"] = "https://x.example/".into(),
                Level::Problem,
                "interactions: sent to https://x.example/",
            ),
            (
                |m| {
                    m["oauth_config"]["scopes"]["bot"]
                        .as_array_mut()
                        .expect("scopes")
                        .retain(|s| s != "im:history");
                },
                Level::Problem,
                "scope im:history is missing",
            ),
            (
                |m| {
                    m["settings"]["event_subscriptions"]["bot_events"]
                        .as_array_mut()
                        .expect("events")
                        .retain(|e| e != "tokens_revoked");
                },
                Level::Problem,
                "event tokens_revoked is not",
            ),
            (
                |m| {
                    m["settings"]["event_subscriptions"]["user_events"] =
                        serde_json::json!(["message.im"])
                },
                Level::Warning,
                "event message.im is subscribed for the bot and for users",
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
                "socket mode is enabled",
            ),
        ];
        for (change, level, says) in cases {
            let found = found(change);
            assert_eq!(found.len(), 1, "{says}: {found:?}");
            assert!(found[0].0 == level && found[0].1.starts_with(says), "{says}: {found:?}");
        }
        assert_eq!(
            check("display_information:\n", "/lobu", URL, &DEFAULT_FEATURES)[0].summary,
            "the manifest is not JSON"
        );
    }
}
