//! Tidegate's commands, in one table for slash commands and text messages.
//!
//! The answer to a command goes to its author and, where Slack allows it, only to its author.

mod text;
mod invocation;
mod link;
mod agents;
mod session;

pub(super) use agents::unlinked_text;
pub(crate) use invocation::CommandInvocation;

use super::{Input, NamedAgentQuery, Webhook, messages};
use shared::{
    domain::{InvalidIdError, Surface},
    slack::InboundPayload,
    store::{ConnectionFacts, Effects, ProcessedAs},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subcommand {
    Help,
    Status,
    Link,
    Unlink,
    Agents,
    Try,
    New,
    Clear,
}

/// Rows: subcommand, word, argument, description, and true if it is only for preview connections.
const TABLE: [(Subcommand, &str, &str, &str, bool); 8] = [
    (Subcommand::Help, "help", "", "lists the commands", false),
    (Subcommand::Status, "status", "", "shows the agent that answers here", false),
    (Subcommand::Link, "link", "<code>", "links this conversation to an agent", false),
    (Subcommand::Unlink, "unlink", "", "removes the link", false),
    (Subcommand::Agents, "agents", "", "lists agents to try", true),
    (Subcommand::Try, "try", "<agent>", "links this conversation to one of them", true),
    (Subcommand::New, "new", "", "starts a new session with the agent", false),
    (Subcommand::Clear, "clear", "", "asks the agent to forget, and starts a new session", false),
];

/// Returns the subcommand of a word, and the maximum number of words after it.
fn find_subcommand(word: &str) -> Option<(Subcommand, usize)> {
    let word = link::plain(word).trim_matches(['-', '_']).to_lowercase();
    let row = TABLE.iter().find(|(_, name, ..)| *name == word)?;
    Some((row.0, usize::from(!row.2.is_empty())))
}

/// Parses the text of a command. Returns the subcommand, `None` if it is unknown, and its argument,
/// which may be a code with spaces. An empty text is `help`.
fn parse(text: &str) -> (Option<Subcommand>, Option<String>) {
    let mut words = text.split_whitespace().map(link::plain).filter(|word| !word.is_empty());
    let subcommand =
        find_subcommand(&words.next().unwrap_or("help".into())).map(|(subcommand, _)| subcommand);
    let rest: Vec<String> = words.collect();
    let all = rest.concat();
    let is_code = rest.len() > 1 && link::parse_code(&all).is_some();
    (subcommand, if is_code { Some(all) } else { rest.into_iter().next() })
}

/// Returns the command in a webhook, with its text. A malformed id is an error.
pub(super) fn find(
    input: &Input<'_>,
) -> Option<Result<(CommandInvocation, String), InvalidIdError>> {
    let (connection, options) = (input.connection, input.options);
    match &input.webhook.inbound {
        // Without an app or a handler every slash command is Tidegate's.
        InboundPayload::Command(command)
            if command.command == options.slash_command
                || !(options.own_handler || input.app().is_some()) =>
        {
            let invocation = CommandInvocation::of_command(connection, command);
            Some(invocation.map(|invocation| (invocation, command.text.to_string())))
        }
        InboundPayload::Event(_) if !options.own_handler => {
            let message = messages::read(input).ok()?;
            text::command(input.webhook, connection, &message, &options.slash_command).map(Ok)
        }
        _ => None,
    }
}

/// Returns the query for the named agents that the command in a webhook needs.
pub(super) fn named_agent_query(input: &Input<'_>) -> NamedAgentQuery {
    let Some(Ok((invocation, text))) = find(input) else { return NamedAgentQuery::None };
    if invocation.is_guest || !input.is_enabled_on(invocation.surface) {
        return NamedAgentQuery::None;
    }
    let (subcommand, argument) = parse(&text);
    match (subcommand, argument.as_deref()) {
        (Some(Subcommand::Link), Some(word)) => link::named_agent_query(&invocation, word),
        (Some(Subcommand::Agents | Subcommand::Try), _) if input.connection.preview_mode => {
            NamedAgentQuery::OfOrganization(input.connection.org.clone())
        }
        _ => NamedAgentQuery::None,
    }
}

pub(super) fn run(input: &Input<'_>, invocation: CommandInvocation, text: &str) -> Effects {
    if invocation.is_guest {
        return invocation.answer("Only members of this workspace can use commands of this app.");
    }
    let (subcommand, argument) = parse(text);
    let argument = argument.as_deref();
    let Some(subcommand) = subcommand else {
        return invocation
            .answer(&format!("Unknown command. Use `{} help`.", input.options.slash_command));
    };
    if subcommand != Subcommand::Help && !input.is_enabled_on(invocation.surface) {
        return invocation.answer(&disabled_text(&input.connection.settings.surfaces));
    }
    if matches!(subcommand, Subcommand::Link | Subcommand::Unlink | Subcommand::Try)
        && let Some(why) = link::refusal(input, &invocation)
    {
        return invocation.answer(&why);
    }
    if matches!(subcommand, Subcommand::Link | Subcommand::Try)
        && !link::may_be_in(input, &invocation)
    {
        return invocation.answer(
            "This app isn't known to be in this conversation, so nothing was linked. Add the app \
             here or write it a message, then use the command again.",
        );
    }
    match subcommand {
        Subcommand::Help => invocation.answer(&help_text(input)),
        Subcommand::Status => agents::status(input, &invocation),
        Subcommand::Link => link::link(input, invocation, argument),
        Subcommand::Unlink => link::unlink(invocation),
        Subcommand::Agents => agents::list(input, &invocation),
        Subcommand::Try => agents::try_agent(input, invocation, argument),
        Subcommand::New => session::new(input, invocation),
        Subcommand::Clear => session::clear(input, &invocation),
    }
}

/// Returns the `clear` command in a delivery to an agent in mode `reply`, if it has one. The answer
/// is [`CommandInvocation::clear_change`] or [`CommandInvocation::clear_failure`].
pub(crate) fn clear_command(
    webhook: &Webhook<'_>,
    connection: &ConnectionFacts,
    slash_command: &str,
) -> Option<CommandInvocation> {
    let (invocation, text) = match &webhook.inbound {
        InboundPayload::Command(command) => {
            (CommandInvocation::of_command(connection, command).ok()?, command.text.to_string())
        }
        _ => {
            let message = messages::agent_message(webhook, connection.team.as_ref())?;
            text::command(webhook, connection, &message, slash_command)?
        }
    };
    (!invocation.is_guest && parse(&text).0 == Some(Subcommand::Clear)).then_some(invocation)
}

fn help_text(input: &Input<'_>) -> String {
    let name = &input.options.slash_command;
    let rows = TABLE.iter().filter(|(.., preview)| !preview || input.connection.preview_mode);
    rows.map(|(_, word, argument, does, _)| {
        let argument = if argument.is_empty() { String::new() } else { format!(" {argument}") };
        format!("`{name} {word}{argument}` {does}.")
    })
    .collect::<Vec<_>>()
    .join("\n")
}

fn disabled_text(surfaces: &[Surface]) -> String {
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
