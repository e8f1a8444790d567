//! Forwards webhooks to apps as Slack sent them, so that an app written for Slack needs no change.
//!
//! A webhook is signed again with the connection's signing secret and the current time, since apps
//! reject signatures older than five minutes. Slack's retry headers are left out: this is the first
//! request to the app, and some apps drop retries. The header [`DELIVERY`] identifies a repetition.

use super::{AgentClient, AgentError, Response, refusal, send, signature, unix_now};
use shared::{
    codec::envelope::Envelope,
    secrets::Secret,
    store::Agent,
    types::{AgentMode, Kind},
};

/// Header with the id of a delivery, the same for every attempt.
pub const DELIVERY: &str = "tidegate-delivery";

/// Response of an app.
#[derive(Debug)]
pub enum ForwardResult {
    /// Status 2xx, with the body.
    Handled(Vec<u8>),
    /// Status 404 of Bolt: the app does not listen for this webhook.
    Unhandled,
}

impl AgentClient {
    pub async fn forward(
        &self,
        agent: &Agent,
        signing_secret: &Secret,
        envelope: &Envelope,
    ) -> Result<ForwardResult, AgentError> {
        let result = self.try_forward(agent, signing_secret, envelope).await;
        let label = |result: &ForwardResult| match result {
            ForwardResult::Handled(_) => "taken",
            ForwardResult::Unhandled => "unhandled",
        };
        self.metrics.record(AgentMode::Forward, &result, label);
        result
    }

    async fn try_forward(
        &self,
        agent: &Agent,
        signing_secret: &Secret,
        envelope: &Envelope,
    ) -> Result<ForwardResult, AgentError> {
        let now = unix_now();
        let request = self
            .post(agent)?
            .header("content-type", envelope.media.as_str())
            .header("x-slack-request-timestamp", now)
            .header("x-slack-signature", signature::slack(signing_secret, now, &envelope.body))
            .header(DELIVERY, envelope.dedupe.as_str())
            .body(envelope.body.clone());
        let response = send(agent, request).await?;
        match response.status {
            200..300 => Ok(ForwardResult::Handled(response.body)),
            404 if is_unhandled_by_bolt(envelope.kind, &response) => Ok(ForwardResult::Unhandled),
            _ => Err(refusal(agent, &response)),
        }
    }
}

/// Returns whether Bolt sent a 404 because the app has no listener: in Python for any webhook, in
/// JavaScript, with an empty body, for all but events, which it accepts in any case. A proxy of an
/// unavailable app sends other bodies, which must not count as an answer.
fn is_unhandled_by_bolt(kind: Kind, response: &Response) -> bool {
    #[derive(serde::Deserialize)]
    struct Said<'a> {
        error: &'a str,
    }
    match serde_json::from_slice(&response.body) {
        Ok(Said { error }) => {
            // Bolt for Python, for Python with middleware, for Java.
            matches!(
                error,
                "unhandled request" | "no next() calls in middleware" | "no handler found"
            )
        }
        Err(_) => response.body.trim_ascii().is_empty() && kind != Kind::Event,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_404_of_proxy_or_wrong_path() {
        let said = |kind, body: &[u8]| {
            is_unhandled_by_bolt(
                kind,
                &Response { status: 404, body: body.into(), retry_after: None },
            )
        };
        assert!(said(Kind::Event, br#"{"error": "unhandled request"}"#));
        assert!(said(Kind::Event, br#"{"error":"no handler found"}"#));
        assert!(said(Kind::Command, b"") && !said(Kind::Event, b""));
        assert!(!said(Kind::Command, b"<html>404 Not Found</html>"));
        assert!(!said(Kind::Command, br#"{"message":"no Route matched"}"#));
    }
}
