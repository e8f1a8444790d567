//! Tests of the limit of questions per person.

use super::{setup::*, *};

const REFUSED: &str = "The limit of 30 requests a minute is reached; this request was not passed \
    on. Send it again after <!date^1700000040^{time_secs}|a minute>.";

fn refused(to: &str) -> String {
    format!("refusal: {to} {REFUSED}; refused")
}

decisions! {
    delivers_below_limit: im("hi"), [asked_29] => TO_AGENT;
    notifies_person_once: im("hi"), [asked_30]
        => format!("{}; trigger", refused("chat.postEphemeral"));
    ignores_after_notice: im("hi"), [asked_30, told] => "ignore too_many_questions, addressed";
    refuses_message_in_channel: channel("hi"), [asked_30]
        => format!("{}; trigger", refused("chat.postEphemeral"));
    refuses_message_to_app: im("hi"), [asked_30, forward] => refused("chat.postEphemeral");
    refuses_message_to_handler: im("hi"), [asked_30, own_handler]
        => refused("chat.postEphemeral");
    refuses_command_to_app: slash("/weather", "oslo"), [asked_30, forward]
        => refused("response_url");
    refuses_click: fixture("block_actions"), [asked_30, forward] => refused("response_url");
    ignores_refused_shortcut: fixture("shortcut"), [asked_30, forward]
        => "ignore too_many_questions, addressed";
}

#[test]
fn limits_only_questions() {
    check(&[
        (
            slash("/lobu", "status"),
            &[asked_30, told],
            &format!("command: response_url {BY_DEFAULT}"),
        ),
        (
            im("/lobu status"),
            &[asked_30, told],
            &format!("command: chat.postMessage {BY_DEFAULT}; trigger"),
        ),
        (fixture("view_submission"), &[asked_30, forward], TO_APP_FIRST),
        (fixture("block_suggestion"), &[asked_30, forward], TO_APP_FIRST),
        (fixture("view_closed"), &[asked_30, forward], TO_APP_FIRST),
        (fixture("reaction_added"), &[asked_30, forward], TO_APP),
        (fixture("message_changed"), &[asked_30, forward], TO_APP),
        (message_with(json!({ "bot_id": "B1" })), &[asked_30, answer_bots], TO_AGENT),
        (im("hi"), &[asked_30, no_agent], &format!("notice: chat.postMessage {UNLINKED}; trigger")),
        (im("hi"), &[asked_30, stopped], "ignore connection_stopped, addressed"),
        (im("hi"), &[asked_30, processed], "ignore duplicate"),
        (mention("hi"), &[asked_30, trigger_processed], "ignore same_trigger"),
    ]);
}

#[test]
fn counts_questions() {
    let asked = |body: &Body, tweaks: &[Tweak]| match decide_in(body, tweaks) {
        Decision::Apply(effects) => effects.question == Some(QuestionEffect::Asked),
        _ => false,
    };
    assert!(asked(&im("hi"), &[]));
    assert!(asked(&slash("/weather", "oslo"), &[forward]));
    assert!(asked(&fixture("shortcut"), &[forward]));
    assert!(asked(&im("hi"), &[own_handler]));
    assert!(!asked(&slash("/lobu", "status"), &[]));
    assert!(!asked(&fixture("reaction_added"), &[forward]));
    assert!(!asked(&fixture("view_submission"), &[forward]));
    assert!(!asked(&fixture("block_suggestion"), &[forward]));
}
