//! Commands `link` and `unlink`.
//!
//! One effect consumes the code and carries the reply for each result, which only the transaction
//! knows. A declared member of an organization links its agents by name, without a code. If several
//! organizations have an agent of this name, the name must include the organization.

use super::{
    super::{NamedAgentQuery, notices::escape},
    CommandInvocation, Input, effects, surface_names,
};
use shared::{
    domain::{AgentId, LinkBy, LinkCode, OrgId},
    store::{ConversationChange, Effects, LinkCodeResult, LinkCodeUse, NamedAgent},
};

/// Returns the query for the agents that a person may link by this argument.
pub(super) fn named_agent_query(invocation: &CommandInvocation, argument: &str) -> NamedAgentQuery {
    let (_, agent) = organization_and_agent(argument);
    match agent.parse::<AgentId>() {
        Ok(agent) => {
            let (team, user) = (invocation.conversation.team.clone(), invocation.user.clone());
            NamedAgentQuery::Linkable { team, user, agent }
        }
        Err(_) => NamedAgentQuery::None,
    }
}

pub(super) fn link(
    input: &Input<'_>,
    invocation: CommandInvocation,
    argument: Option<&str>,
) -> Effects {
    let name = &input.options.slash_command;
    let Some(argument) = argument else {
        let usage = format!("Use `{name} link <code>` with the code you were given.");
        return invocation.answer(&usage);
    };
    let connection = input.connection;
    let (org, _) = organization_and_agent(argument);
    // A bot links only agents of its own organization, except a preview bot.
    let may_link = |found: &&NamedAgent| {
        (connection.preview_mode || found.org == connection.org)
            && org.as_ref().is_none_or(|org| *org == found.org)
    };
    let found: Vec<&NamedAgent> = input.named_agents.iter().filter(may_link).collect();
    match found[..] {
        [] => consume(invocation, argument),
        [agent] => bind(invocation, agent),
        _ => {
            let of = |a: &&NamedAgent| format!("`{name} link {}/{}`", a.org, a.agent);
            let words: Vec<String> = found.iter().map(of).collect();
            invocation
                .answer(&format!("Several agents have this name. Use {}.", words.join(" or ")))
        }
    }
}

pub(super) fn unlink(invocation: CommandInvocation) -> Effects {
    let (changed, unchanged) =
        ("Unlinked. The agent no longer answers here.", "This conversation isn't linked.");
    let action = ConversationChange::Unbind {
        conversation: invocation.conversation.clone(),
        by: invocation.user.clone(),
    };
    let announcement = Some("unlinked this channel from its agent.".to_owned());
    let change = invocation.change(action, changed, unchanged, announcement);
    Effects { changes: vec![change], ..effects() }
}

/// Returns the reason why a person may not change the link of a conversation, or `None`.
pub(super) fn refusal(input: &Input<'_>, invocation: &CommandInvocation) -> Option<String> {
    let binder = input.facts.conversation.linked_by.as_ref();
    match input.connection.settings.link_by {
        _ if input.facts.is_admin => None,
        LinkBy::Anyone => None,
        LinkBy::Binder => binder.filter(|by| **by != invocation.user).map(|by| {
            format!("Only <@{by}> and administrators of this app can change the link here.")
        }),
        LinkBy::Admins => Some("Only administrators of this app can change links.".into()),
    }
}

/// Returns whether the app may be in the conversation of a command. Slack accepts commands in
/// private conversations that the app is not in and can neither read nor write.
pub(super) fn may_be_in(input: &Input<'_>, invocation: &CommandInvocation) -> bool {
    !invocation.is_private
        || input.facts.channel_known
        || input.facts.conversation.linked_by.is_some()
}

/// Binds the conversation to an agent that the person may link.
pub(super) fn bind(invocation: CommandInvocation, agent: &NamedAgent) -> Effects {
    let NamedAgent { org, agent, name } = agent.clone();
    let (conversation, by) = (invocation.conversation.clone(), invocation.user.clone());
    let action = ConversationChange::Bind { conversation, org, agent, by };
    let announcement = Some(announcement(&name));
    let change = invocation.change(
        action,
        &linked_text(&name),
        "This agent can't be linked here.",
        announcement,
    );
    Effects { changes: vec![change], ..effects() }
}

