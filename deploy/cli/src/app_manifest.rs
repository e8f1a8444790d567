//! Manifest of a Slack app: every URL, event and scope that Tidegate uses, and no others.
//!
//! `tidegate manifest` prints it, and `tidegate doctor` compares the manifest of an app with it.

use anyhow::Context;
use serde_json::{Value, json};
use shared::domain::ConnectionId;

/// Events that an app subscribes to, and the scope of each. `app_mention` is not among them: Slack
/// also sends every mention as `message`.
pub const EVENTS: [(&str, Option<&str>); 8] = [
    ("app_uninstalled", None),
    ("channel_id_changed", Some("channels:read")),
    ("message.channels", Some("channels:history")),
    ("message.groups", Some("groups:history")),
    ("message.im", Some("im:history")),
    ("message.mpim", Some("mpim:history")),
    ("team_join", Some("users:read")),
    ("tokens_revoked", None),
];

/// Features and methods that Tidegate uses, and the scope of each.
const CALLS: [(&str, &str); 3] = [
    ("slash commands", "commands"),
    ("chat.postMessage, chat.postEphemeral, chat.update", "chat:write"),
    ("conversations.open", "im:write"),
];

/// Returns the scopes in order, without duplicates.
pub fn scopes() -> Vec<&'static str> {
    let mut scopes: Vec<&str> = CALLS.iter().map(|(_, scope)| *scope).collect();
    scopes.extend(EVENTS.iter().filter_map(|(_, scope)| *scope));
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

/// Settings of the app that depend on the deployment.
#[derive(Debug, Clone, clap::Args)]
pub struct AppSettings {
    /// URL at which Slack reaches this deployment, as https://gateway.example.com.
    #[arg(long, env = "TIDEGATE_BASE_URL", value_name = "URL", value_parser = base_url)]
    base_url: Option<String>,
    /// Connection of the app. Default: the shared app.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Slash command, with its slash.
    #[arg(long, env = "TIDEGATE_SLASH_COMMAND", value_name = "COMMAND", default_value = "/lobu")]
    pub slash_command: String,
}

impl AppSettings {
    /// Returns the URL for all webhooks of the app.
    pub fn url(&self) -> anyhow::Result<String> {
        let base = self.base_url.as_ref();
        let base =
            base.context("TIDEGATE_BASE_URL is not set; pass the public URL of this deployment")?;
        Ok(match self.connection {
            Some(id) => format!("{base}/api/v1/webhooks/{id}"),
            None => format!("{base}/slack/events"),
        })
    }
}

/// Parses the public URL of a deployment.
pub fn base_url(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://localhost"));
    let good = host.is_some_and(|host| {
        !host.contains([' ', '?', '#']) && (!host.is_empty() || text != "https://")
    });
    if good {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("expected https://host, because Slack requires HTTPS".into())
    }
}

/// Way on which Slack sends webhooks.
#[derive(Debug, Clone, Copy)]
pub enum Delivery<'a> {
    /// To this URL.
    Http(&'a str),
    /// By Socket Mode, which has no URLs.
    SocketMode,
}

/// Returns the manifest.
pub fn build(command: &str, delivery: Delivery<'_>, name: &str) -> Value {
    let url = match delivery {
        Delivery::Http(url) => Some(url),
        Delivery::SocketMode => None,
    };
    let events: Vec<&str> = EVENTS.iter().map(|(event, _)| *event).collect();
    let mut manifest = json!({
        "display_information": { "name": name },
        "features": {
            "app_home": {
                "home_tab_enabled": false,
                "messages_tab_enabled": true,
                "messages_tab_read_only_enabled": false,
            },
            "bot_user": { "display_name": name, "always_online": true },
            "slash_commands": [{
                "command": command,
                "url": url,
                "description": "Link this conversation to an agent",
                "usage_hint": "help | link <code> | status",
                "should_escape": false,
            }],
        },
        "oauth_config": { "scopes": { "bot": scopes() } },
        "settings": {
            "event_subscriptions": { "request_url": url, "bot_events": events },
            "interactivity": {
                "is_enabled": true,
                "request_url": url,
                "message_menu_options_url": url,
            },
            "org_deploy_enabled": false,
            "socket_mode_enabled": url.is_none(),
            "token_rotation_enabled": false,
        },
    });
    if url.is_none() {
        remove_nulls(&mut manifest);
    }
    manifest
}

/// Removes the fields of URLs that there are not.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

/// Returns the address at which Slack creates an app of a manifest.
pub fn creation_link(manifest: &Value) -> String {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("new_app", "1")
        .append_pair("manifest_json", &manifest.to_string())
        .finish();
    format!("https://api.slack.com/apps?{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_mode_has_no_addresses() {
        let manifest = build("/lobu", Delivery::SocketMode, "Lobu");
        assert_eq!(manifest["settings"]["socket_mode_enabled"], true);
        assert!(!manifest.to_string().contains("url"), "{manifest}");
        let events = &manifest["settings"]["event_subscriptions"]["bot_events"];
        assert_eq!(events.as_array().map(Vec::len), Some(EVENTS.len()));
        let by_http = build("/lobu", Delivery::Http("https://a.example/x"), "Lobu");
        assert_eq!(by_http["settings"]["socket_mode_enabled"], false);
        assert_eq!(by_http.to_string().matches("https://a.example/x").count(), 4);
    }

    #[test]
    fn link_holds_manifest() {
        let manifest = build("/lobu", Delivery::SocketMode, "A & B");
        let link = creation_link(&manifest);
        let (_, query) = link.split_once('?').expect("a query");
        let fields: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
        assert_eq!(fields[0], ("new_app".into(), "1".into()));
        assert_eq!(fields[1], ("manifest_json".into(), manifest.to_string().into()));
    }
}
