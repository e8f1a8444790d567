//! Commands: the first word picks what is done. One table, for the slash form and for what is said as text.
//!
//! In: words, and where they were said. Out: an outcome that always says something to the person, and, where Slack lets
//! it, only to them.

use super::{Desk, Outcome, link, place::Place, roster, session};
use shared::{codec::slack::Command, types::Surface};

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Help,
    Status,
    Link,
    Unlink,
    Agents,
    Try,
    New,
    Clear,
}

/// A verb's word, what may follow it, what it does, and whether it is for preview connections alone.
const TABLE: [(Verb, &str, &str, &str, bool); 8] = [
    (Verb::Help, "help", "", "shows this", false),
    (Verb::Status, "status", "", "says who answers here", false),
    (Verb::Link, "link", "<code>", "links this conversation to an agent", false),
    (Verb::Unlink, "unlink", "", "ends that", false),
    (Verb::Agents, "agents", "", "lists agents to try", true),
    (Verb::Try, "try", "<agent>", "links this conversation to one of them", true),
    (Verb::New, "new", "", "begins a new session with the agent", false),
    (Verb::Clear, "clear", "", "asks the agent to forget, and begins a new session", false),
];

/// The verb of a word, and how many words may follow it.
pub(super) fn verb(word: &str) -> Option<(Verb, usize)> {
    let word = word.trim_start_matches('/').to_lowercase();
    let row = TABLE.iter().find(|(_, name, ..)| *name == word)?;
    Some((row.0, usize::from(!row.2.is_empty())))
}

/// A slash command.
pub(super) async fn handle(desk: &Desk<'_>, command: &Command<'_>) -> Outcome {
    match Place::of_command(desk, command) {
        Ok(place) => run(desk, place, &command.text).await,
        Err(error) => Outcome::Dead {
            reason: "a command without team, channel or user".into(),
            error: error.to_string(),
        },
    }
}

/// Does what the words ask for.
pub(super) async fn run(desk: &Desk<'_>, place: Place, text: &str) -> Outcome {
    let mut words = text.split_whitespace();
    let (word, argument) = (words.next().unwrap_or("help"), words.next());
    let Some((verb, _)) = verb(word) else {
        return place.say(&format!("I don't know that one.\n{}", help(desk)));
    };
    if verb == Verb::Help {
        return place.say(&help(desk));
    }
    if !desk.connection.settings.surfaces.contains(&place.surface) {
        return place.say(&elsewhere(&desk.connection.settings.surfaces));
    }
    let done = match verb {
        Verb::Help => Ok(place.say(&help(desk))),
        Verb::Status => roster::status(desk, &place).await,
        Verb::Link => link::link(desk, place, argument).await,
        Verb::Unlink => Ok(link::unlink(desk, place)),
        Verb::Agents => roster::agents(desk, &place).await,
        Verb::Try => roster::attempt(desk, place, argument).await,
        Verb::New => session::new(desk, place).await,
        Verb::Clear => session::clear(desk, place).await,
    };
    done.unwrap_or_else(|error| Outcome::of_store(&error))
}

fn help(desk: &Desk<'_>) -> String {
    let name = &desk.workshop.command;
    let rows = TABLE.iter().filter(|(.., preview)| !preview || desk.connection.preview_mode);
    rows.map(|(_, word, argument, does, _)| {
        let argument = if argument.is_empty() { String::new() } else { format!(" {argument}") };
        format!("`{name} {word}{argument}` {does}.")
    })
    .collect::<Vec<_>>()
    .join("\n")
}

fn elsewhere(surfaces: &[Surface]) -> String {
    match surfaces {
        [] => "I am switched off here.".into(),
        surfaces => format!("I am switched off here. Use me in {}.", link::places(surfaces)),
    }
}
