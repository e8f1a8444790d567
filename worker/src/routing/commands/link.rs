//! Commands `link` and `unlink`.
//!
//! One effect consumes the code and carries the reply for each result, which only the transaction
//! knows. A declared member of an organization links its agents by name, without a code. If several
//! organizations have an agent of this name, the name must include the organization.

use super::{super::NamedAgentQuery, Input, Invocation, effects, surface_names};
use shared::{
    store::{ClaimResult, ConsumeClaim, Effects, NamedAgent, What},
    types::{AgentId, ClaimCode, OrgId},
};

/// Returns the query for the agents that a person may link by this argument.
pub(super) fn named_agent_query(invocation: &Invocation, argument: &str) -> NamedAgentQuery {
    let (_, agent) = organization_and_agent(argument);
    match agent.parse::<AgentId>() {
        Ok(agent) => {
            let (team, user) = (invocation.chat.team.clone(), invocation.user.clone());
            NamedAgentQuery::Linkable { team, user, agent }
        }
        Err(_) => NamedAgentQuery::None,
    }
}

pub(super) fn link(input: &Input<'_>, invocation: Invocation, argument: Option<&str>) -> Effects {
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

pub(super) fn unlink(invocation: Invocation) -> Effects {
    let (changed, unchanged) =
        ("Unlinked. The agent no longer answers here.", "This conversation isn't linked.");
    let what = What::Unbind(invocation.chat.clone());
    Effects { changes: vec![invocation.change(what, changed, unchanged)], ..effects() }
}

/// Binds the conversation to an agent that the person may link.
pub(super) fn bind(invocation: Invocation, agent: &NamedAgent) -> Effects {
    let NamedAgent { org, agent, name } = agent.clone();
    let (chat, by) = (invocation.chat.clone(), invocation.user.clone());
    let what = What::Bind { chat, org, agent, by };
    let change = invocation.change(what, &linked(&name), "This agent no longer exists.");
    Effects { changes: vec![change], ..effects() }
}

/// Parses a link code. Ignores quotes, brackets, emphasis and invisible characters around it.
pub(super) fn parse_code(text: &str) -> Option<ClaimCode> {
    strip_formatting(text).parse().ok()
}

/// Returns a word without characters that come from copying or formatting, with any dash as `-`.
pub(super) fn strip_formatting(word: &str) -> String {
    let word = word.replace("&lt;", "").replace("&gt;", "");
    word.trim_matches(|c: char| !c.is_alphanumeric())
        .chars()
        .filter_map(|c| match c {
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' => None,
            '\u{2060}'..='\u{2069}' | '\u{feff}' => None,
            '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' | '\u{ff0d}' => {
                Some('-')
            }
            c => Some(c),
        })
        .collect()
}

fn organization_and_agent(word: &str) -> (Option<OrgId>, &str) {
    match word.split_once('/') {
        Some((org, agent)) => (org.parse().ok(), agent),
        None => (None, word),
    }
}

fn consume(invocation: Invocation, code: &str) -> Effects {
    let Some(code) = parse_code(code) else {
        return invocation.answer(&text(&ClaimResult::NotFound));
    };
    let consume = ConsumeClaim {
        code: code.hash(),
        connection: invocation.chat.connection,
        team: invocation.chat.team.clone(),
        channel: invocation.chat.channel.clone(),
        surface: invocation.surface,
        user: invocation.user.clone(),
        reply: Box::new(move |result| vec![invocation.reply(&text(result))]),
    };
    Effects { consume: Some(consume), ..effects() }
}

fn linked(agent: &str) -> String {
    format!("Linked. *{agent}* answers here now.")
}

/// Returns the text for a result. Invalid codes share one text, so that it reveals nothing.
fn text(result: &ClaimResult) -> String {
    match result {
        ClaimResult::Bound { agent } => linked(agent),
        ClaimResult::NotFound | ClaimResult::TooManyGuesses => {
            "This code is invalid or expired. Ask for a new one; \
             after several wrong codes, wait 15 minutes."
                .into()
        }
        ClaimResult::WrongSurface { allowed } => {
            format!("This code can't be used here. Use it in {}.", surface_names(allowed))
        }
        ClaimResult::AlreadyUsed => "This code was already used. Ask for a new one.".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_codes_as_people_paste_them() {
        let code = parse_code("7K3M-Q2XW-9FHA");
        assert!(code.is_some());
        for typed in [
            "`7k3m-q2xw-9fha`",
            "*7K3M-Q2XW-9FHA*",
            "_7K3M-Q2XW-9FHA_.",
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
    fn names_the_reason_of_a_refused_code() {
        let allowed = vec![shared::types::Surface::Dm];
        let text = text(&ClaimResult::WrongSurface { allowed });
        assert_eq!(text, "This code can't be used here. Use it in a direct message with this app.");
    }
}
