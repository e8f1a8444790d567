//! Partition, lane and dedup key of webhooks about a message, without servers.

use ingest::{
    classify::{self, Placement},
    signature::{SigningKey, UnverifiedRequest, verify},
};
use serde_json::{Value, json};
use shared::{
    domain::{ConnectionId, MediaType, WebhookKind},
    secrets::Secret,
    stream::{Conversation, Lane, Partition},
};
use std::time::{Duration, UNIX_EPOCH};
use tests::slack::sign;

const NOW: u64 = 1_700_000_000;

fn connection() -> ConnectionId {
    format!("{:032x}", 7).parse().expect("an id")
}

fn place_signed_at(second: u64, media: MediaType, body: &[u8]) -> Placement {
    let secret = "secret";
    let timestamp = second.to_string();
    let signature = sign(secret, &timestamp, body);
    let request = UnverifiedRequest {
        signature: Some(&signature),
        timestamp: Some(&timestamp),
        body: body.to_vec().into(),
    };
    let key = SigningKey::new(&Secret::new(secret.into()).expect("not empty"));
    let verified = verify(request, [&key], UNIX_EPOCH + Duration::from_secs(NOW)).expect("signed");
    let parts = classify::split(media, &verified);
    classify::place_webhook(connection(), &parts.read(), &verified, || 1)
}

fn event(inner: Value) -> Placement {
    let body = json!({ "type": "event_callback", "event_id": "Ev1", "event": inner });
    place_signed_at(NOW, MediaType::Json, body.to_string().as_bytes())
}

fn interaction(payload: Value) -> Placement {
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &payload.to_string())
        .finish();
    place_signed_at(NOW, MediaType::Form, body.as_bytes())
}

fn is_in(placement: &Placement, channel: Option<&str>, conversation: Conversation<'_>) {
    let expected = (Partition::of(connection(), channel), Lane::of(connection(), conversation));
    assert_eq!((placement.partition, placement.lane), expected, "{conversation:?}");
}

/// Edits, deletions, reactions, pins and links have the partition and lane of their message.
#[test]
fn keeps_events_with_their_message() {
    let message = json!({ "ts": "1.1", "text": "hello" });
    let reply = json!({ "ts": "1.5", "thread_ts": "1.1" });
    let deleted = |previous: Value| {
        json!({ "type": "message", "subtype": "message_deleted", "channel": "C1", "ts": "2.2",
            "deleted_ts": "1.1", "previous_message": previous })
    };
    let item = |item: Value| json!({ "type": "reaction_added", "user": "U1", "item": item, "event_ts": "2.2" });
    for inner in [
        json!({ "type": "message", "channel": "C1", "ts": "1.1" }),
        json!({ "type": "message", "channel": "C1", "ts": "1.5", "thread_ts": "1.1" }),
        deleted(message.clone()),
        deleted(json!([message])),
        deleted(reply.clone()),
        deleted(json!([reply])),
        deleted(Value::Null),
        json!({ "type": "message", "subtype": "message_changed", "channel": "C1", "ts": "2.2",
            "message": message, "previous_message": message }),
        json!({ "type": "message", "subtype": "message_changed", "channel": "C1", "ts": "2.2",
            "message": [reply], "previous_message": [reply] }),
        json!({ "type": "message", "subtype": "message_changed", "channel": "C1", "ts": "2.2",
            "message": { "ts": "1.5" }, "previous_message": reply }),
        item(json!({ "type": "message", "channel": "C1", "ts": "1.1" })),
        // Pins and stars.
        item(json!({ "type": "message", "channel": "C1", "message": message })),
        item(json!({ "type": "message", "channel": "C1", "message": reply })),
        json!({ "type": "pin_added", "user": "U1", "channel_id": "C1", "event_ts": "2.2",
            "item": { "type": "message", "message": message } }),
        json!({ "type": "link_shared", "channel": "C1", "user": "U1", "message_ts": "1.1" }),
        json!({ "type": "link_shared", "channel": "C1", "message_ts": "1.5", "thread_ts": "1.1" }),
        json!({ "type": "message_metadata_posted", "channel_id": "C1", "message_ts": "1.1" }),
    ] {
        is_in(&event(inner.clone()), Some("C1"), Conversation::Thread("C1", "1.1"));
        let direct = inner.to_string().replace("\"C1\"", "\"D1\"");
        let direct: Value = serde_json::from_str(&direct).expect("JSON");
        is_in(&event(direct), Some("D1"), Conversation::DirectMessage("D1"));
    }
}

