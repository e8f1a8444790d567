//! Where a command was given, and how its person is answered there.

use super::{Desk, Outcome};
use shared::{
    codec::slack::Command,
    store::Effects,
    types::{ChannelId, Destination, InvalidId, Outgoing, TeamId, UserId},
};

/// Where a command was given, and by whom.
pub(super) struct Place {
    pub team: TeamId,
    pub channel: ChannelId,
    pub user: UserId,
    pub response_url: String,
}

impl Place {
    /// Reads it; an id that is none is an error.
    pub fn of(desk: &Desk<'_>, command: &Command<'_>) -> Result<Self, InvalidId> {
        let team = match &desk.connection.team {
            Some(team) => team.clone(),
            None => command.team_id.parse()?, // a preview connection or an organisation: the webhook says where
        };
        Ok(Self {
            team,
            channel: command.channel_id.parse()?,
            user: command.user_id.parse()?,
            response_url: command.response_url.to_string(),
        })
    }

    /// Says something, and changes nothing.
    pub fn say(&self, text: &str) -> Outcome {
        Effects { say: vec![self.reply(text)], outcome: "done", ..Effects::default() }.into()
    }

    /// Says something that only the person sees.
    pub fn reply(&self, text: &str) -> Outgoing {
        Outgoing {
            to: Destination::response_url(
                self.response_url.as_str(),
                self.channel.clone(),
                self.user.clone(),
            ),
            message: serde_json::json!({ "response_type": "ephemeral", "text": text }),
        }
    }
}
