//! Tests of connections, kinds of webhooks, agents and apps.

use super::{setup::*, *};

const UNKNOWN: &str = "dead letter: connection is unknown: 00000000000000000000000000000007";

/// Status of the connection, and duplicates.
mod connection {
    use super::*;

    decisions! {
        delivers_if_active: im("hi"), [] => TO_AGENT;
        delivers_if_pending: im("hi"), [pending] => TO_AGENT;
        delivers_if_in_error: im("hi"), [error] => TO_AGENT;
        ignores_if_stopped: im("hi"), [stopped] => "ignore connection_stopped, addressed";
        ignores_channel_if_stopped: channel("hi"), [stopped] => "ignore connection_stopped";
        ignores_bound_channel_if_stopped: channel("hi"), [stopped, bound]
            => "ignore connection_stopped, addressed";
        ignores_if_revoked: im("hi"), [revoked] => "ignore connection_revoked, addressed";
        ignores_command_if_revoked: slash("/lobu", "help"), [revoked]
            => "ignore connection_revoked, addressed";
        ignores_uninstall_if_revoked: fixture("app_uninstalled"), [revoked]
            => "ignore connection_revoked";
        ignores_if_deleted: im("hi"), [deleted] => "ignore connection_deleted, addressed";
        ignores_event_if_deleted: fixture("reaction_added"), [deleted]
            => "ignore connection_deleted";
        keeps_dead_letter_if_unknown: im("hi"), [unknown] => UNKNOWN;
        ignores_duplicate_if_unknown: im("hi"), [unknown, processed] => "ignore duplicate";
        ignores_duplicate_command: slash("/lobu", "unlink"), [processed] => "ignore duplicate";
        ignores_duplicate_uninstall: fixture("app_uninstalled"), [processed] => "ignore duplicate";
        ignores_duplicate_view: fixture("view_submission"), [processed, forward]
            => "ignore duplicate";
        ignores_duplicate_for_handler: im("hi"), [processed, own_handler] => "ignore duplicate";
    }
}

#[test]
fn applies_trigger_once() {
    check(&[
        (mention("hi"), &[trigger_processed], "ignore same_trigger"),
        (im("/lobu unlink"), &[trigger_processed], "ignore same_trigger"),
        (im("hi"), &[trigger_processed, preview, no_agent], "ignore same_trigger"),
        (fixture("reaction_added"), &[trigger_processed], "ignore not_a_message"),
        // An app or a handler may listen to either event.
        (mention("hi"), &[trigger_processed, forward], TO_APP),
        (mention("hi"), &[trigger_processed, own_handler], TO_HANDLER),
        (mention("/lobu new"), &[trigger_processed, forward], "ignore same_trigger"),
    ]);
}

/// Webhooks that an agent in mode `reply` gets: messages of people.
mod agent {
    use super::*;