/// In an agent's direct message each message without a thread begins a session.
#[test]
fn separates_sessions_of_agent() {
    let mut inner = json!({ "type": "message", "channel": "D1", "channel_type": "im", "user": "U1",
        "ts": "1.1", "app_context": { "entities": [] } });
    is_in(&event(inner.clone()), Some("D1"), Conversation::Thread("D1", "1.1"));
    inner["thread_ts"] = "1.0".into();
    is_in(&event(inner.clone()), Some("D1"), Conversation::Thread("D1", "1.0"));
    inner["app_context"] = Value::Null;
    is_in(&event(inner), Some("D1"), Conversation::DirectMessage("D1"));
}

/// Events with `channel_id` and `user_id` have the partition and lane of that channel or user.
#[test]
fn reads_channel_id_and_user_id() {
    let file = json!({ "type": "file_shared", "channel_id": "C1", "file_id": "F1", "user_id": "U1",
        "event_ts": "1.1" });
    is_in(&event(file), Some("C1"), Conversation::Channel("C1"));
    let direct = json!({ "type": "file_shared", "channel_id": "D1", "user_id": "U1" });
    is_in(&event(direct), Some("D1"), Conversation::DirectMessage("D1"));
    let nowhere = json!({ "type": "file_change", "user_id": "U1" });
    is_in(&event(nowhere), None, Conversation::WithoutChannel("U1"));
}

/// Clicks have the lane of their message. Requests for options have a lane of the person, because
/// Slack waits for them.
#[test]
fn keeps_clicks_in_lane_of_message() {
    let (channel, user) = (json!({ "id": "C1" }), json!({ "id": "U1" }));
    for payload in [
        json!({ "type": "block_actions", "channel": channel, "user": user,
            "container": { "type": "message", "channel_id": "C1", "message_ts": "1.1" } }),
        json!({ "type": "block_actions", "user": user, "container": {
            "type": "message", "channel_id": "C1", "message_ts": "1.5", "thread_ts": "1.1" } }),
        json!({ "type": "block_actions", "channel": channel, "user": user,
            "message": { "ts": "1.5", "thread_ts": "1.1" } }),
        json!({ "type": "message_action", "channel": channel, "user": user, "message_ts": "1.1" }),
        json!({ "type": "interactive_message", "channel": channel, "user": user,
            "message_ts": "1.1", "actions": [{ "name": "a" }] }),
    ] {
        is_in(&interaction(payload), Some("C1"), Conversation::Thread("C1", "1.1"));
    }
    let click = json!({ "type": "block_actions", "channel": { "id": "D1" }, "user": user,
        "container": { "message_ts": "1.1" } });
    is_in(&interaction(click), Some("D1"), Conversation::DirectMessage("D1"));
    // A menu waits for no delivery, because Slack waits for it.
    for kind in ["block_suggestion", "interactive_message"] {
        let menu = json!({ "type": kind, "name": "menu", "channel": channel, "user": user,
            "message_ts": "1.1", "container": { "message_ts": "1.1" } });
        let placement = interaction(menu);
        assert_eq!(placement.kind, WebhookKind::Options, "{kind}");
        is_in(&placement, Some("C1"), Conversation::Person("C1", "U1"));
    }
}

/// Copies of a body, signed at different times, have one dedup key. Other bodies have another.
#[test]
fn gives_copies_one_key() {
    let bodies = [
        &b"not JSON"[..],
        br#"{"type":"event_callback","event":{"type":"message","text":"no id"}}"#,
        br#"{"type":"event_callback","event_id":"Ev1","event":{"text":"cut \ud83d"}}"#,
    ];
    for body in bodies {
        let keys = [NOW, NOW - 60, NOW - 300]
            .map(|second| place_signed_at(second, MediaType::Json, body).dedup_key);
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }
    let key = |body| place_signed_at(NOW, MediaType::Json, body).dedup_key;
    assert_ne!(key(bodies[0]), key(bodies[1]));
    assert!(
        key(bodies[2]).as_str().ends_with(":event:Ev1"),
        "an unreadable field costs that field only"
    );
}
