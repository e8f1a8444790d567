//! Notices that only the person behind a webhook sees.

use super::{Webhook, agent_message};
use serde_json::json;
use shared::{
    domain::{Destination, OutgoingMessage, TeamId},
    slack::{Command, InboundPayload},
};

/// Text for a person whose webhook waits for its agent.
pub(crate) const WAITING: &str =
    "The agent has not answered yet. Your request waits for it; no need to send it again.";

/// Escapes a name for a text in Slack's mrkdwn.
pub(crate) fn escape(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Returns the response_url of a command, with the channel and person as fallback.
pub(crate) fn response_url(command: &Command<'_>) -> Destination {
    let url = command.response_url.to_string();
    match (command.channel_id.parse(), command.user_id.parse()) {
        (Ok(channel), Ok(user)) => Destination::response_url(url, channel, user),
        _ => Destination::ResponseUrl { url, fallback: None },
    }
}

/// Returns a notice to the person behind a webhook, or `None` if the body names no person or
/// channel.
/// `team` is the connection's.
pub(crate) fn notice(
    webhook: &Webhook<'_>,
    team: Option<&TeamId>,
    text: &str,
) -> Option<OutgoingMessage> {
    let ephemeral = json!({ "response_type": "ephemeral", "text": text });
    match &webhook.inbound {
        InboundPayload::Command(command) => {
            Some(OutgoingMessage { to: response_url(command), message: ephemeral })
        }
        InboundPayload::Interaction(interaction) => {
            let url = interaction.response_url.get()?.to_owned();
            let to = Destination::ResponseUrl { url, fallback: None };
            Some(OutgoingMessage { to, message: ephemeral })
        }
        InboundPayload::Event(_) => {
            let message = agent_message(webhook, team)?;
            let user = message.user.parse().ok()?;
            let thread = message.thread_ts.or((!message.in_direct_message).then_some(message.ts));
            let (channel, thread_ts) = (message.channel.clone(), thread.map(str::to_owned));
            let to = Destination::PostEphemeral { channel, user, thread_ts };
            Some(OutgoingMessage { to, message: json!({ "text": text }) })
        }
        InboundPayload::Unparsable => None,
    }
}
