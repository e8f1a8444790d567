//! Webhooks in the formats of docs.slack.dev, with unique ids.

use super::{Slack, conversations::Message};
use crate::test_env::App;
use serde_json::json;
use shared::{
    domain::{HeaderToken, MediaType, WebhookKind},
    stream::{Conversation, DedupKey, Envelope, Lane, Partition},
};
use std::time::{SystemTime, UNIX_EPOCH};

/// A webhook. It can be signed and sent any number of times.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Description.
    pub what: String,
    /// Media type.
    pub content_type: &'static str,
    /// Bytes of the body.
    pub body: Vec<u8>,
    /// Dedup key that Tidegate must assign.
    pub dedup_key: DedupKey,
    /// `response_url`; empty if the webhook has none.
    pub response_url: String,
}

impl Webhook {
    /// Returns a slash command.
    pub fn command(
        slack: &Slack,
        app: &App,
        channel: &str,
        user: &str,
        command: &str,
        text: &str,
    ) -> Self {
        let trigger_id = slack.trigger_id();
        let response_url = slack.response_url();
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", "legacy-token")
            .append_pair("team_id", &app.team)
            .append_pair("team_domain", "example")
            .append_pair("channel_id", channel)
            .append_pair("channel_name", "general")
            .append_pair("user_id", user)
            .append_pair("user_name", "steve")
            .append_pair("command", command)
            .append_pair("text", text)
            .append_pair("api_app_id", &app.app)
            .append_pair("is_enterprise_install", "false")
            .append_pair("response_url", &response_url)
            .append_pair("trigger_id", &trigger_id)
            .finish();
        Self {
            what: format!("{command} {text}"),
            content_type: "application/x-www-form-urlencoded",
            body: body.into_bytes(),
            dedup_key: DedupKey::new(app.connection, "trigger", &[trigger_id.as_bytes()]),
            response_url,
        }
    }

    /// Returns an Events API webhook with an inner event.
    pub fn event(slack: &Slack, app: &App, what: &str, inner: serde_json::Value) -> Self {
        let event_id = format!("Ev{:08}", slack.unique());
        let body = json!({
            "token": "legacy-token",
            "team_id": app.team,
            "api_app_id": app.app,
            "event": inner,
            "type": "event_callback",
            "event_id": event_id,
            "event_time": super::unix_now(),
            "authorizations": [{
                "enterprise_id": null,
                "team_id": app.team,
                "user_id": app.bot_user,
                "is_bot": true,
                "is_enterprise_install": false,
            }],
            "is_ext_shared_channel": false,
        });
        Self {
            what: what.to_owned(),
            content_type: "application/json",
            body: body.to_string().into_bytes(),
            dedup_key: DedupKey::event(app.connection, &event_id),
            response_url: String::new(),
        }
    }

    /// Returns a `message` event of a person, and adds the message to the simulated Slack.
    pub fn message(slack: &Slack, app: &App, channel: &str, user: &str, text: &str) -> Self {
        let ts = slack.ts();
        Self::message_event(slack, app, "message", channel, user, text, &ts)
    }

    /// Returns a `message` or `app_mention` event, and adds the message to the simulated Slack.
    pub fn message_event(
        slack: &Slack,
        app: &App,
        kind: &str,
        channel: &str,
        user: &str,
        text: &str,
        ts: &str,
    ) -> Self {
        slack.write(&app.team, channel, user, text, ts);
        Self::unrecorded_message_event(slack, app, kind, channel, user, text, ts)
    }

    /// Returns a `message` or `app_mention` event without adding the message to the simulated
    /// Slack, for tests whose messages do not fit into memory.
    pub fn unrecorded_message_event(
        slack: &Slack,
        app: &App,
        kind: &str,
        channel: &str,
        user: &str,
        text: &str,
        ts: &str,
    ) -> Self {
        let channel_type = if channel.starts_with('D') { "im" } else { "channel" };
        let inner = json!({
            "type": kind, "channel": channel, "user": user, "text": text, "ts": ts, "event_ts": ts,
            "channel_type": channel_type, "team": app.team,
        });
        Self::event(slack, app, text, inner)
    }

    /// Returns the webhook of a person's click on an element of a message.
    pub fn click(
        slack: &Slack,
        app: &App,
        channel: &str,
        user: &str,
        message: &Message,
        action: serde_json::Value,
    ) -> Self {
        let (trigger_id, response_url) = (slack.trigger_id(), slack.response_url());
        let action_ts = slack.ts();
        let mut action = action;
        action["action_ts"] = action_ts.as_str().into();
        let mut clicked = json!({
            "type": "message", "ts": message.ts, "user": message.user, "bot_id": message.bot_id,
            "text": message.text, "blocks": message.blocks, "metadata": message.metadata,
        });
        if let Some(thread) = &message.thread_ts {
            clicked["thread_ts"] = thread.as_str().into();
        }
        let payload = json!({
            "type": "block_actions", "team": { "id": app.team, "domain": "example" },
            "user": { "id": user, "username": "steve", "team_id": app.team },
            "api_app_id": app.app, "token": "legacy-token", "enterprise": null,
            "is_enterprise_install": false, "channel": { "id": channel, "name": "general" },
            "container": {
                "type": "message", "message_ts": message.ts, "channel_id": channel,
                "is_ephemeral": false,
            },
            "message": clicked, "trigger_id": trigger_id, "response_url": response_url,
            "state": { "values": {} }, "actions": [action],
        });
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("payload", &payload.to_string())
            .finish();
        let parts = [trigger_id.as_bytes(), action_ts.as_bytes()];
        Self {
            what: format!("a click of {user}"),
            content_type: "application/x-www-form-urlencoded",
            body: body.into_bytes(),
            dedup_key: DedupKey::new(app.connection, "action", &parts),
            response_url,
        }
    }

    /// Returns the envelope that ingest would store.
    pub fn envelope(
        self,
        app: &App,
        channel: &str,
        conversation: Conversation<'_>,
        kind: WebhookKind,
    ) -> Envelope {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let word = |text: String| HeaderToken::new(text).expect("a valid header value");
        Envelope {
            connection: app.connection,
            partition: Partition::of(app.connection, Some(channel)),
            kind,
            lane: Lane::of(app.connection, conversation),
            dedup_key: self.dedup_key,
            received_at_ms: now.as_millis() as u64,
            media: MediaType::from_content_type(self.content_type).expect("JSON or a form"),
            signature: word(format!("v0={:064x}", 0)),
            timestamp: word(now.as_secs().to_string()),
            retry: None,
            traceparent: None,
            reply: None,
            body: self.body.into(),
        }
    }

    /// Returns the view of the payload, if it has one.
    pub fn view(&self) -> Option<serde_json::Value> {
        let (_, payload) =
            form_urlencoded::parse(&self.body).find(|(name, _)| name == "payload")?;
        let mut payload: serde_json::Value = serde_json::from_str(&payload).ok()?;
        Some(payload["view"].take()).filter(|view| !view.is_null())
    }

    /// Returns the handshake of a new request URL.
    pub fn url_verification(app: &App, challenge: &str) -> Self {
        let body =
            json!({ "token": "legacy-token", "challenge": challenge, "type": "url_verification" });
        Self {
            what: "url_verification".into(),
            content_type: "application/json",
            body: body.to_string().into_bytes(),
            dedup_key: DedupKey::new(app.connection, "never-stored", &[]),
            response_url: String::new(),
        }
    }
}
