//! Tests of conversations without an agent, disabled surfaces, and installation events.

use super::{setup::*, *};

#[test]
fn preview_bot_replies_without_agent() {
    let dm = format!(
        "notice: chat.postMessage {UNLINKED} Use `/lobu agents` to list agents to try.; trigger"
    );
    let in_channel = dm.replace("chat.postMessage", "chat.postEphemeral");
    check(&[
        (im("hi"), &[no_agent], "ignore no_agent, addressed"),
        (mention("hi"), &[no_agent], "ignore no_agent, addressed"),
        (channel("hi"), &[no_agent], "ignore no_agent"),
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
fn sends_notice_while_circuit_is_open() {
    let told = |method: &str, to: &str| {
        format!("delivery: {method} {}; {}", WAITING, to.strip_prefix("delivery: ").expect(to))
    };
    check(&[
        (im("hi"), &[circuit_open], &told("chat.postEphemeral", TO_AGENT)),
        (channel("hi"), &[circuit_open, bound], &told("chat.postEphemeral", TO_AGENT)),
        (
            slash("/deploy", "now"),
            &[circuit_open, forward],
            &told("response_url", &TO_APP.replace("background", "interactive")),
        ),
        // An app gets all messages: a person who did not address it gets no notice.
        (channel("hi"), &[circuit_open, forward], TO_APP),
        (im("hi"), &[circuit_open, no_agent], "ignore no_agent, addressed"),
    ]);
}

#[test]
fn ignores_messages_on_disabled_surfaces() {
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
fn installation_events_change_the_connection() {
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
    let late = || json_body(r#"{"type":"event_callback","event":{"type":"app_uninstalled"}}"#);
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
