//! Tests of connections, kinds of webhooks, agents and apps.

use super::{setup::*, *};

const UNKNOWN: &str = "dead letter: connection is unknown: 00000000000000000000000000000007";

#[test]
fn checks_connection_first() {
    check(&[
        (im("hi"), &[], TO_AGENT),
        (im("hi"), &[pending], TO_AGENT),
        (im("hi"), &[error], TO_AGENT),
        (im("hi"), &[stopped], "ignore connection_stopped, addressed"),
        (channel("hi"), &[stopped], "ignore connection_stopped"),
        (channel("hi"), &[stopped, bound], "ignore connection_stopped, addressed"),
        (im("hi"), &[revoked], "ignore connection_revoked, addressed"),
        (slash("/lobu", "help"), &[revoked], "ignore connection_revoked, addressed"),
        (fixture("app_uninstalled"), &[revoked], "ignore connection_revoked"),
        (im("hi"), &[deleted], "ignore connection_deleted, addressed"),
        (fixture("reaction_added"), &[deleted], "ignore connection_deleted"),
        (im("hi"), &[unknown], UNKNOWN),
        (im("hi"), &[unknown, processed], "ignore duplicate"),
        (slash("/lobu", "unlink"), &[processed], "ignore duplicate"),
        (fixture("app_uninstalled"), &[processed], "ignore duplicate"),
        (fixture("view_submission"), &[processed, forward], "ignore duplicate"),
        (im("hi"), &[processed, own_handler], "ignore duplicate"),
    ]);
}

#[test]
fn one_trigger_has_one_effect() {
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

#[test]
fn agent_gets_only_messages() {
    check(&[
        (fixture("message_channel"), &[], TO_AGENT),
        (fixture("message_thread"), &[], TO_AGENT),
        (fixture("message_im"), &[bound], TO_AGENT),
        (fixture("grid_message"), &[no_team], TO_AGENT),
        (fixture("connect_message"), &[], TO_AGENT),
        (fixture("app_mention"), &[], TO_AGENT),
        (im("hi"), &[session_5], "delivery: to acme/support s5 background; trigger"),
        (fixture("message_changed"), &[], "ignore not_a_message"),
        (fixture("message_changed"), &[bound], "ignore not_a_message"),
        (fixture("reaction_added"), &[], "ignore not_a_message"),
        (fixture("channel_created"), &[], "ignore not_a_message"),
        (fixture("app_home_opened"), &[], "ignore not_a_message"),
        (fixture("assistant_thread_started"), &[], "ignore not_a_message"),
        (fixture("app_rate_limited"), &[], "ignore not_a_message"),
        (message_with(json!({ "subtype": "file_share" })), &[], TO_AGENT),
        (message_with(json!({ "subtype": "thread_broadcast" })), &[], TO_AGENT),
        (message_with(json!({ "subtype": "me_message" })), &[], TO_AGENT),
        (message_with(json!({ "subtype": "channel_join" })), &[bound], "ignore not_a_message"),
        (message_with(json!({ "hidden": true })), &[bound], "ignore not_a_message"),
        (message_with(json!({ "channel": "no id!" })), &[], "ignore not_a_message"),
        (message_with(json!({ "ts": 7 })), &[], "ignore not_a_message"),
        (message_with(json!({ "user": null })), &[], "ignore not_a_message"),
    ]);
}

#[test]
fn answers_bots_by_setting_up_to_three_times() {
    let with_hops = |n: u64| {
        message_with(json!({ "bot_id": "B1", "metadata": {
            "event_type": "tidegate", "event_payload": { "hops": n } } }))
    };
    check(&[
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

#[test]
fn app_gets_everything() {
    for (name, expected) in [
        ("message_channel", TO_APP),
        ("message_im", TO_APP),
        ("message_changed", TO_APP),
        ("app_mention", TO_APP),
        ("reaction_added", TO_APP),
        ("channel_created", TO_APP),
        ("app_home_opened", TO_APP),
        ("assistant_thread_started", TO_APP),
        ("app_rate_limited", TO_APP),
        ("url_verification", TO_APP),
        ("ssl_check", TO_APP),
        ("command", TO_APP_FIRST),
        ("grid_command", TO_APP_FIRST),
        ("block_actions", TO_APP_FIRST),
        ("message_action", TO_APP_FIRST),
        ("shortcut", TO_APP_FIRST),
        ("grid_shortcut", TO_APP_FIRST),
        ("view_submission", TO_APP_FIRST),
        ("connect_view_submission", TO_APP_FIRST),
        ("view_closed", TO_APP_FIRST),
        ("block_suggestion", TO_APP_FIRST),
    ] {
        check(&[(fixture(name), &[forward], expected)]);
        check(&[(fixture(name), &[own_handler], &expected.replace("acme/support", "*/gateway"))]);
    }
    check(&[
        (message_with(json!({ "bot_id": "B1" })), &[forward], TO_APP),
        (json_body("not JSON"), &[forward], TO_APP),
        // Webhooks of a channel go to its agent, others to the connection's own.
        (fixture("reaction_added"), &[app_here], "delivery: to acme/app s1 background"),
        (fixture("shortcut"), &[app_here], "ignore not_a_message, addressed"),
        (fixture("block_actions"), &[app_here], "delivery: to acme/app s1 interactive"),
    ]);
}

#[test]
fn answers_only_views_and_menus_without_app() {
    check(&[
        (fixture("view_submission"), &[], TO_WORKER),
        (fixture("view_submission"), &[no_agent], TO_WORKER),
        (fixture("block_suggestion"), &[], TO_WORKER),
        (fixture("block_actions"), &[], "ignore not_a_message, addressed"),
        (fixture("message_action"), &[no_agent], "ignore not_a_message, addressed"),
        (fixture("shortcut"), &[], "ignore not_a_message, addressed"),
        (fixture("view_closed"), &[], "ignore not_a_message"),
    ]);
}

#[test]
fn unparsable_webhook_is_a_dead_letter() {
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
