//! Manifest of a Slack app: every URL, event and scope that its features need. Scopes of other
//! features are optional: the person who installs the app may decline them.
//!
//! `tidegate manifest` prints it, `tidegate init` creates an app from it, and `tidegate doctor`
//! compares the manifest of an app with it.

use anyhow::Context;
use reqwest::Url;
use serde_json::{Value, json};
use shared::domain::ConnectionId;

/// Feature of an app. The manifest declares the events and scopes of the enabled features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Feature {
    /// Direct messages with the app.
    DirectMessages,
    /// Public channels.
    Channels,
    /// Private channels.
    PrivateChannels,
    /// Direct messages among several people.
    GroupMessages,
    /// Slash command of Tidegate.
    Command,
    /// Welcome messages to people who join the workspace.
    Greetings,
    /// Slack's agent view with its stop button.
    Agent,
}

/// Features that are enabled by default.
pub const DEFAULT_FEATURES: [Feature; 6] = [
    Feature::DirectMessages,
    Feature::Channels,
    Feature::PrivateChannels,
    Feature::GroupMessages,
    Feature::Command,
    Feature::Greetings,
];

/// Event or scope that a feature needs.
#[derive(Debug, Clone, Copy)]
struct Need {
    /// Feature that needs the event or scope. `None`: every app needs it.
    feature: Option<Feature>,
    /// Bot event to subscribe to.
    event: Option<&'static str>,
    /// Bot scope to request.
    scope: Option<&'static str>,
    reason: &'static str,
}

const fn need(
    feature: Option<Feature>,
    event: Option<&'static str>,
    scope: Option<&'static str>,
    reason: &'static str,
) -> Need {
    Need { feature, event, scope, reason }
}

/// All needs. `app_mention` is absent because Slack also sends every mention as `message`.
#[rustfmt::skip]
const NEEDS: [Need; 12] = [
    need(None, None, Some("chat:write"), "posts, streams and edits replies and notices"),
    need(None, Some("app_uninstalled"), None, "ends a connection whose app was removed"),
    need(None, Some("tokens_revoked"), None, "ends a connection whose token was revoked"),
    need(Some(Feature::DirectMessages), Some("message.im"), Some("im:history"), "receives direct messages"),
    need(Some(Feature::Channels), Some("message.channels"), Some("channels:history"), "receives messages in public channels"),
    need(Some(Feature::Channels), Some("channel_id_changed"), Some("channels:read"), "keeps the agent of a channel whose id changes"),
    need(Some(Feature::PrivateChannels), Some("message.groups"), Some("groups:history"), "receives messages in private channels"),
    need(Some(Feature::GroupMessages), Some("message.mpim"), Some("mpim:history"), "receives group direct messages"),
    need(Some(Feature::Command), None, Some("commands"), "receives the slash command"),
    need(Some(Feature::Greetings), Some("team_join"), Some("users:read"), "reports people who join the workspace"),
    need(Some(Feature::Greetings), None, Some("im:write"), "opens direct messages with people who join"),
    need(Some(Feature::Agent), Some("agent_session_stopped"), Some("assistant:write"), "stops a reply with Slack's stop button"),
];

impl Feature {
    /// Returns the name of the feature on the command line.
    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self)
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

impl Need {
    fn is_on(&self, features: &[Feature]) -> bool {
        self.feature.is_none_or(|feature| features.contains(&feature))
    }
}

/// Returns the events that the features need, sorted.
pub fn events(features: &[Feature]) -> Vec<&'static str> {
    let on = NEEDS.iter().filter(|need| need.is_on(features));
    sorted(on.filter_map(|need| need.event))
}

/// Returns the scopes that the features need, sorted.
pub fn scopes(features: &[Feature]) -> Vec<&'static str> {
    let on = NEEDS.iter().filter(|need| need.is_on(features));
    sorted(on.filter_map(|need| need.scope))
}

/// Returns the scopes that only other features need, sorted.
fn optional_scopes(features: &[Feature]) -> Vec<&'static str> {
    let required = scopes(features);
    let off = NEEDS.iter().filter(|need| !need.is_on(features));
    sorted(off.filter_map(|need| need.scope).filter(|scope| !required.contains(scope)))
}

