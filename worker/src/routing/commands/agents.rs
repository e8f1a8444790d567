//! Commands `status`, `agents` and `try`.
//!
//! The agents of an organization are listed and tried only on its preview connection: another bot
//! of the organization must not show or offer them.

use super::{super::notices::escape, CommandInvocation, Input, link};
use shared::store::{Effects, NamedAgent};

pub(super) fn status(input: &Input<'_>, invocation: &CommandInvocation) -> Effects {
    let state = &input.facts.conversation;
    let Some(agent) = &state.agent else { return invocation.answer(&unlinked_text(input)) };
    let (name, session) = (escape(&agent.name), state.session);
    invocation.answer(&match &state.linked_by {
        Some(by) => format!("*{name}* answers here, linked by <@{by}>. Session {session}."),
        None => format!("*{name}* answers here by default. Session {session}."),
    })
}

pub(super) fn list(input: &Input<'_>, invocation: &CommandInvocation) -> Effects {
    if !input.connection.preview_mode {
        return invocation.answer(&preview_only(input));
    }
    invocation.answer(&menu(input))
}

/// Runs `try`, a keyword in Rust.
pub(super) fn try_agent(
    input: &Input<'_>,
    invocation: CommandInvocation,
    argument: Option<&str>,
) -> Effects {
    if !input.connection.preview_mode {
        return invocation.answer(&preview_only(input));
    }
    let mut agents = agents_to_try(input);
    match agents.find(|agent| Some(agent.agent.as_str()) == argument) {
        Some(agent) => link::bind(invocation, agent),
        None => invocation.answer(&menu(input)),
    }
}

/// Returns the text for a conversation without an agent.
pub(in crate::routing) fn unlinked_text(input: &Input<'_>) -> String {
    let name = &input.options.slash_command;
    let text = format!(
        "This conversation isn't linked to an agent. \
         Ask the owner of an agent for a code, then use `{name} link <code>`."
    );
    if input.connection.preview_mode {
        format!("{text} Use `{name} agents` to list agents to try.")
    } else {
        text
    }
}

fn agents_to_try<'a>(input: &Input<'a>) -> impl Iterator<Item = &'a NamedAgent> {
    let own = input.facts.own_agent.as_ref().map(|own| &own.id);
    input.named_agents.iter().filter(move |agent| Some(&agent.agent) != own)
}

fn menu(input: &Input<'_>) -> String {
    let name = &input.options.slash_command;
    let row = |a: &NamedAgent| format!("`{name} try {}` for *{}*", a.agent, escape(&a.name));
    let rows: Vec<String> = agents_to_try(input).map(row).collect();
    if rows.is_empty() { "No agents are available to try.".into() } else { rows.join("\n") }
}

fn preview_only(input: &Input<'_>) -> String {
    let name = &input.options.slash_command;
    format!("This command is for preview apps. Use `{name} link <code>` here.")
}
