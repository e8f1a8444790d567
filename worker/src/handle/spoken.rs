//! Commands that are said as text, because slash commands reach neither threads nor the messages of an assistant.
//!
//! In: a message that a person wrote. Out: an outcome, if it is a command; else it is for the agent. `/lobu …` is one
//! anywhere, `lobu …` only with a word of the table and no more words than that takes: people talk about us, too. A link
//! code alone, or after `link`, is one only in a direct message with a preview bot; to any other bot it is chat.

use super::{Desk, Outcome, command, place::Place, roster};
use shared::{
    codec::envelope::DedupeKey,
    store::Effects,
    types::{ChannelId, ClaimCode, Surface, TeamId},
};

/// A message that a person wrote.
pub(super) struct Said<'a> {
    pub team: &'a TeamId,
    pub channel: &'a ChannelId,
    pub user: &'a str,
    /// Their workspace, where that need not be ours.
    pub user_team: Option<&'a str>,
    pub text: &'a str,
    pub ts: &'a str,
    pub thread_ts: Option<&'a str>,
    pub direct: bool,
}

impl Said<'_> {
    /// What sort of conversation it stands in.
    pub fn surface(&self) -> Surface {
        if self.direct { Surface::Dm } else { Surface::Channel }
    }
}

/// Does what the text asks for, if it is a command. One mention comes as two events: only the first of `trigger` counts.
pub(super) async fn handle(
    desk: &Desk<'_>,
    said: &Said<'_>,
    trigger: &DedupeKey,
) -> Option<Outcome> {
    if !desk.connection.settings.surfaces.contains(&said.surface()) {
        return Some(Outcome::done("ignored"));
    }
    let preview_dm = said.direct && desk.connection.preview_mode;
    let bot = desk.connection.bot_user.as_deref();
    let words = words(said.text, &desk.workshop.command, bot, preview_dm)?;
    // Whoever is only a guest in a shared channel may talk to the agent, but decides nothing.
    if is_foreign(desk, said) {
        return None;
    }
    let place = Place::of_message(said).ok()?;
    Some(once(command::run(desk, place, &words).await, trigger.clone()))
}

/// A message in a conversation that belongs to nobody: on a preview bot, if it is meant for us, its person is told how to
/// link it.
pub(super) fn unlinked(desk: &Desk<'_>, said: &Said<'_>, trigger: DedupeKey) -> Outcome {
    let mention = desk.connection.bot_user.as_ref().map(|bot| format!("<@{bot}>"));
    let for_us = said.direct || mention.is_some_and(|mention| said.text.contains(&mention));
    match Place::of_message(said) {
        Ok(place) if desk.connection.preview_mode && for_us => {
            let say = vec![place.reply(&roster::unlinked(desk))];
            once(Effects { say, outcome: "unbound", ..Effects::default() }.into(), trigger)
        }
        _ => Outcome::done("unbound"),
    }
}

fn once(outcome: Outcome, trigger: DedupeKey) -> Outcome {
    match outcome {
        Outcome::Done(mut done) => {
            done.effects.trigger = Some(trigger);
            Outcome::Done(done)
        }
        other => other,
    }
}

fn is_foreign(desk: &Desk<'_>, said: &Said<'_>) -> bool {
    let ours = desk.connection.team.as_ref().map(TeamId::as_str);
    let organisation = desk.connection.enterprise.as_ref();
    match (said.user_team, ours) {
        (Some(theirs), Some(ours)) => {
            theirs != ours && organisation.is_none_or(|id| id.as_str() != theirs)
        }
        _ => false,
    }
}

/// The words of a command, if the text is one.
fn words(text: &str, name: &str, bot: Option<&str>, preview_dm: bool) -> Option<String> {
    let mut words: Vec<&str> = text.split_whitespace().map(|word| word.trim_matches('`')).collect();
    let first = *words.first()?;
    if bot.is_some_and(|bot| first.strip_prefix("<@").is_some_and(|id| id.starts_with(bot))) {
        words.remove(0);
    }
    let (first, rest) = words.split_first()?;
    if first.eq_ignore_ascii_case(name) {
        return Some(rest.join(" "));
    }
    if first.eq_ignore_ascii_case(name.trim_start_matches('/')) {
        let (word, arguments) = rest.split_first()?;
        let (_, most) = command::verb(word)?;
        return (arguments.len() <= most).then(|| rest.join(" "));
    }
    let code = match words[..] {
        [code] => code,
        [word, code] if word.trim_start_matches('/').eq_ignore_ascii_case("link") => code,
        _ => return None,
    };
    let is_code = preview_dm && code.contains('-') && code.parse::<ClaimCode>().is_ok();
    is_code.then(|| format!("link {code}"))
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn what_is_meant_for_us_is_told_from_what_is_said_about_us() {
        let bot = Some("UBOT");
        for (text, preview_dm, command) in [
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
        ] {
            assert_eq!(words(text, "/lobu", bot, preview_dm).as_deref(), command, "{text:?}");
        }
    }
}
