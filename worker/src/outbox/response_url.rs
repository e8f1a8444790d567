//! Sends messages to the response_url of a command or click, or by the Web API when the URL is used
//! up.

use super::{
    sender::SendContext,
    web_api::{self, AMBIGUITY_WAIT},
};
use crate::slack::ResponseUrlResult;
use serde_json::Value;
use shared::{
    store::{SendAmbiguity, SendOutcome},
    types::{Destination, Fallback},
};
use std::time::Duration;
use tracing::info;

/// Slack's limit of uses of a response_url.
const USES_MAX: i64 = 5;
/// Lifetime of a response_url.
const USABLE_FOR: Duration = Duration::from_secs(30 * 60);

pub async fn send(
    sending: SendContext<'_>,
    url: &str,
    fallback: Option<&Fallback>,
    ambiguity: &mut SendAmbiguity,
) -> SendOutcome {
    let message = &sending.message.outgoing.message;
    let reason = if sending.message.uses >= USES_MAX {
        "the response_url was used five times".to_owned()
    } else if sending.message.age >= USABLE_FOR {
        "the response_url is half an hour old".to_owned()
    } else {
        if let Err(lost) = sending.check_lease() {
            return lost;
        }
        sending.mark_resent(ambiguity);
        match sending.context().slack.respond(url, message).await {
            ResponseUrlResult::Done => return SendOutcome::Sent,
            ResponseUrlResult::RateLimited(after) => {
                return SendOutcome::Later(after, "limited".into());
            }
            ResponseUrlResult::NotSent(reason) => {
                return SendOutcome::Later(sending.backoff(), reason);
            }
            ResponseUrlResult::Ambiguous(reason) => {
                return SendOutcome::Ambiguous(AMBIGUITY_WAIT.max(sending.backoff()), reason);
            }
            ResponseUrlResult::Refused(reason) => return SendOutcome::Failed(reason),
            ResponseUrlResult::UsedUp(reason) => reason,
        }
    };
    let Some(fallback) = fallback else { return SendOutcome::Failed(reason) };
    let Some(message) = without_response_url(message) else {
        return SendOutcome::Failed(format!("{reason}, and only it can replace a message"));
    };
    info!(outbox = sending.message.id, reason, "response_url used up; sending by the Web API");
    sending.mark_resent(ambiguity); // such a message has no mark to look up
    let (channel, user) = (fallback.channel.clone(), fallback.user.clone());
    let to = match sending.message.outgoing.message["response_type"] == "in_channel" {
        true => Destination::PostMessage { channel, thread_ts: None },
        false => Destination::PostEphemeral { channel, user, thread_ts: None },
    };
    match sending.authenticate().await {
        Ok(sender) => web_api::send(&sender, &to, message, ambiguity).await,
        Err(outcome) => outcome,
    }
}

/// Returns the message for the Web API, `None` if only the response_url can do what it asks.
fn without_response_url(message: &Value) -> Option<Value> {
    let only_there = |name: &str| message[name] == true;
    if only_there("replace_original") || only_there("delete_original") {
        return None;
    }
    Some(message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn replacing_a_message_needs_the_response_url() {
        let plain = json!({ "response_type": "ephemeral", "text": "hi" });
        assert_eq!(without_response_url(&plain), Some(plain));
        assert_eq!(without_response_url(&json!({ "delete_original": true })), None);
    }
}
