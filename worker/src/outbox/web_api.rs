//! Sends messages through Slack's Web API and applies Slack's answers.

use super::{
    reconcile::{LookupResult, look_up},
    sender::{AuthenticatedSender, NotCalled},
    token_health,
};
use crate::slack::{Action, ApiResult, Method, Reconciliation, TEXT_CHARS_MAX, postable};
use serde_json::{Value, json};
use shared::{
    domain::{APPROVAL_ACTION_PREFIX, ConnectionStatus, Destination},
    runtime::telemetry::ErrorChain,
    store::{SendAmbiguity, SendOutcome},
};
use std::time::Duration;
use tracing::{error, info, warn};

/// Wait before an ambiguous message is looked up, since Slack may still process the call.
pub const AMBIGUITY_WAIT: Duration = Duration::from_secs(2);
/// Wait before a claim checks the limit of a method, which may not be recorded yet.
const RECHECK_WAIT: Duration = Duration::from_millis(100);
/// Wait for a person or for Slack to act.
pub const LONG_WAIT: Duration = Duration::from_secs(60);
/// Slack's errors about the form of a message; its text alone may be accepted.
#[rustfmt::skip]
pub const FORM_ERRORS: [&str; 8] = [
    "invalid_blocks", "invalid_blocks_format", "invalid_attachments",
    "attachment_payload_limit_exceeded", "too_many_attachments", "msg_too_long",
    "msg_blocks_too_long", "no_text",
];

pub async fn send(
    sender: &AuthenticatedSender<'_>,
    to: &Destination,
    message: Value,
    ambiguity: &mut SendAmbiguity,
) -> SendOutcome {
    let (sending, slack) = (sender.sending, &sender.sending.context().slack);
    let (method, body) = match to {
        Destination::DirectMessage { user } => {
            let open = json!({ "users": user.as_str() });
            let opened = match sender.call(Method::OpenConversation, &open).await {
                Ok(ApiResult::Succeeded(answer)) => {
                    answer["channel"]["id"].as_str().map(str::to_owned)
                }
                Ok(other) => return sender.apply_result(other, None).await,
                Err(reason) => return reason.into(),
            };
            return match opened.map(|channel| channel.parse()) {
                Some(Ok(channel)) => {
                    let (store, id) = (&sending.context().store, sender.connection.id);
                    if let Err(error) = store.record_known_channel(id, &channel).await {
                        warn!(error = %ErrorChain(&error), "failed to record known channel");
                    }
                    let to = Destination::PostMessage { channel, thread_ts: None };
                    Box::pin(send(sender, &to, message, ambiguity)).await
                }
                _ => {
                    let reason = "Slack opened no direct message".to_owned();
                    SendOutcome::Later(sending.backoff(), reason)
                }
            };
        }
        to => request(to, message, &sending.message.mark()),
    };
    if ambiguity.open {
        match to {
            Destination::PostMessage { channel, thread_ts } => {
                let metrics = &slack.metrics;
                match look_up(sender, channel.as_str(), thread_ts.as_deref()).await {
                    LookupResult::Found(ts) => {
                        record_approval(sender, &body, Some(&ts)).await;
                        metrics.record_reconciliation(method.as_str(), Reconciliation::Found);
                        return SendOutcome::Sent;
                    }
                    LookupResult::Absent => {
                        metrics.record_reconciliation(method.as_str(), Reconciliation::Absent);
                        ambiguity.open = false;
                    }
                    LookupResult::Later(after, reason) => {
                        return SendOutcome::Untried(after, reason);
                    }
                    LookupResult::Impossible(reason) => {
                        info!(
                            outbox = sending.message.id,
                            reason, "failed to look up ambiguous message"
                        );
                        sending.mark_resent(ambiguity);
                    }
                }
            }
            _ => sending.mark_resent(ambiguity),
        }
    }
    let channel = body["channel"].as_str();
    // Claims hold back the messages of a limited method, in order. A lane with its own wait could
    // become due after a later one.
    let is_held_by_claims = sending.message.outgoing.to.as_str() == method.as_str();
    let wait = |after: Duration| if is_held_by_claims { after.min(RECHECK_WAIT) } else { after };
    let result = match sender.call(method, &body).await {
        Ok(ApiResult::RateLimited(after)) => ApiResult::RateLimited(wait(after)),
        Ok(result) => result,
        Err(NotCalled::RateLimited(after)) => return NotCalled::RateLimited(wait(after)).into(),
        Err(reason) => return reason.into(),
    };
    let result = match result {
        ApiResult::Refused(_, code) if FORM_ERRORS.contains(&code.as_str()) => {
            match send_simpler(sender, method, &body, code).await {
                Ok(result) => result,
                Err(outcome) => return outcome,
            }
        }
        result => result,
    };
    if let ApiResult::Succeeded(answer) = &result
        && let Some(thread) = body["thread_ts"].as_str()
        && method == Method::PostMessage
        && answer["message"]["thread_ts"] != *thread
    {
        return withdraw(sender, answer).await;
    }
    if let ApiResult::Succeeded(answer) = &result {
        record_approval(sender, &body, answer["ts"].as_str()).await;
    }
    sender.apply_result(result, channel).await
}