fn sorted(names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns one line per event and scope, with its feature and reason.
pub fn explain(features: &[Feature]) -> String {
    let mut lines = Vec::new();
    for need in &NEEDS {
        let feature = need.feature.map_or("every app".to_owned(), Feature::name);
        let scope_state = if need.is_on(features) { "scope" } else { "optional scope" };
        if let Some(scope) = need.scope {
            lines.push(format!("{scope_state:14}  {scope:21}  {feature:15}  {}", need.reason));
        }
        if let Some(event) = need.event.filter(|_| need.is_on(features)) {
            lines.push(format!("{:14}  {event:21}  {feature:15}  {}", "event", need.reason));
        }
    }
    lines.join("\n")
}

/// Settings of the app that depend on the deployment.
#[derive(Debug, Clone, clap::Args)]
pub struct AppSettings {
    /// Public URL of this deployment, for example https://gateway.example.com.
    #[arg(long, env = "TIDEGATE_BASE_URL", value_name = "URL", value_parser = base_url)]
    base_url: Option<String>,
    /// Connection of the app. Default: none, for the shared app.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Slash command, including the slash.
    #[arg(long, env = "TIDEGATE_SLASH_COMMAND", value_name = "COMMAND", default_value = "/lobu")]
    pub slash_command: String,
    /// Features of the app: direct-messages, channels, private-channels, group-messages, command,
    /// greetings, agent. Default: all but agent.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "FEATURE",
        default_values_t = DEFAULT_FEATURES,
        hide_possible_values = true,
        hide_default_value = true
    )]
    pub features: Vec<Feature>,
}

