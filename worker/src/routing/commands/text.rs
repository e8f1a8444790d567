//! Commands in text messages, since slash commands work neither in threads nor in assistant
//! messages.
//!
//! `/lobu ...` is a command anywhere. `lobu ...` is one only with a word of the table and no more
//! words than it takes, since people also talk about the app; with a link code it always is, since
//! an agent must not get one. A link code, alone or after `link`, is a command only in a direct
//! message with a preview bot. A guest of a shared channel may talk to the agent but give no
//! commands.

use super::{
    super::{
        Webhook,
        messages::{self, AgentMessage},
    },
    CommandInvocation, Subcommand, find_subcommand, link,
};
use serde_json::Value;
use shared::{slack::repair, store::ConnectionFacts};

/// Returns the command in a message, with its text, or `None` if the message is for the agent.
pub(super) fn command(
    webhook: &Webhook<'_>,
    connection: &ConnectionFacts,
    message: &AgentMessage<'_>,
    name: &str,
) -> Option<(CommandInvocation, String)> {
    let is_preview_dm = message.in_direct_message && connection.preview_mode;
    let words = words(message.text, name, connection.bot_user.as_deref(), is_preview_dm)?;
    let mut invocation = CommandInvocation::of_message(connection, message).ok()?;
    let body = serde_json::from_str(&repair(&webhook.envelope.body)).unwrap_or_default();
    invocation.is_guest = is_by_guest(&body, connection);
    Some((invocation, words))
}

/// Returns whether a person of another company wrote a message. In a channel that is shared with
/// other companies, an author of an unknown workspace counts as such a person.
fn is_by_guest(body: &Value, connection: &ConnectionFacts) -> bool {
    let is_shared = body["is_ext_shared_channel"] == true;
    if connection.team.is_none() && connection.enterprise.is_some() && !is_shared {
        return false; // all workspaces of the organization are its own
    }
    let authorized = &body["authorizations"][0]["team_id"];
    let named = if is_shared || authorized.is_string() { authorized } else { &body["team_id"] };
    let own = connection.team.as_ref().map(|team| team.as_str()).or(named.as_str());
    let enterprise = connection.enterprise.as_ref().map(|id| id.as_str());
    let of_event = |name: &str| body["event"][name].as_str();
    let mut teams =
        ["user_team", "source_team", "team"].into_iter().filter_map(of_event).peekable();
    match teams.peek() {
        None => is_shared,
        Some(_) => !teams.all(|team| Some(team) == own || Some(team) == enterprise),
    }
}

/// Returns the words of a command, if the text is one.
fn words(text: &str, name: &str, bot: Option<&str>, is_preview_dm: bool) -> Option<String> {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let first = *words.first()?;
    if bot.is_some_and(|bot| messages::after_mention(first, bot).is_some()) {
        words.remove(0);
    }
    let (first, rest) = words.split_first()?;
    if link::plain(first).eq_ignore_ascii_case(name.trim_start_matches('/')) {
        if first.contains('/') {
            return Some(rest.join(" "));
        }
        let (word, arguments) = rest.split_first()?;
        let (subcommand, arguments_max) = find_subcommand(word)?;
        let has_code = subcommand == Subcommand::Link
            && (code(arguments).is_some() || arguments.iter().any(|word| code(&[word]).is_some()));
        return (arguments.len() <= arguments_max || has_code).then(|| rest.join(" "));
    }
    let is_link =
        find_subcommand(first).is_some_and(|(subcommand, _)| subcommand == Subcommand::Link);
    let code = code(if is_link { rest } else { &words }).filter(|_| is_preview_dm)?;
    Some(format!("link {code}"))
}

