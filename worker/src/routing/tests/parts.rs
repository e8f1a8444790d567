//! Tests of the parts of a webhook that intake looks up and dispatch sends to agents.

use super::{setup::*, *};

#[test]
fn reads_ids_of_every_kind() {
    let words = |name: &str| {
        with_webhook(&fixture(name), |webhook| {
            let ids = ids(webhook);
            let word = |id: Option<String>| id.unwrap_or_else(|| "-".into());
            let own_time = ids.own_time.map_or("-".into(), |time| time.to_string());
            let (event, team, channel) = (word(ids.event_id), word(ids.team), word(ids.channel));
            let (thread, ts, user) = (word(ids.thread_ts), word(ids.ts), word(ids.user));
            format!("{event} {team} {channel} {thread} {ts} {user} {own_time}")
        })
    };
    for (name, expected) in [
        (
            "message_im",
            "Ev0MESSAGEIM T0001TEAM D0001DIRECT - 1755000020.000200 U0001USER 1234567890",
        ),
        (
            "app_mention",
            "Ev0APPMENTION T0001TEAM C0001CHAN - 1755000020.000200 W0001USER 1755000020",
        ),
        (
            "connect_message",
            "Ev0CONNECTMESSAGE T0001TEAM C0009SHARED - 1755000020.000200 U0009OTHER 1234567890",
        ),
        (
            "reaction_added",
            "Ev0REACTIONADDED T0001TEAM C0001CHAN - 1755000020.000200 U0001USER 1234567890",
        ),
        ("tokens_revoked", "Ev0TOKENSREVOKED T0001TEAM - - - - 1234567890"),
        ("command", "- T0001TEAM C0001CHAN - - U0001USER -"),
        ("view_submission", "- T0001TEAM - - - U0001USER -"),
        ("block_actions", "- T0001TEAM C0001CHAN - 1755000020.000200 U0001USER -"),
        ("ssl_check", "- - - - - - -"),
    ] {
        assert_eq!(words(name), expected, "{name}");
    }
    for (event, expected) in [
        (
            json!({ "type": "file_shared", "channel_id": "C1", "user_id": "U1", "file_id": "F1" }),
            "C1 - - U1",
        ),
        (
            json!({ "type": "pin_added", "user": "U1", "channel_id": "C1", "item": {
                "type": "message", "channel": "C1", "message": { "ts": "1.2", "thread_ts": "1.1" } } }),
            "C1 1.1 1.2 U1",
        ),
        (
            json!({ "type": "message", "subtype": "message_deleted", "channel": "C1", "ts": "2.2",
                "deleted_ts": "1.2", "previous_message": [{ "ts": "1.2", "thread_ts": "1.1" }] }),
            "C1 1.1 1.2 -",
        ),
    ] {
        with_webhook(&event_body(event), |webhook| {
            let ids = ids(webhook);
            let word = |id: Option<String>| id.unwrap_or_else(|| "-".into());
            let words = [ids.channel, ids.thread_ts, ids.ts, ids.user].map(word);
            assert_eq!(words.join(" "), expected);
            assert_eq!(lookup(webhook).channel.as_deref(), Some("C1"));
        });
    }
    let odd = event_body(json!({ "type": "message", "channel": "C\u{0}", "ts": "1700000001.5" }));
    with_webhook(&odd, |webhook| {
        assert_eq!((ids(webhook).channel, lookup(webhook).channel), (None, None));
    });
    let timeless = json_body(
        r#"{"type":"event_callback",
            "event":{"type":"message","channel":"C1","ts":"1700000001.5"}}"#,
    );
    with_webhook(&timeless, |webhook| assert_eq!(ids(webhook).own_time, Some(1_700_000_001)));
}

#[test]
fn gives_mention_one_trigger() {
    let trigger = |body: &Body| with_webhook(body, |webhook| lookup(webhook).trigger);
    assert!(trigger(&mention("hi")).is_some());
    assert_eq!(trigger(&mention("hi")), trigger(&channel("hi")));
    assert_ne!(trigger(&message_with(json!({ "ts": "2.2" }))), trigger(&channel("hi")));
    for name in ["reaction_added", "command", "block_actions", "team_join"] {
        assert_eq!(trigger(&fixture(name)), None, "{name}");
    }
}

#[test]
fn reads_event_times_in_any_unit() {
    for time in [1_515_449_522, 1_515_449_522_000, 1_515_449_522_000_016] {
        assert_eq!(seconds(time), 1_515_449_522);
    }
}

#[test]
fn replies_in_conversation_of_message() {
    let reply = |body: &Body, ephemeral, thread| {
        with_webhook(body, |webhook| {
            let message = agent_message(webhook, None).expect("a message");
            let out = message.reply(json!({ "text": "yes", "metadata": 7 }), ephemeral, thread);
            let to = serde_json::to_value(&out.to).expect("serializes");
            let hops = &out.message["metadata"]["event_payload"]["hops"];
            let word = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
            format!(
                "{} {} {} {hops}",
                word(&to["by"]),
                word(&to["channel"]),
                word(&to["thread_ts"])
            )
        })
    };
    let threaded = message_with(json!({ "thread_ts": "1.0" }));
    for (body, ephemeral, thread, expected) in [
        (channel("hi"), false, None, "post_message C1 1700000001.000100 1"),
        (channel("hi"), false, Some(false), "post_message C1 - 1"),
        (channel("hi"), true, None, "post_ephemeral C1 1700000001.000100 null"),
        (im("hi"), false, None, "post_message D1 - 1"),
        (im("hi"), false, Some(true), "post_message D1 1700000001.000100 1"),
        (threaded, false, None, "post_message C1 1.0 1"),
    ] {
        assert_eq!(reply(&body, ephemeral, thread), expected);
    }
}
