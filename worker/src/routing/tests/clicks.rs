//! Tests of clicks, edits and interruptions for agents in mode `reply`.

use super::{setup::*, *};
use serde_json::Value;

/// Returns a click on a button.
fn click(changes: Value, action: Value) -> Body {
    let mut click = json!({
        "type": "block_actions", "team": { "id": "T0001TEAM" }, "trigger_id": "1.1",
        "user": { "id": "U0001USER", "team_id": "T0001TEAM" }, "channel": { "id": "C0001CHAN" },
        "container": { "type": "message", "message_ts": "1.2", "channel_id": "C0001CHAN" },
        "message": { "ts": "1.2", "thread_ts": "1.1" }, "response_url": "https://hooks.slack.com/1",
        "actions": [action],
    });
    for (name, value) in changes.as_object().expect("an object") {
        click[name] = value.clone();
    }
    payload(click)
}

fn button(action_id: &str, value: &str) -> Value {
    json!({ "type": "button", "action_id": action_id, "value": value, "action_ts": "1.3" })
}

/// Returns an edit of a message.
fn edit(before: Value, after: Value) -> Body {
    let message = |changes: &Value| {
        let mut message =
            json!({ "type": "message", "user": "U0001USER", "text": "hi", "ts": "1.2" });
        for (name, value) in changes.as_object().expect("an object") {
            message[name] = value.clone();
        }
        message
    };
    message_with(json!({
        "subtype": "message_changed", "hidden": true, "ts": "1.9", "user": null,
        "message": message(&after), "previous_message": message(&before),
    }))
}

const ID: &str = "0123456789abcdef0123456789abcdef";
const ASKS: &str = "approval: option 1 on C0001CHAN/1.2 by T0001TEAM/U0001USER: \
    response_url You can't decide this request.";

#[test]
fn decides_approvals() {
    let decides = || click(json!({}), button("tidegate_approval_1", ID));
    check(&[
        (decides(), &[], ASKS),
        (decides(), &[forward], ASKS),
        (decides(), &[no_agent], ASKS),
        (decides(), &[asked_30], ASKS),
        (decides(), &[stopped], "ignore connection_stopped, addressed"),
        (decides(), &[own_handler], TO_WORKER),
        // No id, no number, no message.
        (click(json!({}), button("tidegate_approval_1", "x")), &[], TO_APP_FIRST),
        (click(json!({}), button("tidegate_approval_x", ID)), &[], TO_APP_FIRST),
        (
            click(json!({ "message": null, "container": null }), button("tidegate_approval_1", ID)),
            &[],
            "ignore not_a_message, addressed",
        ),
    ]);
}

#[test]
fn delivers_to_agent() {
    let good = json!({ "type": "feedback_buttons", "action_id": "f", "value": "good" });
    let kept = "delivery: change record feedback support good; to acme/support s1 interactive";
    let direct = json!({ "channel": { "id": "D1" } });
    check(&[
        (click(json!({}), button("go", "1")), &[], TO_APP_FIRST),
        (click(direct.clone(), button("go", "1")), &[dm_only], TO_APP_FIRST),
        (click(json!({}), button("go", "1")), &[dm_only], "ignore surface_disabled, addressed"),
        (click(json!({}), button("go", "1")), &[no_agent], "ignore not_a_message, addressed"),
        (
            click(json!({}), button("go", "1")),
            &[asked_30, told],
            "ignore too_many_questions, addressed",
        ),
        (click(json!({}), good.clone()), &[], kept),
        (click(json!({}), good.clone()), &[asked_30, told], "ignore too_many_questions, addressed"),
        (click(json!({}), good), &[forward], TO_APP_FIRST),
    ]);
}

/// A click goes to the agent of the message, which the conversation may no longer be linked to.
#[test]
fn delivers_to_author() {
    let by = |agent: &str, kind: &str| {
        let payload = json!({ "event_type": kind, "event_payload": { "hops": 1, "agent": agent } });
        let message = json!({ "ts": "1.2", "thread_ts": "1.1", "metadata": payload });
        click(json!({ "message": message }), button("go", "1"))
    };
    let to_author = "delivery: to acme/sales s1 interactive";
    let refused = "notice: response_url The agent of this message was removed. \
        Send a message to the current agent.";
    check(&[
        (by("acme/sales", "tidegate"), &[author], to_author),
        (by("acme/sales", "tidegate"), &[author, app_here], to_author),
        (by("acme/sales", "tidegate"), &[author, no_agent], "ignore not_a_message, addressed"),
        (by("acme/sales", "tidegate"), &[author, own_handler], TO_WORKER),
        (by("acme/sales", "tidegate"), &[], refused),
        (by("acme/sales", "tidegate"), &[author_app], refused),
        (by("acme/support", "tidegate"), &[], TO_APP_FIRST),
        (by("acme/sales", "other"), &[author], TO_APP_FIRST),
        (by("other/sales", "tidegate"), &[author], TO_APP_FIRST),
        (by("x", "tidegate"), &[author], TO_APP_FIRST),
    ]);
}

#[test]
fn delivers_edits() {
    let text = |text: &str| json!({ "text": text });
    let reruns = "delivery: if C1/1.2 waits; to acme/support s1 background";
    let ignored = "ignore not_a_message";
    let unfurled = json!({ "attachments": [{ "text": "a page" }] });
    check(&[
        (edit(text("hi"), text("ho")), &[rerun], reruns),
        (edit(text("hi"), json!({ "files": [{ "id": "F1" }] })), &[rerun], reruns),
        (edit(text("hi"), text("ho")), &[], ignored),
        (edit(text("hi"), text(" ")), &[rerun], ignored),
        (edit(text("hi"), text("hi")), &[rerun], ignored),
        (edit(json!({}), unfurled), &[rerun], ignored),
        (edit(text("hi"), json!({ "text": "ho", "bot_id": "B1" })), &[rerun], ignored),
        (edit(text("hi"), text("ho")), &[forward], TO_APP),
        (edit(text("hi"), text("ho")), &[no_agent], ignored),
    ]);
}

#[test]
fn interrupts_run() {
    let interrupts = "delivery: change interrupt a run; to acme/support s1 background; trigger";
    check(&[
        (im("hi"), &[interrupt], interrupts),
        (im("hi"), &[interrupt, asked_30, told], "ignore too_many_questions, addressed"),
        (im("!stop"), &[interrupt], "command: change stop runs; trigger"),
    ]);
}
