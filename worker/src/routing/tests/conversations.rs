//! Tests of conversations without an agent, disabled surfaces, and installation events.

use super::{setup::*, *};
use serde_json::Value;
use shared::domain::MediaType;

#[test]
fn replies_without_agent() {
    let dm = format!(
        "notice: chat.postMessage {UNLINKED} Use `/lobu agents` to list agents to try.; trigger"
    );
    let plain = format!("notice: chat.postMessage {UNLINKED}; trigger");
    let by_bot = message_with(json!({ "channel": "D1", "channel_type": "im", "bot_id": "B1" }));
    let in_channel = dm.replace("chat.postMessage", "chat.postEphemeral");
    check(&[
        (im("hi"), &[no_agent], &plain),
        (mention("hi"), &[no_agent], &plain.replace("postMessage", "postEphemeral")),
        (channel("<@U0BOT|lobu> hi"), &[no_agent], &plain.replace("Message", "Ephemeral")),
        (channel("hi"), &[no_agent], "ignore no_agent"),
        (by_bot, &[no_agent, answer_bots], "ignore no_agent, addressed"),
        (im("hi"), &[no_agent, preview], &dm),
        (mention("hi"), &[no_agent, preview], &in_channel),
        (channel("well, <@U0BOT>?"), &[no_agent, preview], &in_channel),
        (channel("well, <@U0BOT|lobu>?"), &[no_agent, preview], &in_channel),
        (channel("well, <@U0BOT2>?"), &[no_agent, preview], "ignore no_agent"),
        (channel("hi"), &[no_agent, preview], "ignore no_agent"),
        (im("hi"), &[preview, bound], TO_AGENT),
    ]);
}

#[test]
fn sends_notice_of_open_circuit() {
    let notified = |method: &str, to: &str| {
        format!("delivery: {method} {}; {}", WAITING, to.strip_prefix("delivery: ").expect(to))
    };
    let unlinked_text = format!("notice: chat.postMessage {UNLINKED}; trigger");
    check(&[
        (im("hi"), &[circuit_open], &notified("chat.postEphemeral", TO_AGENT)),
        (channel("hi"), &[circuit_open, bound], &notified("chat.postEphemeral", TO_AGENT)),
        (
            slash("/deploy", "now"),
            &[circuit_open, forward],
            &notified("response_url", &TO_APP.replace("background", "interactive")),
        ),
        // An app gets all messages: a person who did not address it gets no notice.
        (channel("hi"), &[circuit_open, forward], TO_APP),
        (im("hi"), &[circuit_open, no_agent], &unlinked_text),
    ]);
}

#[test]
fn ignores_disabled_surfaces() {
    let disabled = "command: response_url This app is disabled in this type of conversation.";
    check(&[
        (mention("hi"), &[dm_only], "ignore surface_disabled, addressed"),
        (channel("hi"), &[dm_only, forward], "ignore surface_disabled"),
        (channel("/lobu status"), &[dm_only, bound], "ignore surface_disabled, addressed"),
        (im("hi"), &[dm_only], TO_AGENT),
        (channel("hi"), &[dm_only, own_handler], TO_HANDLER),
        (
            slash("/lobu", "status"),
            &[dm_only],
            &format!("{disabled} Use it in a direct message with this app."),
        ),
        (slash("/lobu", "link x"), &[nowhere], disabled),
        (
            slash("/lobu", "whatever"),
            &[nowhere],
            "command: response_url Unknown command. Use `/lobu help`.",
        ),
    ]);
}

#[test]
fn applies_installation_events() {
    let revoke =
        |why| format!("installation_event: change revoke the connection at 1234567890, {why}");
    let uninstalled = revoke("the app was uninstalled");
    let tokens = revoke("its tokens were revoked");
    let welcome = "installation_event: change welcome a person: chat.postMessage \
        Welcome, <@U0003NEW>! Mention this app in a channel, write to it here, \
        or use `/lobu help`. / ";
    let moved = "installation_event: change move a channel";
    let app = "; to acme/support s1 background";
    let changed = |to: &str| {
        let kind = "channel_id_changed";
        event_body(json!({ "type": kind, "old_channel_id": "G1", "new_channel_id": to }))
    };
    let (renamed, malformed) = (|| changed("C1"), || changed(""));
    let late = || {
        json_body(
            r#"{"type":"event_callback","team_id":"T0001TEAM","event":{"type":"app_uninstalled"}}"#,
        )
    };
    check(&[
        (fixture("app_uninstalled"), &[], &uninstalled),
        (fixture("app_uninstalled"), &[forward], &uninstalled),
        (fixture("app_uninstalled"), &[own_handler], &uninstalled),
        (late(), &[], &uninstalled.replace("1234567890", "1700000000")),
        (fixture("tokens_revoked"), &[], &tokens),
        (fixture("tokens_revoked"), &[no_bot], &tokens),
        (fixture("tokens_revoked"), &[other_bot], "ignore nothing_to_change"),
        (fixture("tokens_revoked"), &[other_bot, forward], "ignore nothing_to_change"),
        (renamed(), &[], moved),
        (renamed(), &[forward], &format!("{moved}{app}")),
        (malformed(), &[], "ignore nothing_to_change"),
        (malformed(), &[forward], TO_APP),
        (fixture("team_join"), &[], welcome),
        (fixture("team_join"), &[forward], &format!("{welcome}{app}")),
        (fixture("team_join"), &[own_handler], welcome),
        (fixture("team_join"), &[no_welcome], "ignore nothing_to_change"),
        (fixture("team_join"), &[no_welcome, forward], TO_APP),
    ]);
}

#[test]
fn ignores_other_installation() {
    let event = |kind: &str, outer: Value| {
        let mut body = json!({
            "type": "event_callback", "event_id": "Ev1", "event_time": 1_700_000_001,
            "event": { "type": kind, "tokens": { "bot": ["U0BOT"] },
                "old_channel_id": "G1", "new_channel_id": "C1", "user": { "id": "U1" } },
        });
        for (name, value) in outer.as_object().expect("an object") {
            body[name] = value.clone();
        }
        (WebhookKind::Event, MediaType::Json, body.to_string().into_bytes())
    };
    let workspace = |team: &str| json!({ "team_id": team });
    let of = |enterprise: &str, team: Option<&str>| {
        json!({ "team_id": "T9", "authorizations": [{ "enterprise_id": enterprise, "team_id": team,
            "is_enterprise_install": team.is_none() }] })
    };
    let org_wide: &[Tweak] = &[no_team, organization];
    for kind in ["app_uninstalled", "tokens_revoked", "channel_id_changed", "team_join"] {
        let rows: [(Value, &[Tweak], bool); 11] = [
            (workspace("T0001TEAM"), &[], true),
            (workspace("T2"), &[], false),
            (json!({}), &[], false),
            (of("E1", Some("T0001TEAM")), &[organization], true),
            (of("E1", None), &[organization], false),
            (of("E1", None), org_wide, true),
            (workspace("E1"), org_wide, true),
            (of("E1", Some("T0001TEAM")), org_wide, false),
            (of("E2", None), org_wide, false),
            // A preview connection receives webhooks of any workspace.
            (workspace("T2"), &[no_team, preview], false),
            (of("E1", None), &[no_team, preview], false),
        ];
        for (outer, tweaks, is_own) in rows {
            let shown = show(&decide_in(&event(kind, outer.clone()), tweaks));
            assert_eq!(shown.starts_with("installation_event"), is_own, "{kind} {outer}: {shown}");
        }
    }
    let stranger = event("channel_id_changed", workspace("T2"));
    check(&[(stranger, &[forward], TO_APP)]);
}
