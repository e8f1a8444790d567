//! Where a command was given, by whom, and how its person is answered there.

use super::{Desk, Outcome, spoken::Said};
use shared::{
    codec::slack::Command,
    store::{Change, Chat, Effects, What},
    types::{ChannelId, Destination, InvalidId, Outgoing, Surface, TeamId, UserId},
};

/// Where a command was given, and by whom.
#[derive(Clone)]
pub(super) struct Place {
    pub team: TeamId,
    pub channel: ChannelId,
    pub user: UserId,
    pub surface: Surface,
    how: How,
}

/// How it was given, which is how it is answered.
#[derive(Clone)]
enum How {
    /// As a slash command: only its person sees the answer.
    Command { response_url: String },
    /// As a message.
    Message { thread_ts: Option<String> },
}

impl Place {
    /// Where a slash command was given; an id that is none is an error.
    pub fn of_command(desk: &Desk<'_>, command: &Command<'_>) -> Result<Self, InvalidId> {
        let team = match &desk.connection.team {
            Some(team) => team.clone(),
            None => command.team_id.parse()?, // a preview connection or an organisation: the webhook says where
        };
        let channel: ChannelId = command.channel_id.parse()?;
        let surface = if channel.is_direct_message() { Surface::Dm } else { Surface::Channel };
        let how = How::Command { response_url: command.response_url.to_string() };
        Ok(Self { team, channel, user: command.user_id.parse()?, surface, how })
    }

    /// Where a message was said.
    pub fn of_message(said: &Said<'_>) -> Result<Self, InvalidId> {
        let thread = said.thread_ts.or((!said.direct).then_some(said.ts));
        Ok(Self {
            team: said.team.clone(),
            channel: said.channel.clone(),
            user: said.user.parse()?,
            surface: said.surface(),
            how: How::Message { thread_ts: thread.map(str::to_owned) },
        })
    }

    /// The conversation.
    pub fn chat(&self, desk: &Desk<'_>) -> Chat {
        let (team, channel) = (self.team.clone(), self.channel.clone());
        Chat { connection: desk.connection.id, team, channel }
    }

    /// Says something, and changes nothing.
    pub fn say(&self, text: &str) -> Outcome {
        Effects { say: vec![self.reply(text)], outcome: "done", ..Effects::default() }.into()
    }

    /// Changes something, and says one thing if there was something to change and another if not.
    pub fn change(self, what: What, changed: &str, unchanged: &str) -> Outcome {
        let (changed, unchanged) = (changed.to_owned(), unchanged.to_owned());
        let reply = move |did| vec![self.reply(if did { &changed } else { &unchanged })];
        let change = Change { what, reply: Box::new(reply) };
        Effects { changes: vec![change], outcome: "done", ..Effects::default() }.into()
    }

    /// Says something to the person; where it can be, only to them.
    pub fn reply(&self, text: &str) -> Outgoing {
        match &self.how {
            How::Command { response_url } => Outgoing {
                to: Destination::response_url(
                    response_url.as_str(),
                    self.channel.clone(),
                    self.user.clone(),
                ),
                message: serde_json::json!({ "response_type": "ephemeral", "text": text }),
            },
            How::Message { thread_ts } => Outgoing {
                to: match self.surface {
                    Surface::Dm => Destination::PostMessage {
                        channel: self.channel.clone(),
                        thread_ts: thread_ts.clone(),
                    },
                    Surface::Channel => Destination::PostEphemeral {
                        channel: self.channel.clone(),
                        user: self.user.clone(),
                        thread_ts: thread_ts.clone(),
                    },
                },
                message: serde_json::json!({ "text": text }),
            },
        }
    }
}