/// Parses a link code. Ignores quotes, brackets, emphasis and invisible characters around it.
pub(super) fn parse_code(text: &str) -> Option<LinkCode> {
    let is_formatting = |c: char| "*_~`".contains(c) || c.is_whitespace();
    plain(text).replace(is_formatting, "").parse().ok()
}

/// Normalizes a word: removes quotes, brackets, emphasis and punctuation around it and invisible
/// characters, and converts any dash to `-`.
pub(super) fn plain(word: &str) -> String {
    let word: String = word
        .replace("&lt;", "")
        .replace("&gt;", "")
        .chars()
        .filter_map(|c| match c {
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' => None,
            '\u{2060}'..='\u{2069}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' => None,
            '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' | '\u{ff0d}' => {
                Some('-')
            }
            c => Some(c),
        })
        .collect();
    word.trim_matches(|c: char| !c.is_alphanumeric() && !"-_".contains(c)).to_owned()
}

fn organization_and_agent(word: &str) -> (Option<OrgId>, &str) {
    match word.split_once('/') {
        Some((org, agent)) => (org.parse().ok(), agent),
        None => (None, word),
    }
}

fn consume(invocation: CommandInvocation, code: &str) -> Effects {
    let Some(code) = parse_code(code) else {
        return invocation.answer(&result_text(&LinkCodeResult::NotFound));
    };
    let consume = LinkCodeUse {
        code: code.hash(),
        connection: invocation.conversation.connection,
        team: invocation.conversation.team.clone(),
        channel: invocation.conversation.channel.clone(),
        surface: invocation.surface,
        user: invocation.user.clone(),
        reply: Box::new(move |result| {
            let announced = match result {
                LinkCodeResult::Bound { agent, is_new: true } => {
                    invocation.announcement(&announcement(agent))
                }
                _ => None,
            };
            std::iter::once(invocation.reply(&result_text(result))).chain(announced).collect()
        }),
    };
    Effects { consume: Some(consume), ..effects() }
}

fn linked_text(agent: &str) -> String {
    format!("Linked. *{}* answers here now.", escape(agent))
}

fn announcement(agent: &str) -> String {
    format!("linked this channel to the agent *{}*.", escape(agent))
}

/// Returns the text for a result. Invalid codes share one text, which reveals nothing.
fn result_text(result: &LinkCodeResult) -> String {
    match result {
        LinkCodeResult::Bound { agent, .. } => linked_text(agent),
        LinkCodeResult::NotFound | LinkCodeResult::TooManyAttempts => {
            "This code is invalid or expired. Ask for a new one; \
             after several wrong codes, wait 15 minutes."
                .into()
        }
        LinkCodeResult::WrongSurface { allowed } => {
            format!("This code can't be used here. Use it in {}.", surface_names(allowed))
        }
        LinkCodeResult::ForeignApp => {
            "This code is for an app of another organization, which this app does not allow.".into()
        }
        LinkCodeResult::AlreadyUsed => "This code was already used. Ask for a new one.".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pasted_codes() {
        let code = parse_code("7K3M-Q2XW-9FHA");
        assert!(code.is_some());
        for typed in [
            "`7k3m-q2xw-9fha`",
            "*7K3M-Q2XW-9FHA*",
            "_7K3M-Q2XW-9FHA_.",
            "*`7K3M`*-_Q2XW_-9FHA!",
            "7K3M - Q2XW - 9FHA",
            "\u{201c}7K3M-Q2XW-9FHA\u{201d}",
            "\u{ab}7K3M-Q2XW-9FHA\u{bb}",
            "<7K3M-Q2XW-9FHA>",
            "&lt;7K3M-Q2XW-9FHA&gt;",
            "(7K3M-Q2XW-9FHA)",
            "7K3M\u{2013}Q2XW\u{2011}9FHA",
            "\u{feff}7K3M-\u{200b}Q2XW-9FHA\u{200b}",
            "7K3MQ2XW9FHA",
        ] {
            assert_eq!(parse_code(typed), code, "{typed:?}");
        }
        for typed in ["", "-", "link", "7K3M-Q2XW-9FH", "7K3M-Q2XW-9FHAA"] {
            assert_eq!(parse_code(typed), None, "{typed:?}");
        }
    }

    #[test]
    fn names_reason_of_refused_code() {
        let allowed = vec![shared::domain::Surface::Dm];
        let text = result_text(&LinkCodeResult::WrongSurface { allowed });
        assert_eq!(text, "This code can't be used here. Use it in a direct message with this app.");
    }
}
