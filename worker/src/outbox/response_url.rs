//! Sends messages to the response_url of a command or click, or through the Web API when the URL is
//! used up.

use super::{
    sender::SendContext,
    web_api::{self, AMBIGUITY_WAIT, FORM_ERRORS, text_alone},
};
use crate::slack::{ResponseUrlResult, fit};
use serde_json::Value;
use shared::{
    domain::{Destination, Fallback},
    store::{SendAmbiguity, SendOutcome},
};
use std::time::Duration;
use tracing::{info, warn};

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
    let mut message = sending.message.outgoing.message.clone();
    fit(&mut message);
    let message = &message;
    let reason = if sending.message.uses >= USES_MAX {
        "the response_url was used five times".to_owned()
    } else if sending.message.age >= USABLE_FOR {
        "the response_url is half an hour old".to_owned()
    } else {
        if let Err(lost) = sending.check_lease() {
            return lost.into();
        }
        sending.mark_resent(ambiguity);
        let slack = &sending.context().slack;
        let mut result = slack.post_response_url(url, message).await;
        if let ResponseUrlResult::Refused(code) = &result
            && FORM_ERRORS.iter().any(|error| code.contains(error))
            && let Some(text) = text_alone(message)
        {
            warn!(
                outbox = sending.message.id,
                code, "message refused for its form; sending only its text"
            );
            result = slack.post_response_url(url, &text).await;
        }
        match result {
            ResponseUrlResult::Succeeded => return SendOutcome::Sent,
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
        return SendOutcome::Failed(format!("{reason}; only a response_url can replace a message"));
    };
    info!(outbox = sending.message.id, reason, "response_url used up; sending through the Web API");
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

/// Returns the message for the Web API, or `None` if it replaces or deletes the original, which
/// only the response_url can do.
fn without_response_url(message: &Value) -> Option<Value> {
    let is_set = |name: &str| message[name] == true;
    if is_set("replace_original") || is_set("delete_original") {
        return None;
    }
    Some(message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requires_url_to_replace_message() {
        let plain = json!({ "response_type": "ephemeral", "text": "hi" });
        assert_eq!(without_response_url(&plain), Some(plain));
        assert_eq!(without_response_url(&json!({ "delete_original": true })), None);
    }
}