/// Records the message of an approval, so that it can be updated when the approval expires. A
/// failed record is not retried: a later click is then answered that the approval has expired.
async fn record_approval(sender: &AuthenticatedSender<'_>, body: &Value, ts: Option<&str>) {
    let buttons = body["blocks"].as_array().into_iter().flatten();
    let buttons = buttons.filter_map(|block| block["elements"].as_array()).flatten();
    let button = buttons.into_iter().find(|button| {
        button["action_id"].as_str().is_some_and(|id| id.starts_with(APPROVAL_ACTION_PREFIX))
    });
    let id = button.and_then(|button| button["value"].as_str());
    let Some((id, ts)) = id.zip(ts) else { return };
    let (store, connection) = (&sender.sending.context().store, sender.connection.id);
    if let Err(error) = store.record_approval_message(connection, id, ts).await {
        warn!(approval = id, error = %ErrorChain(&error), "failed to record message of approval");
    }
}

/// Deletes a message that Slack posted outside its thread, since the thread's first message was
/// deleted meanwhile.
async fn withdraw(sender: &AuthenticatedSender<'_>, answer: &Value) -> SendOutcome {
    let posted = json!({ "channel": answer["channel"], "ts": answer["ts"] });
    if let Ok(ApiResult::Succeeded(_)) = sender.call(Method::DeleteMessage, &posted).await {
        return SendOutcome::Failed("the thread of the message was deleted".into());
    }
    SendOutcome::Failed("the thread was deleted, and Slack posted the message outside it".into())
}

/// Sends only the text of a message that Slack refused for its form. If Slack refuses the text,
/// too, posts a notice with a reference and fails the message.
async fn send_simpler(
    sender: &AuthenticatedSender<'_>,
    method: Method,
    body: &Value,
    mut code: String,
) -> Result<ApiResult, SendOutcome> {
    let message = sender.sending.message;
    if let Some(text) = text_alone(body) {
        warn!(outbox = message.id, code, "message refused for its form; sending only its text");
        match sender.call(method, &text).await? {
            ApiResult::Refused(_, again) if FORM_ERRORS.contains(&again.as_str()) => code = again,
            result => return Ok(result),
        }
    }
    if body["channel"].is_string() {
        let key = message.dedup_key.as_str();
        let reference = key.rsplit(':').next().unwrap_or(key);
        let mut note = body.clone();
        note["text"] =
            format!("Slack did not accept the answer. Ask an administrator about `{reference}`.")
                .into();
        if let Some(note) = text_alone(&note).or(Some(note)) {
            sender.call(method, &note).await?;
        }
    }
    Err(SendOutcome::Failed(code))
}

/// Returns the message with only its text, or `None` if the text is empty or nothing changes.
pub fn text_alone(body: &Value) -> Option<Value> {
    let text = body["text"].as_str().filter(|text| !text.is_empty())?;
    let short: String = text.chars().take(TEXT_CHARS_MAX).collect();
    let mut alone = body.clone();
    let fields = alone.as_object_mut()?;
    let blocks = fields.remove("blocks").is_some();
    let attachments = fields.remove("attachments").is_some();
    if !blocks && !attachments && short.len() == text.len() {
        return None;
    }
    alone["text"] = short.into();
    Some(alone)
}

