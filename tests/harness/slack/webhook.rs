//! Webhooks in the shapes that docs.slack.dev prints, with ids of their own.

use super::Slack;
use crate::world::App;
use serde_json::json;
use shared::{
    codec::{
        envelope::{DedupeKey, Envelope, Word},
        slack::Media,
    },
    partition::{Conversation, Lane, Partition},
    types::Kind,
};
use std::time::{SystemTime, UNIX_EPOCH};

/// A body ready to be signed and sent, as often as one likes: the same webhook each time.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// In words, for people.
    pub what: String,
    /// Its media type.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: Vec<u8>,
    /// What Tidegate is expected to tell copies by.
    pub dedupe: DedupeKey,
    /// Where its answer may be said.
    pub response_url: String,
}

impl Webhook {
    /// A slash command.
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
            dedupe: DedupeKey::new(app.connection, "trigger", &[trigger_id.as_bytes()]),
            response_url,
        }
    }

    /// An event around this inner event.
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
            dedupe: DedupeKey::event(app.connection, &event_id),
            response_url: String::new(),
        }
    }

    /// A message that a person wrote.
    pub fn message(slack: &Slack, app: &App, channel: &str, user: &str, text: &str) -> Self {
        let ts = slack.ts();
        Self::said(slack, app, "message", channel, user, text, &ts)
    }

    /// Something said, as `message` or `app_mention`, at this `ts`.
    pub fn said(
        slack: &Slack,
        app: &App,
        kind: &str,
        channel: &str,
        user: &str,
        text: &str,
        ts: &str,
    ) -> Self {
        slack.write(&app.team, channel, user, text, ts);
        Self::said_unkept(slack, app, kind, channel, user, text, ts)
    }

    /// The same, and the fake Slack does not keep it: for more than fits into its memory.
    pub fn said_unkept(
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

    /// The webhook as ingest would store it.
    pub fn envelope(
        self,
        app: &App,
        channel: &str,
        conversation: Conversation<'_>,
        kind: Kind,
    ) -> Envelope {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let word = |text: String| Word::new(text).expect("a plain word");
        Envelope {
            connection: app.connection,
            partition: Partition::of(app.connection, Some(channel)),
            kind,
            lane: Lane::of(app.connection, conversation),
            dedupe: self.dedupe,
            received_at_ms: now.as_millis() as u64,
            media: Media::from_content_type(self.content_type).expect("one of the two"),
            signature: word(format!("v0={:064x}", 0)),
            timestamp: word(now.as_secs().to_string()),
            retry: None,
            traceparent: None,
            reply: None,
            body: self.body.into(),
        }
    }

    /// The view that it names, if it is about one.
    pub fn view(&self) -> Option<serde_json::Value> {
        let (_, payload) =
            form_urlencoded::parse(&self.body).find(|(name, _)| name == "payload")?;
        let mut payload: serde_json::Value = serde_json::from_str(&payload).ok()?;
        Some(payload["view"].take()).filter(|view| !view.is_null())
    }

    /// The handshake when an address is entered at Slack.
    pub fn url_verification(app: &App, challenge: &str) -> Self {
        let body =
            json!({ "token": "legacy-token", "challenge": challenge, "type": "url_verification" });
        Self {
            what: "url_verification".into(),
            content_type: "application/json",
            body: body.to_string().into_bytes(),
            dedupe: DedupeKey::new(app.connection, "never-stored", &[]),
            response_url: String::new(),
        }
    }
}