    decisions! {
        gets_channel_message: fixture("message_channel"), [] => TO_AGENT;
        gets_thread_message: fixture("message_thread"), [] => TO_AGENT;
        gets_direct_message: fixture("message_im"), [bound] => TO_AGENT;
        gets_grid_message: fixture("grid_message"), [no_team] => TO_AGENT;
        gets_connect_message: fixture("connect_message"), [] => TO_AGENT;
        gets_mention: fixture("app_mention"), [] => TO_AGENT;
        gets_session: im("hi"), [session_5]
            => "delivery: to acme/support s5 background; trigger";
        gets_file: message_with(json!({ "subtype": "file_share" })), [] => TO_AGENT;
        gets_broadcast: message_with(json!({ "subtype": "thread_broadcast" })), [] => TO_AGENT;
        gets_me_message: message_with(json!({ "subtype": "me_message" })), [] => TO_AGENT;
        ignores_edit: fixture("message_changed"), [] => "ignore not_a_message";
        ignores_edit_if_bound: fixture("message_changed"), [bound] => "ignore not_a_message";
        ignores_reaction: fixture("reaction_added"), [] => "ignore not_a_message";
        ignores_new_channel: fixture("channel_created"), [] => "ignore not_a_message";
        ignores_home: fixture("app_home_opened"), [] => "ignore not_a_message";
        ignores_assistant_thread: fixture("assistant_thread_started"), []
            => "ignore not_a_message";
        ignores_rate_limit: fixture("app_rate_limited"), [] => "ignore not_a_message";
        ignores_join: message_with(json!({ "subtype": "channel_join" })), [bound]
            => "ignore not_a_message";
        ignores_hidden: message_with(json!({ "hidden": true })), [bound] => "ignore not_a_message";
        ignores_malformed_channel: message_with(json!({ "channel": "no id!" })), []
            => "ignore not_a_message";
        ignores_malformed_ts: message_with(json!({ "ts": 7 })), [] => "ignore not_a_message";
        ignores_missing_user: message_with(json!({ "user": null })), [] => "ignore not_a_message";
        gets_file_without_text: message_with(json!({ "subtype": "file_share", "text": "",
            "files": [{ "id": "F1", "name": "a.pdf", "mimetype": "application/pdf", "size": 9 }],
        })), [] => TO_AGENT;
        gets_attachment: message_with(json!({ "text": "", "attachments": [{ "text": "x" }] })), []
            => TO_AGENT;
        ignores_empty: message_with(json!({ "text": " ", "files": [] })), []
            => "ignore not_a_message";
        gets_document_mention:
            message_with(json!({ "type": "app_mention", "subtype": "document_mention" })), []
            => TO_AGENT;
    }
}

#[test]
fn drops_answers_to_deleted_messages() {
    let dropped = "deletion: change drop the answer to a deleted message";
    let deleted = || {
        event_body(json!({
            "type": "message", "subtype": "message_deleted", "hidden": true, "channel": "C1",
            "channel_type": "channel", "ts": "2.2", "deleted_ts": "1.1", "event_ts": "2.2",
            "previous_message": { "type": "message", "user": "U1", "text": "hi", "ts": "1.1" },
        }))
    };
    let tombstone = event_body(json!({
        "type": "message", "subtype": "message_changed", "hidden": true, "channel": "C1",
        "ts": "2.2", "message": { "subtype": "tombstone", "user": "USLACKBOT", "ts": "1.1" },
    }));
    check(&[
        (deleted(), &[], dropped),
        (tombstone, &[], dropped),
        (deleted(), &[forward], TO_APP),
        (deleted(), &[no_agent], "ignore not_a_message"),
    ]);
}

#[test]
fn stops_runs_of_conversation() {
    let stopped = "command: change stop runs";
    let by_word = "command: change stop runs; trigger";
    let message = |channel: &str, text: &str, thread: Option<&str>| {
        event_body(json!({
            "type": "message", "channel": channel, "user": "U1", "text": text, "ts": "1.2",
            "thread_ts": thread,
        }))
    };
    let button = || {
        event_body(json!({
            "type": "agent_session_stopped", "channel": "D1", "thread_ts": "1.1", "user": "U1",
            "streaming_message_ts": [], "event_ts": "1.9",
        }))
    };
    check(&[
        (button(), &[], stopped),
        (button(), &[forward], TO_APP),
        (button(), &[no_agent], "ignore not_a_message"),
        (message("D1", "!stop", None), &[], by_word),
        (message("C1", " !stop ", Some("1.1")), &[], by_word),
        (message("C1", "!stop", None), &[], TO_AGENT),
        (message("D1", "!stop it", None), &[], TO_AGENT),
        (message("D1", "!stop", None), &[forward], TO_APP),
    ]);
}

