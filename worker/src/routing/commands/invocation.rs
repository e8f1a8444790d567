//! Conversation and author of a command, and the destination of its answer.

use super::{super::messages::AgentMessage, effects};
use serde_json::json;
use shared::{
    domain::{ChannelId, Destination, InvalidIdError, OutgoingMessage, Surface, UserId},
    slack::Command,
    store::{Change, ConnectionFacts, ConversationChange, ConversationKey, Effects},
};

/// Command that a person gave in a conversation.
#[derive(Clone)]
pub(crate) struct CommandInvocation {
    pub conversation: ConversationKey,
    pub user: UserId,
    pub(super) surface: Surface,
    /// True for a person of another company, who may share the channel.
    pub(super) is_guest: bool,
    /// True if Slack accepts the command though the app may not be in the conversation and can
    /// never join it by itself.
    pub(super) is_private: bool,
    /// Destination of the answer.
    to: Destination,
}

impl CommandInvocation {
    /// Returns the invocation of a slash command. Only its author sees the answer.
    pub(super) fn of_command(
        connection: &ConnectionFacts,
        command: &Command<'_>,
    ) -> Result<Self, InvalidIdError> {
        let team = match &connection.team {
            Some(team) => team.clone(),
            // The webhook names the workspace on a preview connection or an organization's.
            None => command.team_id.parse()?,
        };
        let channel: ChannelId = command.channel_id.parse()?;
        let user: UserId = command.user_id.parse()?;
        let surface = if channel.is_direct_message() { Surface::Dm } else { Surface::Channel };
        let to = Destination::response_url(&*command.response_url, channel.clone(), user.clone());
        let name = &*command.channel_name;
        let is_private =
            matches!(name, "directmessage" | "privategroup") || name.starts_with("mpdm-");
        let conversation = ConversationKey { connection: connection.id, team, channel };
        Ok(Self { conversation, user, surface, is_guest: false, is_private, to })
    }

    /// Returns the invocation of a command in a text message, or of a notice about a message.
    pub(in crate::routing) fn of_message(
        connection: &ConnectionFacts,
        message: &AgentMessage<'_>,
    ) -> Result<Self, InvalidIdError> {
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
        let conversation = ConversationKey { connection: connection.id, team, channel };
        Ok(Self { conversation, user, surface, is_guest: false, is_private: false, to })
    }

    /// Returns a message to the author, which only the author sees where Slack allows it.
    pub(in crate::routing) fn reply(&self, text: &str) -> OutgoingMessage {
        let message = match &self.to {
            Destination::ResponseUrl { .. } => {
                json!({ "response_type": "ephemeral", "text": text })
            }
            _ => json!({ "text": text }),
        };
        OutgoingMessage { to: self.to.clone(), message }
    }

    /// Returns the effects of a command that only answers.
    pub(super) fn answer(&self, text: &str) -> Effects {
        Effects { messages: vec![self.reply(text)], ..effects() }
    }

    /// Returns a change with a text for either result. Everyone in a channel sees the announcement
    /// of a change.
    pub(super) fn change(
        self,
        action: ConversationChange,
        changed: &str,
        unchanged: &str,
        announcement: Option<String>,
    ) -> Change {
        let (changed, unchanged) = (changed.to_owned(), unchanged.to_owned());
        let reply = move |did| match did {
            true => {
                let announced = announcement.as_deref().and_then(|text| self.announcement(text));
                std::iter::once(self.reply(&changed)).chain(announced).collect()
            }
            false => vec![self.reply(&unchanged)],
        };
        Change { action, reply: Box::new(reply) }
    }

    /// Returns the message that announces the author's change in a channel.
    pub(super) fn announcement(&self, did: &str) -> Option<OutgoingMessage> {
        let channel =
            Some(&self.conversation.channel).filter(|_| self.surface == Surface::Channel)?;
        let to = Destination::PostMessage { channel: channel.clone(), thread_ts: None };
        Some(OutgoingMessage { to, message: json!({ "text": format!("<@{}> {did}", self.user) }) })
    }
}