/// Parses words as a link code. Its dashes are required, since other words may look like a code.
fn code(words: &[&str]) -> Option<String> {
    let code: String = words.iter().map(|word| link::plain(word)).collect();
    (code.contains('-') && link::parse_code(&code).is_some()).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use shared::domain::ConnectionSettings;

    #[test]
    fn distinguishes_commands_from_text() {
        let bot = Some("UBOT");
        for (text, is_preview_dm, command) in [
            ("/lobu status", false, Some("status")),
            ("/LOBU", false, Some("")),
            ("<@UBOT> /lobu link 7K3M-Q2XW-9FHA", false, Some("link 7K3M-Q2XW-9FHA")),
            ("<@UBOT|lobu> lobu new", false, Some("new")),
            ("lobu link `7K3M-Q2XW-9FHA`", false, Some("link `7K3M-Q2XW-9FHA`")),
            ("lobu", false, None),
            ("lobu is great", false, None),
            ("lobu help me with my taxes", false, None),
            ("lobu status", false, Some("status")),
            ("link 7K3M-Q2XW-9FHA", true, Some("link 7K3M-Q2XW-9FHA")),
            ("/link 7k3m-q2xw-9fha", true, Some("link 7k3m-q2xw-9fha")),
            ("7K3M-Q2XW-9FHA", true, Some("link 7K3M-Q2XW-9FHA")),
            ("7K3MQ2XW9FHA", true, None),
            ("link me to the docs", true, None),
            ("link 7K3M - Q2XW - 9FHA", true, Some("link 7K3M-Q2XW-9FHA")),
            ("*/lobu* status", false, Some("status")),
            (
                "\u{201c}/lobu link 7K3M-Q2XW-9FHA\u{201d}",
                false,
                Some("link 7K3M-Q2XW-9FHA\u{201d}"),
            ),
            ("lobu link 7K3M-Q2XW-9FHA please", false, Some("link 7K3M-Q2XW-9FHA please")),
            ("lobu link me to that page", false, None),
            ("link 7K3M-Q2XW-9FHA", false, None),
            ("7K3M-Q2XW-9FHA", false, None),
            ("<@UOTHER> /lobu status", false, None),
            ("", true, None),
            ("<@UBOT>", true, None),
            ("<@UBOT2> /lobu status", false, None),
            ("*link 7K3M-Q2XW-9FHA*", true, Some("link 7K3M-Q2XW-9FHA")),
            ("\u{201c}7K3M\u{2013}Q2XW\u{2014}9FHA\u{201d}", true, Some("link 7K3M-Q2XW-9FHA")),
            ("&lt;7K3M-Q2XW-9FHA&gt;", true, Some("link 7K3M-Q2XW-9FHA")),
        ] {
            assert_eq!(words(text, "/lobu", bot, is_preview_dm).as_deref(), command, "{text:?}");
        }
    }

    #[test]
    fn detects_guests_by_any_team() {
        let connection = |enterprise: Option<&str>, team: Option<&str>| ConnectionFacts {
            id: "00000000000000000000000000000007".parse().expect("an id"),
            org: "acme".parse().expect("an id"),
            enterprise: enterprise.map(|id| id.parse().expect("an id")),
            team: team.map(|id| id.parse().expect("an id")),
            preview_mode: team.is_none() && enterprise.is_none(),
            status: shared::domain::ConnectionStatus::Active,
            bot_user: None,
            settings: ConnectionSettings::default(),
        };
        let (workspace, preview) = (connection(None, Some("T1")), connection(None, None));
        let (grid, organization) =
            (connection(Some("E1"), Some("T1")), connection(Some("E1"), None));
        let body = |shared: bool, event: Value| {
            json!({
                "team_id": if shared { "T9" } else { "T1" }, "is_ext_shared_channel": shared,
                "authorizations": [{ "team_id": "T1" }], "event": event,
            })
        };
        for (connection, shared, event, is_guest) in [
            (&workspace, false, json!({ "team": "T1" }), false),
            (&workspace, false, json!({}), false),
            (&workspace, true, json!({ "team": "T1", "user_team": "T1" }), false),
            (&workspace, true, json!({ "user_team": "T9" }), true),
            (&workspace, true, json!({ "team": "T1", "user_team": "T9" }), true),
            (&workspace, false, json!({ "user_team": "T9" }), true),
            (&workspace, true, json!({ "source_team": "T9" }), true),
            (&workspace, true, json!({ "source_team": "T1" }), false),
            (&workspace, true, json!({ "team": "T9" }), true),
            (&workspace, true, json!({ "team": "T1", "source_team": "T9" }), true),
            (&workspace, true, json!({ "team": "T1", "source_team": "T1" }), false),
            (&workspace, false, json!({ "team": "T1", "source_team": "T9" }), true),
            (&workspace, false, json!({ "team": "T9" }), true),
            (&workspace, true, json!({}), true),
            (&grid, false, json!({ "user_team": "E1" }), false),
            (&grid, true, json!({ "team": "T1", "user_team": "E9" }), true),
            (&preview, false, json!({ "team": "T1" }), false),
            (&preview, true, json!({ "team": "T9" }), true),
            (&organization, false, json!({ "team": "T2" }), false),
            (&organization, true, json!({ "team": "T9" }), true),
            (&organization, true, json!({ "team": "T1", "user_team": "E1" }), false),
        ] {
            assert_eq!(is_by_guest(&body(shared, event.clone()), connection), is_guest, "{event}");
        }
    }
}
