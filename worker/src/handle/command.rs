//! The slash command: its first word picks what is done. One table.
//!
//! In: a command. Out: an outcome that always says something to the person, and only to them.

use super::{Desk, Outcome, link, place::Place};
use shared::codec::slack::Command;

pub(super) async fn handle(desk: &Desk<'_>, command: &Command<'_>) -> Outcome {
    let place = match Place::of(desk, command) {
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
        "help" => place.say(&help(name)),
        "link" => link::handle(desk, place, words.next()),
        _ => place.say(&format!("I don't know that one.\n{}", help(name))),
    }
}

fn help(name: &str) -> String {
    format!("`{name} link <code>` links this conversation to an agent.\n`{name} help` shows this.")
}