impl AuthenticatedSender<'_> {
    /// Calls a method when the rate limit allows it and the worker's row is still valid.
    pub async fn call(&self, method: Method, body: &Value) -> Result<ApiResult, NotCalled> {
        let slack = &self.sending.context().slack;
        let permit = slack.permit(self.connection.id, method).await;
        let permit = permit.map_err(NotCalled::RateLimited)?;
        self.sending.check_lease()?;
        Ok(slack.call(permit, &self.token, body).await)
    }

    /// Applies the answer of a call and returns the outcome of the send.
    async fn apply_result(&self, result: ApiResult, channel: Option<&str>) -> SendOutcome {
        let (sending, id) = (self.sending, self.connection.id);
        let (action, text) = match result {
            ApiResult::Succeeded(_) => {
                token_health::record_success(self).await;
                return SendOutcome::Sent;
            }
            ApiResult::RateLimited(after) => return SendOutcome::Later(after, "limited".into()),
            ApiResult::NotSent(reason) => return SendOutcome::Later(sending.backoff(), reason),
            ApiResult::Ambiguous(reason) => {
                return SendOutcome::Ambiguous(AMBIGUITY_WAIT.max(sending.backoff()), reason);
            }
            ApiResult::Refused(action, text) => (action, text),
        };
        let context = sending.context();
        match action {
            Action::Revoke => {
                token_health::record_refusal(self, ConnectionStatus::Revoked, &text).await;
                SendOutcome::Failed(text)
            }
            Action::ConfirmToken => token_health::confirm(self, text).await,
            Action::MarkMisconfigured => {
                let error = &text;
                error!(connection = %id, error, "failed to call Slack: misconfigured app or token");
                token_health::record_refusal(self, ConnectionStatus::Error, &text).await;
                SendOutcome::Later(LONG_WAIT, text)
            }
            Action::RefreshToken => token_health::refresh(self, text).await,
            Action::Pause | Action::Wait => SendOutcome::Later(LONG_WAIT, text),
            Action::ReportBlockedAddress => {
                error!(connection = %id, error = text, "failed to call Slack: address blocked");
                SendOutcome::Later(LONG_WAIT, text)
            }
            Action::RefuseTeam | Action::RefuseConversation => {
                if let Some(channel) = channel
                    && let Err(error) =
                        context.store.record_channel_rejection(id, channel, &text).await
                {
                    warn!(error = %ErrorChain(&error), "failed to record refused conversation");
                }
                SendOutcome::Failed(text)
            }
            Action::ReportMissingScope => {
                let to = sending.message.outgoing.to.as_str();
                warn!(connection = %id, to, "scope missing; the app must be installed again");
                SendOutcome::Failed(text)
            }
            Action::PauseMessages => {
                for method in [Method::PostMessage, Method::PostEphemeral, Method::UpdateMessage] {
                    context.slack.limits.record_limit(id, method.as_str(), LONG_WAIT).await;
                }
                SendOutcome::Later(LONG_WAIT, text)
            }
            Action::Reconcile => {
                SendOutcome::Ambiguous(AMBIGUITY_WAIT.max(sending.backoff()), text)
            }
            Action::ReloadToken | Action::Fail => SendOutcome::Failed(text),
        }
    }
}

/// Returns the method that sends a message, with its arguments.
fn request(to: &Destination, message: Value, mark: &str) -> (Method, Value) {
    let in_thread = |body: &mut Value, thread_ts: &Option<String>| {
        if let Some(ts) = thread_ts {
            body["thread_ts"] = ts.as_str().into();
        }
    };
    match to {
        Destination::PostMessage { channel, thread_ts } => {
            let mut body = postable(&message, Some(mark));
            body["channel"] = channel.as_str().into();
            in_thread(&mut body, thread_ts);
            (Method::PostMessage, body)
        }
        Destination::PostEphemeral { channel, user, thread_ts } => {
            let mut body = postable(&message, None);
            body["channel"] = channel.as_str().into();
            body["user"] = user.as_str().into();
            in_thread(&mut body, thread_ts);
            (Method::PostEphemeral, body)
        }
        Destination::UpdateMessage { channel, ts } => {
            let mut body = postable(&message, None);
            body["channel"] = channel.as_str().into();
            body["ts"] = ts.as_str().into();
            (Method::UpdateMessage, body)
        }
        Destination::OpenView { trigger_id } => {
            (Method::OpenView, json!({ "trigger_id": trigger_id, "view": message }))
        }
        Destination::UpdateView { view_id } => {
            (Method::UpdateView, json!({ "view_id": view_id, "view": message }))
        }
        Destination::PublishView { user } => {
            (Method::PublishView, json!({ "user_id": user.as_str(), "view": message }))
        }
        // Handled by the caller: a response_url has no method, a direct message is opened first.
        Destination::ResponseUrl { .. } | Destination::DirectMessage { .. } => {
            (Method::PostMessage, postable(&message, Some(mark)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_blocks_from_text_alone() {
        let body = json!({ "channel": "C1", "text": "hi", "blocks": [{}] });
        assert_eq!(text_alone(&body), Some(json!({ "channel": "C1", "text": "hi" })));
        assert_eq!(text_alone(&json!({ "text": "hi" })), None);
        assert_eq!(text_alone(&json!({ "blocks": [{}] })), None);
        let long = json!({ "text": "x".repeat(TEXT_CHARS_MAX + 1) });
        let short = text_alone(&long).expect("a text");
        assert_eq!(short["text"].as_str().map(str::len), Some(TEXT_CHARS_MAX));
    }
}
