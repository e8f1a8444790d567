//! Handing a webhook on to an app as Slack sent it, so that an app written for Slack can stand behind Tidegate as it is.
//!
//! In: the bytes Slack signed. Out: what the app answered. Signed anew with the connection's signing secret and the present
//! time, because the app refuses what is older than five minutes. Slack's own retry headers stay behind: to the app this is
//! the first it hears of it, and some throw away what says that it is a retry. What a repeat is known by is
//! [`DELIVERY`]: the same however often a webhook is handed on.

use super::{AgentClient, AgentError, Response, refusal, send, signature, unix_now};
use shared::{
    codec::envelope::Envelope,
    secrets::Secret,
    store::Agent,
    types::{AgentMode, Kind},
};

/// The header by which an app recognises a repeat.
pub const DELIVERY: &str = "tidegate-delivery";

/// What an app answered.
#[derive(Debug)]
pub enum ForwardResult {
    /// 2xx, with this body.
    Handled(Vec<u8>),
    /// 404, as Bolt says that it has nothing for this.
    Unhandled,
}

impl AgentClient {
    /// Hands a webhook on.
    pub async fn forward(
        &self,
        agent: &Agent,
        signing_secret: &Secret,
        envelope: &Envelope,
    ) -> Result<ForwardResult, AgentError> {
        let taken = self.try_to_forward(agent, signing_secret, envelope).await;
        let word = |taken: &ForwardResult| match taken {
            ForwardResult::Handled(_) => "taken",
            ForwardResult::Unhandled => "unhandled",
        };
        self.metrics.record(AgentMode::Forward, &taken, word);
        taken
    }

    async fn try_to_forward(
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
            404 if is_bolts(envelope.kind, &response) => Ok(ForwardResult::Unhandled),
            _ => Err(refusal(agent, &response)),
        }
    }
}

/// Whether a 404 is Bolt's word that nobody in the app listens for this: in Python for anything, in JavaScript, with an
/// empty body, for all but events, which it takes in any case (so there it is a wrong path). A proxy whose app is away says
/// 404, too, in other words: that must not pass for an answer.
fn is_bolts(kind: Kind, response: &Response) -> bool {
    #[derive(serde::Deserialize)]
    struct Said<'a> {
        error: &'a str,
    }
    match serde_json::from_slice(&response.body) {
        Ok(Said { error }) => {
            // Python, Python with middleware, Java.
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
    fn a_404_of_a_proxy_or_of_a_wrong_path_is_no_answer() {
        let said = |kind, body: &[u8]| {
            is_bolts(kind, &Response { status: 404, body: body.into(), retry_after: None })
        };
        assert!(said(Kind::Event, br#"{"error": "unhandled request"}"#));
        assert!(said(Kind::Event, br#"{"error":"no handler found"}"#));
        assert!(said(Kind::Command, b"") && !said(Kind::Event, b""));
        assert!(!said(Kind::Command, b"<html>404 Not Found</html>"));
        assert!(!said(Kind::Command, br#"{"message":"no Route matched"}"#));
    }
}