#[test]
fn ignores_slackbot() {
    let reminder = |user: &str| {
        event_body(json!({
            "type": "message", "channel": "D1", "channel_type": "im", "user": user,
            "text": "Reminder: stand up.", "ts": "1.1",
        }))
    };
    check(&[
        (reminder("USLACKBOT"), &[], "ignore from_bot, addressed"),
        (reminder("USLACKBOT"), &[answer_bots], "ignore from_bot, addressed"),
        (reminder("USLACK"), &[preview, no_agent], "ignore from_bot, addressed"),
        (reminder("U1"), &[], TO_AGENT),
    ]);
}

#[test]
fn answers_bots_up_to_three_times() {
    let with_hops = |n: u64| {
        message_with(json!({ "bot_id": "B1", "metadata": {
            "event_type": "tidegate", "event_payload": { "hops": n } } }))
    };
    let profile = json!({ "bot_profile": {
        "id": "B1", "deleted": false, "name": "deploys", "updated": 1700000000, "app_id": "A9",
        "icons": { "image_36": "https://example.com/36.png" }, "team_id": "T0001TEAM" } });
    let mut by_bot_alone = profile.clone();
    by_bot_alone["user"] = json!(null);
    let mut profile_with_hops = profile.clone();
    profile_with_hops["metadata"] =
        json!({ "event_type": "tidegate", "event_payload": { "hops": 3 } });
    check(&[
        (message_with(profile_with_hops), &[answer_bots], "ignore from_bot"),
        (message_with(json!({ "bot_id": "B1" })), &[], "ignore from_bot"),
        (message_with(json!({ "bot_id": "B1" })), &[bound], "ignore from_bot, addressed"),
        (message_with(json!({ "bot_id": "B1" })), &[answer_bots], TO_AGENT),
        (message_with(json!({ "bot_id": "B1", "user": null })), &[answer_bots], TO_AGENT),
        (
            message_with(json!({ "bot_id": "B1", "subtype": "bot_message", "user": null })),
            &[answer_bots],
            TO_AGENT,
        ),
        (message_with(json!({ "bot_id": "B1", "subtype": "bot_message" })), &[], "ignore from_bot"),
        // Some messages of bots have a profile and no id.
        (message_with(profile.clone()), &[bound], "ignore from_bot, addressed"),
        (message_with(profile.clone()), &[preview, no_agent], "ignore from_bot"),
        (message_with(profile.clone()), &[answer_bots], TO_AGENT),
        (message_with(json!({ "bot_profile": {} })), &[], "ignore from_bot"),
        (message_with(json!({ "bot_profile": null, "bot_id": null })), &[], TO_AGENT),
        (message_with(by_bot_alone), &[answer_bots], TO_AGENT),
        (with_hops(2), &[answer_bots], "delivery: to acme/support s1 background, 2 hops; trigger"),
        (with_hops(3), &[answer_bots], "ignore from_bot"),
        (with_hops(u64::MAX), &[answer_bots], "ignore from_bot"),
        (
            message_with(json!({ "user": "U0BOT", "bot_id": "B0" })),
            &[answer_bots, bound],
            "ignore from_bot",
        ),
        (message_with(json!({ "user": "USLACK" })), &[], "ignore from_bot"),
        (message_with(json!({ "user": "USLACKBOT" })), &[answer_bots], "ignore from_bot"),
        // Hops in the metadata of a person's message do not count.
        (
            message_with(
                json!({ "metadata": { "event_type": "tidegate", "event_payload": { "hops": 9 } } }),
            ),
            &[],
            TO_AGENT,
        ),
    ]);
}

/// Webhooks that an app in mode `forward` and a team's own handler get: all of them.
mod app {
    use super::*;

    macro_rules! recorded {
        ($($name:ident => $decision:expr;)*) => {$(
            #[test]
            fn $name() {
                let recorded = || fixture(stringify!($name));
                check(&[(recorded(), &[forward], $decision)]);
                let to_handler = $decision.replace("acme/support", "*/gateway");
                check(&[(recorded(), &[own_handler], &to_handler)]);
            }
        )*};
    }

