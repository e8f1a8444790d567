//! Slack messages of approvals. Pure functions.

use super::escape;
use serde_json::{Value, json};
use shared::{
    domain::APPROVAL_ACTION_PREFIX,
    store::{ApprovalContent, ApprovalDecision},
};

/// Text for a click after the time to decide.
pub(super) const EXPIRED: &str = "No decision was made in time. This request has expired.";
/// Text for a person who may not decide.
pub(super) const NOT_ALLOWED: &str = "You can't decide this request.";
/// Text for a click on a button without an approval.
pub(super) const UNKNOWN: &str = "This request no longer exists.";
/// Text for a person whose agent has too many open requests.
pub(crate) const TOO_MANY: &str = "The agent asks for a decision, but too many of its requests are \
    open. Decide one of them first.";
/// Maximum number of people who are named in a message.
const NAMED_MAX: usize = 5;

/// Returns the message with the buttons. `until` is the time of expiry, in seconds since 1970.
pub(crate) fn asking(id: &str, content: &ApprovalContent, allowed: &[String], until: u64) -> Value {
    let buttons: Vec<Value> = content
        .options
        .iter()
        .enumerate()
        .map(|(n, option)| {
            let mut button = json!({
                "type": "button", "action_id": format!("{APPROVAL_ACTION_PREFIX}{n}"), "value": id,
                "text": { "type": "plain_text", "text": option.label },
            });
            if !option.style.is_empty() {
                button["style"] = option.style.as_str().into();
            }
            button
        })
        .collect();
    let mut people: Vec<String> =
        allowed.iter().take(NAMED_MAX).map(|user| format!("<@{user}>")).collect();
    if allowed.len() > NAMED_MAX {
        people.push(format!("{} others", allowed.len() - NAMED_MAX));
    }
    let people = people.join(", ");
    let footer = format!("Waits for {people} until {}.", date(until as i64));
    let buttons = json!({ "type": "actions", "elements": buttons });
    message(content, vec![buttons, context(&footer)])
}

/// Returns the message after the decision.
pub(super) fn decided(content: &ApprovalContent, decision: &ApprovalDecision) -> Value {
    message(content, vec![context(&decided_text(decision))])
}

/// Returns the message after the time to decide.
pub(crate) fn expired(content: &ApprovalContent) -> Value {
    message(content, vec![context(EXPIRED)])
}

/// Returns the text of a decision: option, person and time.
pub(super) fn decided_text(decision: &ApprovalDecision) -> String {
    let ApprovalDecision { option, by, at } = decision;
    format!("*{}* by <@{by}>, {}.", escape(&option.label), date(*at))
}

fn message(content: &ApprovalContent, mut more: Vec<Value>) -> Value {
    let prompt = &content.prompt;
    let mut blocks =
        vec![json!({ "type": "section", "text": { "type": "mrkdwn", "text": prompt } })];
    blocks.append(&mut more);
    json!({ "text": prompt, "blocks": blocks, "unfurl_links": false, "unfurl_media": false })
}

fn context(text: &str) -> Value {
    json!({ "type": "context", "elements": [{ "type": "mrkdwn", "text": text }] })
}

/// Returns a time, given in seconds since 1970, that Slack shows in the reader's time zone.
fn date(at: i64) -> String {
    format!("<!date^{at}^{{date_short_pretty}} {{time}}|{at}>")
}