impl AppSettings {
    /// Returns the URL that receives all webhooks of the app.
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

/// Parses the public URL of a deployment. Removes slashes at its end.
pub fn base_url(text: &str) -> Result<String, String> {
    let is_base = |url: &Url| {
        let is_reachable = match url.scheme() {
            "https" => true,
            scheme => scheme == "http" && url.host_str() == Some("localhost"),
        };
        let has_user = !url.username().is_empty() || url.password().is_some();
        is_reachable && !has_user && url.query().is_none() && url.fragment().is_none()
    };
    // The parser skips extra slashes: it reads https:///events as the host events.
    let url = Url::parse(text).ok().filter(|url| is_base(url) && !text.contains(":///"));
    let url = url.ok_or("expected https://host, because Slack requires HTTPS")?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Transport by which Slack sends webhooks.
#[derive(Debug, Clone, Copy)]
pub enum Delivery<'a> {
    /// HTTP requests to this URL.
    Http(&'a str),
    /// Socket Mode, which has no URLs.
    SocketMode,
}

/// Returns the manifest of an app.
pub fn build(command: &str, delivery: Delivery<'_>, name: &str, features: &[Feature]) -> Value {
    let url = match delivery {
        Delivery::Http(url) => Some(url),
        Delivery::SocketMode => None,
    };
    let (events, optional) = (events(features), optional_scopes(features));
    // Slack's field `bot` lists all scopes, including the optional ones.
    let all = sorted(scopes(features).into_iter().chain(optional.iter().copied()));
    let mut manifest = json!({
        "display_information": { "name": name },
        "features": {
            "app_home": {
                "home_tab_enabled": false,
                "messages_tab_enabled": true,
                "messages_tab_read_only_enabled": false,
            },
            "bot_user": { "display_name": name, "always_online": true },
        },
        "oauth_config": { "scopes": { "bot": all, "bot_optional": optional } },
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
    if features.contains(&Feature::Command) {
        manifest["features"]["slash_commands"] = json!([{
            "command": command,
            "url": url,
            "description": "Link this conversation to an agent",
            "usage_hint": "help | link <code> | status",
            "should_escape": false,
        }]);
    }
    if features.contains(&Feature::Agent) {
        manifest["features"]["agent_view"] =
            json!({ "agent_description": format!("{name} answers here.") });
    }
    if url.is_none() {
        remove_nulls(&mut manifest);
    }
    manifest
}

/// Removes fields that are null, recursively.
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

/// Returns the Slack URL that creates an app from a manifest.
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
    fn omits_urls_in_socket_mode() {
        let manifest = build("/lobu", Delivery::SocketMode, "Lobu", &DEFAULT_FEATURES);
        assert_eq!(manifest["settings"]["socket_mode_enabled"], true);
        assert!(!manifest.to_string().contains("url"), "{manifest}");
        let events = &manifest["settings"]["event_subscriptions"]["bot_events"];
        assert_eq!(events.as_array().map(Vec::len), Some(super::events(&DEFAULT_FEATURES).len()));
        let by_http =
            build("/lobu", Delivery::Http("https://a.example/x"), "Lobu", &DEFAULT_FEATURES);
        assert_eq!(by_http["settings"]["socket_mode_enabled"], false);
        assert_eq!(by_http.to_string().matches("https://a.example/x").count(), 4);
    }

    #[test]
    fn checks_base_url() {
        for (text, base) in [
            ("https://gw.example.com", "https://gw.example.com"),
            ("https://gw.example.com:8443/a//", "https://gw.example.com:8443/a"),
            ("http://localhost", "http://localhost"),
            ("http://localhost:8080/", "http://localhost:8080"),
        ] {
            assert_eq!(base_url(text).as_deref(), Ok(base), "{text}");
        }
        for text in [
            "http://localhost.evil.com",
            "http://localhost@evil.com",
            "http://gw.example.com",
            "https://user@gw.example.com",
            "https://",
            "https:///",
            "https:///gw.example.com",
            "https://gw.example.com/?a",
            "https://gw.example.com/#a",
            "https://gw example.com",
            "ftp://localhost",
            "gw.example.com",
            "",
        ] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn links_to_manifest() {
        let manifest = build("/lobu", Delivery::SocketMode, "A & B", &DEFAULT_FEATURES);
        let link = creation_link(&manifest);
        let (_, query) = link.split_once('?').expect("a query");
        let fields: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
        assert_eq!(fields[0], ("new_app".into(), "1".into()));
        assert_eq!(fields[1], ("manifest_json".into(), manifest.to_string().into()));
    }

    #[test]
    fn declares_needs_of_features() {
        let manifest =
            build("/lobu", Delivery::Http("https://gw"), "Lobu", &[Feature::DirectMessages]);
        assert_eq!(
            manifest["settings"]["event_subscriptions"]["bot_events"],
            json!(["app_uninstalled", "message.im", "tokens_revoked"])
        );
        let scopes = &manifest["oauth_config"]["scopes"];
        let optional = scopes["bot_optional"].as_array().expect("a list");
        let required: Vec<&Value> = scopes["bot"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|scope| !optional.contains(scope))
            .collect();
        assert_eq!(required, ["chat:write", "im:history"]);
        assert!(manifest["features"].get("slash_commands").is_none());
        assert!(optional.contains(&"commands".into()) && optional.contains(&"users:read".into()));
        let all = [&DEFAULT_FEATURES[..], &[Feature::Agent]].concat();
        let manifest = build("/lobu", Delivery::Http("https://gw"), "Lobu", &all);
        assert_eq!(manifest["oauth_config"]["scopes"]["bot_optional"], json!([]));
        assert!(manifest["features"]["agent_view"].is_object());
    }

    #[test]
    fn explains_events_and_scopes() {
        let explained = explain(&[Feature::DirectMessages]);
        for line in [
            "scope           im:history             direct-messages  receives direct messages",
            "event           message.im             direct-messages  receives direct messages",
            "optional scope  commands               command          receives the slash command",
            "event           app_uninstalled        every app        ends a connection whose app",
        ] {
            assert!(explained.lines().any(|found| found.starts_with(line)), "{line}\n{explained}");
        }
        assert!(!explained.contains("message.channels"), "{explained}");
        let manifest =
            build("/lobu", Delivery::Http("https://gw"), "Lobu", &[Feature::DirectMessages]);
        let scopes = manifest["oauth_config"]["scopes"]["bot"].as_array().expect("a list").iter();
        for name in scopes.filter_map(Value::as_str) {
            assert!(explained.contains(name), "{name}");
        }
    }
}