    recorded! {
        message_channel => TO_APP;
        message_im => TO_APP;
        message_changed => TO_APP;
        app_mention => TO_APP;
        reaction_added => TO_APP;
        channel_created => TO_APP;
        app_home_opened => TO_APP;
        assistant_thread_started => TO_APP;
        app_rate_limited => TO_APP;
        url_verification => TO_APP;
        ssl_check => TO_APP;
        command => TO_APP_FIRST;
        grid_command => TO_APP_FIRST;
        block_actions => TO_APP_FIRST;
        message_action => TO_APP_FIRST;
        shortcut => TO_APP_FIRST;
        grid_shortcut => TO_APP_FIRST;
        view_submission => TO_APP_FIRST;
        connect_view_submission => TO_APP_FIRST;
        view_closed => TO_APP_FIRST;
        block_suggestion => TO_APP_FIRST;
    }

    // Webhooks of a channel go to its agent, others to the connection's own.
    decisions! {
        gets_bot_message: message_with(json!({ "bot_id": "B1" })), [forward] => TO_APP;
        gets_unparsable: json_body("not JSON"), [forward] => TO_APP;
        gets_event_of_channel: fixture("reaction_added"), [app_here]
            => "delivery: to acme/app s1 background";
        gets_click_in_channel: fixture("block_actions"), [app_here]
            => "delivery: to acme/app s1 interactive";
        ignores_shortcut_without_channel: fixture("shortcut"), [app_here]
            => "ignore not_a_message, addressed";
    }
}

#[test]
fn limits_backlog() {
    let overflow = "dead letter without bytes: the connection has too many open deliveries";
    check(&[
        (im("hi"), &[full], overflow),
        (slash("/weather", "oslo"), &[full, forward], overflow),
        (im("hi"), &[full, ignores], "ignore too_many_dead_letters, addressed"),
        (fixture("reaction_added"), &[full, ignores, forward], "ignore too_many_dead_letters"),
        (json_body("{}"), &[ignores], "ignore too_many_dead_letters"),
        (im("hi"), &[ignores], TO_AGENT),
        (
            im("/lobu status"),
            &[full, ignores],
            &format!("command: chat.postMessage {BY_DEFAULT}; trigger"),
        ),
        (
            im("/lobu status"),
            &[full, max_messages],
            &format!("command: chat.postMessage {BY_DEFAULT}; dropped; trigger"),
        ),
        (im("hi"), &[full, stopped], "ignore connection_stopped, addressed"),
    ]);
}

#[test]
fn answers_only_views_without_app() {
    check(&[
        (fixture("view_submission"), &[], TO_WORKER),
        (fixture("view_submission"), &[no_agent], TO_WORKER),
        (fixture("block_suggestion"), &[], TO_WORKER),
        // Slack reads the answers of these legacy interactions, too.
        (payload(json!({ "type": "dialog_submission" })), &[], TO_WORKER),
        (payload(json!({ "type": "dialog_suggestion" })), &[no_agent], TO_WORKER),
        (payload(json!({ "type": "interactive_message" })), &[], TO_WORKER),
        (fixture("message_action"), &[no_agent], "ignore not_a_message, addressed"),
        (fixture("shortcut"), &[], "ignore not_a_message, addressed"),
        (fixture("view_closed"), &[], "ignore not_a_message"),
    ]);
}

#[test]
fn keeps_unparsable_as_dead_letter() {
    let dead = |detail| format!("dead letter: signed by Slack, but not understood: {detail}");
    let neither = dead("neither event, command nor interaction");
    let long = format!(r#"{{"type":"{}"}}"#, "é".repeat(200));
    check(&[
        (json_body("not JSON"), &[], &neither),
        (json_body("[]"), &[], &neither),
        (fixture("ssl_check"), &[], &neither),
        (payload(json!({})), &[], &neither),
        (json_body("{}"), &[], &dead("no type")),
        (fixture("url_verification"), &[], &dead("url_verification")),
        (json_body(&long), &[], &dead(&"é".repeat(80))),
    ]);
}
