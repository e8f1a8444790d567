//! Commands in text messages, since slash commands work neither in threads nor in assistant
//! messages.
//!
//! `/lobu ...` is a command anywhere. `lobu ...` is one only with a word of the table and no more
//! words than it takes, since people also talk about the app. A link code, alone or after `link`,
//! is a command only in a direct message with a preview bot. A guest of a shared channel may talk
//! to the agent but give no commands.

use super::{
    super::messages::{self, AgentMessage},
    Invocation, link, verb,
};
use shared::{store::ConnectionFacts, types::TeamId};

/// Returns the command in a message, with its text; `None` if the message is for the agent.
pub(super) fn command(
    connection: &ConnectionFacts,
    message: &AgentMessage<'_>,
    name: &str,
) -> Option<(Invocation, String)> {
    let is_preview_dm = message.in_direct_message && connection.preview_mode;
    let words = words(message.text, name, connection.bot_user.as_deref(), is_preview_dm)?;
    let invocation = Invocation::of_message(connection, message).ok()?;
    (!is_foreign(connection, message)).then_some((invocation, words))
}

fn is_foreign(connection: &ConnectionFacts, message: &AgentMessage<'_>) -> bool {
    let own = connection.team.as_ref().map(TeamId::as_str);
    let organization = connection.enterprise.as_ref();
    match (message.user_team, own) {
        (Some(author), Some(own)) => {
            author != own && organization.is_none_or(|id| id.as_str() != author)
        }
        _ => false,
    }
}

/// Returns the words of a command, if the text is one.
fn words(text: &str, name: &str, bot: Option<&str>, is_preview_dm: bool) -> Option<String> {
    let mut words: Vec<&str> = text.split_whitespace().map(|word| word.trim_matches('`')).collect();
    let first = *words.first()?;
    if bot.is_some_and(|bot| messages::after_mention(first, bot).is_some()) {
        words.remove(0);
    }
    let (first, rest) = words.split_first()?;
    if first.eq_ignore_ascii_case(name) {
        return Some(rest.join(" "));
    }
    if first.eq_ignore_ascii_case(name.trim_start_matches('/')) {
        let (word, arguments) = rest.split_first()?;
        let (_, arguments_max) = verb(word)?;
        return (arguments.len() <= arguments_max).then(|| rest.join(" "));
    }
    let is_link = |word: &str| {
        word.trim_start_matches(|c: char| !c.is_alphanumeric()).eq_ignore_ascii_case("link")
    };
    let code = match words[..] {
        [code] => code,
        [word, code] if is_link(word) => code,
        _ => return None,
    };
    let code = link::strip_formatting(code);
    let is_code = is_preview_dm && code.contains('-') && link::parse_code(&code).is_some();
    is_code.then(|| format!("link {code}"))
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn distinguishes_commands_from_talk() {
        let bot = Some("UBOT");
        for (text, is_preview_dm, command) in [
            ("/lobu status", false, Some("status")),
            ("/LOBU", false, Some("")),
            ("<@UBOT> /lobu link 7K3M-Q2XW-9FHA", false, Some("link 7K3M-Q2XW-9FHA")),
            ("<@UBOT|lobu> lobu new", false, Some("new")),
            ("lobu link `7K3M-Q2XW-9FHA`", false, Some("link 7K3M-Q2XW-9FHA")),
            ("lobu", false, None),
            ("lobu is great", false, None),
            ("lobu help me with my taxes", false, None),
            ("lobu status", false, Some("status")),
            ("link 7K3M-Q2XW-9FHA", true, Some("link 7K3M-Q2XW-9FHA")),
            ("/link 7k3m-q2xw-9fha", true, Some("link 7k3m-q2xw-9fha")),
            ("7K3M-Q2XW-9FHA", true, Some("link 7K3M-Q2XW-9FHA")),
            ("7K3MQ2XW9FHA", true, None),
            ("link me to the docs", true, None),
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
}
