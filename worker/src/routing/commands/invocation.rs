//! Place and author of a command, and the destination of its answer.

use super::{super::messages::AgentMessage, effects};
use serde_json::json;
use shared::{
    codec::slack::Command,
    store::{Change, Chat, ConnectionFacts, Effects, What},
    types::{ChannelId, Destination, InvalidId, Outgoing, Surface, UserId},
};

/// Command that a person gave in a conversation.
#[derive(Clone)]
pub(crate) struct Invocation {
    pub chat: Chat,
    pub user: UserId,
    pub(super) surface: Surface,
    /// Destination of the answer.
    to: Destination,
}

impl Invocation {
    /// Returns the invocation of a slash command, whose answer only its author sees.
    pub(super) fn of_command(
        connection: &ConnectionFacts,
        command: &Command<'_>,
    ) -> Result<Self, InvalidId> {
        let team = match &connection.team {
            Some(team) => team.clone(),
            // The webhook names the workspace on a preview connection or an organization's.
            None => command.team_id.parse()?,
        };
        let channel: ChannelId = command.channel_id.parse()?;
        let user: UserId = command.user_id.parse()?;
        let surface = if channel.is_direct_message() { Surface::Dm } else { Surface::Channel };
        let to = Destination::response_url(&*command.response_url, channel.clone(), user.clone());
        Ok(Self { chat: Chat { connection: connection.id, team, channel }, user, surface, to })
    }

    /// Returns the invocation of a command in a text message, or of a notice about a message.
    pub(in crate::routing) fn of_message(
        connection: &ConnectionFacts,
        message: &AgentMessage<'_>,
    ) -> Result<Self, InvalidId> {
        let (team, channel) = (message.team.clone(), message.channel.clone());
        let (user, surface): (UserId, _) = (message.user.parse()?, message.surface());
        let in_thread = surface == Surface::Channel;
        let thread_ts = message.thread_ts.or(in_thread.then_some(message.ts)).map(str::to_owned);
        let to = match surface {
            Surface::Dm => Destination::PostMessage { channel: channel.clone(), thread_ts },
            Surface::Channel => Destination::PostEphemeral {
                channel: channel.clone(),
                user: user.clone(),
                thread_ts,
            },
        };
        Ok(Self { chat: Chat { connection: connection.id, team, channel }, user, surface, to })
    }

    /// Returns a text to the author; only the author sees it where Slack allows that.
    pub(in crate::routing) fn reply(&self, text: &str) -> Outgoing {
        let message = match &self.to {
            Destination::ResponseUrl { .. } => {
                json!({ "response_type": "ephemeral", "text": text })
            }
            _ => json!({ "text": text }),
        };
        Outgoing { to: self.to.clone(), message }
    }

    /// Returns the effects of a command that only answers.
    pub(super) fn answer(&self, text: &str) -> Effects {
        Effects { messages: vec![self.reply(text)], ..effects() }
    }

    /// Returns a change with a text for either result.
    pub(super) fn change(self, what: What, changed: &str, unchanged: &str) -> Change {
        let (changed, unchanged) = (changed.to_owned(), unchanged.to_owned());
        let reply = move |did| vec![self.reply(if did { &changed } else { &unchanged })];
        Change { what, reply: Box::new(reply) }
    }
}
