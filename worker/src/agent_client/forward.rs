//! Forwards webhooks to apps as Slack sent them, so that an app written for Slack needs no change.
//!
//! A webhook is signed again with the current time, since apps reject signatures older than five
//! minutes, and with the agent's own secret: whoever has the connection's signing secret can forge
//! its webhooks. Slack's retry headers are left out: this is the first request to the app, and some
//! apps drop retries. The header [`FORWARDED_DELIVERY`] identifies a repetition, and lets ingest
//! refuse a webhook that is forwarded to Tidegate itself.

use super::client::{AgentClient, AgentError, read, refusal};
use serde_json::Value;
use shared::{
    domain::{AgentMode, WebhookKind},
    signature,
    slack::repair,
    store::{Agent, Connection},
    stream::{Envelope, FORWARDED_DELIVERY},
};
use std::time::{Duration, Instant};

/// Time after which Bolt answers 404 for a listener that did not acknowledge: Slack's limit, less
/// the inaccuracy of timers.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_millis(2_900);

/// Response of an app.
#[derive(Debug)]
pub enum ForwardResult {
    /// Status 2xx, with the body.
    Handled(Vec<u8>),
    /// Status 2xx with a body that is too long or ended early.
    HandledUnreadably,
    /// Status 404 of Bolt after its time-out: a listener did not acknowledge in time, or, in
    /// JavaScript, the app has none.
    Unacknowledged,
    /// Status 404 of Bolt: the app does not listen for this webhook.
    Unhandled,
}

impl AgentClient {
    pub async fn forward(
        &self,
        agent: &Agent,
        connection: &Connection,
        envelope: &Envelope,
    ) -> Result<ForwardResult, AgentError> {
        let result = self.try_forward(agent, connection, envelope).await;
        let label = |result: &ForwardResult| match result {
            ForwardResult::Handled(_) | ForwardResult::HandledUnreadably => "taken",
            ForwardResult::Unacknowledged => "unacknowledged",
            ForwardResult::Unhandled => "unhandled",
        };
        self.metrics.record(AgentMode::Forward, &result, label);
        result
    }

    async fn try_forward(
        &self,
        agent: &Agent,
        connection: &Connection,
        envelope: &Envelope,
    ) -> Result<ForwardResult, AgentError> {
        let (began, now) = (Instant::now(), signature::unix_now());
        let secret = match agent.signs_as_slack && agent.org == connection.org {
            true => &connection.signing_secret,
            false => &agent.secret,
        };
        let request = || {
            Ok(self
                .post(agent, &agent.url)?
                .header("content-type", envelope.media.as_str())
                .header("x-slack-request-timestamp", now)
                .header("x-slack-signature", signature::slack(secret, now, &envelope.body))
                .header(FORWARDED_DELIVERY, envelope.dedup_key.as_str())
                .body(envelope.body.clone()))
        };
        let deadline = tokio::time::Instant::now() + agent.timeout;
        let response = self.begin_with_headers(agent, deadline, request).await?;
        let response = read(agent, response, deadline).await;
        match (response.status, &response.body) {
            (200..300, Ok(_)) => Ok(ForwardResult::Handled(response.body.unwrap_or_default())),
            // The app handled the webhook and must not get it again.
            (200..300, Err(_)) => Ok(ForwardResult::HandledUnreadably),
            (404, Ok(body)) if is_unhandled_by_bolt(envelope.kind, body) => {
                Ok(match began.elapsed() >= ACKNOWLEDGE_TIMEOUT {
                    true => ForwardResult::Unacknowledged,
                    false => ForwardResult::Unhandled,
                })
            }
            _ => Err(refusal(agent, &response)),
        }
    }
}

/// Returns whether Bolt sent a 404 because the app has no listener: in Python for any webhook, in
/// JavaScript, with an empty body, for all but events, which it accepts in any case. A proxy of an
/// unavailable app sends other bodies, which must not count as an answer.
pub(super) fn is_unhandled_by_bolt(kind: WebhookKind, body: &[u8]) -> bool {
    match serde_json::from_str::<Value>(&repair(body)) {
        // Bolt for Python, for Python with middleware, for Java.
        Ok(answer) => matches!(
            answer["error"].as_str(),
            Some("unhandled request" | "no next() calls in middleware" | "no handler found")
        ),
        Err(_) => body.trim_ascii().is_empty() && kind != WebhookKind::Event,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_404_of_proxy_or_wrong_path() {
        let is_unhandled = is_unhandled_by_bolt;
        assert!(is_unhandled(WebhookKind::Event, br#"{"error": "unhandled request"}"#));
        assert!(is_unhandled(WebhookKind::Event, br#"{"error":"no handler found"}"#));
        assert!(is_unhandled(WebhookKind::Command, b""));
        assert!(!is_unhandled(WebhookKind::Event, b""));
        assert!(!is_unhandled(WebhookKind::Command, b"<html>404 Not Found</html>"));
        assert!(!is_unhandled(WebhookKind::Command, br#"{"message":"no Route matched"}"#));
    }
}
