//! The slash command: its first word picks what is done. One table.
//!
//! In: a command. Out: an outcome that always says something to the person, and only to them.

use super::{Desk, Outcome, link};
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
    /// Says something that only the person sees.
    pub fn reply(&self, text: &str) -> Outgoing {
        Outgoing {
            to: Destination::ResponseUrl { url: self.response_url.clone() },
            message: serde_json::json!({ "response_type": "ephemeral", "text": text }),
        }
    }
}

pub(super) async fn handle(desk: &Desk<'_>, command: &Command<'_>) -> Outcome {
    let place = match place(desk, command) {
        Ok(place) => place,
        Err(error) => {
            return Outcome::Dead {
                reason: "a command without team, channel or user".into(),
                error: error.to_string(),
            };
        }
    };
    let name = &desk.workshop.command;
    let mut words = command.text.split_whitespace();
    let word = words.next().unwrap_or("help").to_lowercase();
    match word.trim_start_matches('/') {
        "help" => say(&place, &help(name)),
        "link" => link::handle(desk, place, words.next()),
        _ => say(&place, &format!("I don't know that one.\n{}", help(name))),
    }
}

fn place(desk: &Desk<'_>, command: &Command<'_>) -> Result<Place, InvalidId> {
    let team = match &desk.connection.team {
        Some(team) => team.clone(),
        None => command.team_id.parse()?, // a preview connection or an organisation: the webhook says where
    };
    Ok(Place {
        team,
        channel: command.channel_id.parse()?,
        user: command.user_id.parse()?,
        response_url: command.response_url.to_string(),
    })
}

fn help(name: &str) -> String {
    format!("`{name} link <code>` links this conversation to an agent.\n`{name} help` shows this.")
}

pub(super) fn say(place: &Place, text: &str) -> Outcome {
    Outcome::Done(Box::new(Effects {
        say: vec![place.reply(text)],
        outcome: "done",
        ..Effects::default()
    }))
}
