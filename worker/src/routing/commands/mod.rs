//! Tidegate's commands, in one table for slash commands and text messages.
//!
//! A command answers its author and, where Slack allows that, only its author.

mod text;
mod invocation;
mod link;
mod agents;
mod session;

pub(super) use agents::unlinked;
pub(crate) use invocation::Invocation;

use super::{Input, NamedAgentQuery, Webhook, messages};
use shared::{
    codec::slack::Inbound,
    store::{ConnectionFacts, Effects, ProcessedAs},
    types::{InvalidId, Surface},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Help,
    Status,
    Link,
    Unlink,
    Agents,
    Try,
    New,
    Clear,
}

/// Rows: verb, word, argument, description, and whether it is for preview connections alone.
const TABLE: [(Verb, &str, &str, &str, bool); 8] = [
    (Verb::Help, "help", "", "lists the commands", false),
    (Verb::Status, "status", "", "shows the agent that answers here", false),
    (Verb::Link, "link", "<code>", "links this conversation to an agent", false),
    (Verb::Unlink, "unlink", "", "removes the link", false),
    (Verb::Agents, "agents", "", "lists agents to try", true),
    (Verb::Try, "try", "<agent>", "links this conversation to one of them", true),
    (Verb::New, "new", "", "starts a new session with the agent", false),
    (Verb::Clear, "clear", "", "asks the agent to forget, and starts a new session", false),
];

/// Returns the verb of a word, and the maximum number of words after it.
fn verb(word: &str) -> Option<(Verb, usize)> {
    let word = word.trim_start_matches('/').to_lowercase();
    let row = TABLE.iter().find(|(_, name, ..)| *name == word)?;
    Some((row.0, usize::from(!row.2.is_empty())))
}

/// Returns the verb of a command and its argument. No text is `help`; no verb is an unknown
/// command.
fn parse(text: &str) -> (Option<Verb>, Option<&str>) {
    let mut words = text.split_whitespace();
    let verb = verb(words.next().unwrap_or("help")).map(|(verb, _)| verb);
    (verb, words.next())
}

/// Returns the command in a webhook, with its text. A malformed id is an error.
pub(super) fn find(input: &Input<'_>) -> Option<Result<(Invocation, String), InvalidId>> {
    let (connection, options) = (input.connection, input.options);
    match &input.webhook.inbound {
        // Without an app or a handler every slash command is Tidegate's.
        Inbound::Command(command)
            if command.command == options.slash_command
                || !(options.own_handler || input.app().is_some()) =>
        {
            let invocation = Invocation::of_command(connection, command);
            Some(invocation.map(|invocation| (invocation, command.text.to_string())))
        }
        Inbound::Event(_) if !options.own_handler => {
            let message = messages::read(input).ok()?;
            text::command(connection, &message, &options.slash_command).map(Ok)
        }
        _ => None,
    }
}

/// Returns the query for the named agents that the command in a webhook needs.
pub(super) fn named_agent_query(input: &Input<'_>) -> NamedAgentQuery {
    let Some(Ok((invocation, text))) = find(input) else { return NamedAgentQuery::None };
    if !input.works_in(invocation.surface) {
        return NamedAgentQuery::None;
    }
    match parse(&text) {
        (Some(Verb::Link), Some(word)) => link::named_agent_query(&invocation, word),
        (Some(Verb::Agents | Verb::Try), _) if input.connection.preview_mode => {
            NamedAgentQuery::OfOrganization(input.connection.org.clone())
        }
        _ => NamedAgentQuery::None,
    }
}

pub(super) fn run(input: &Input<'_>, invocation: Invocation, text: &str) -> Effects {
    let (verb, argument) = parse(text);
    let Some(verb) = verb else {
        return invocation
            .answer(&format!("Unknown command. Use `{} help`.", input.options.slash_command));
    };
    if verb != Verb::Help && !input.works_in(invocation.surface) {
        return invocation.answer(&disabled(&input.connection.settings.surfaces));
    }
    match verb {
        Verb::Help => invocation.answer(&help(input)),
        Verb::Status => agents::status(input, &invocation),
        Verb::Link => link::link(input, invocation, argument),
        Verb::Unlink => link::unlink(invocation),
        Verb::Agents => agents::list(input, &invocation),
        Verb::Try => agents::try_agent(input, invocation, argument),
        Verb::New => session::new(input, invocation),
        Verb::Clear => session::clear(input, &invocation),
    }
}

/// Returns the `clear` command in a delivery to an agent in mode `reply`, if it has one. The answer
/// is [`Invocation::cleared`] or [`Invocation::not_cleared`].
pub(crate) fn clear_command(
    webhook: &Webhook<'_>,
    connection: &ConnectionFacts,
    slash_command: &str,
) -> Option<Invocation> {
    let (invocation, text) = match &webhook.inbound {
        Inbound::Command(command) => {
            (Invocation::of_command(connection, command).ok()?, command.text.to_string())
        }
        _ => {
            let message = messages::agent_message(webhook, connection.team.as_ref())?;
            text::command(connection, &message, slash_command)?
        }
    };
    (parse(&text).0 == Some(Verb::Clear)).then_some(invocation)
}

fn help(input: &Input<'_>) -> String {
    let name = &input.options.slash_command;
    let rows = TABLE.iter().filter(|(.., preview)| !preview || input.connection.preview_mode);
    rows.map(|(_, word, argument, does, _)| {
        let argument = if argument.is_empty() { String::new() } else { format!(" {argument}") };
        format!("`{name} {word}{argument}` {does}.")
    })
    .collect::<Vec<_>>()
    .join("\n")
}

fn disabled(surfaces: &[Surface]) -> String {
    let disabled = "This app is disabled in this type of conversation.";
    match surfaces {
        [] => disabled.into(),
        surfaces => format!("{disabled} Use it in {}.", surface_names(surfaces)),
    }
}

fn surface_names(surfaces: &[Surface]) -> String {
    let names: Vec<&str> = surfaces
        .iter()
        .map(|surface| match surface {
            Surface::Dm => "a direct message with this app",
            Surface::Channel => "a channel",
        })
        .collect();
    names.join(" or ")
}

/// Returns the effects of a command that changes nothing.
fn effects() -> Effects {
    Effects::new(ProcessedAs::Command)
}
