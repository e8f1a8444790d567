//! `link` and `unlink`: a link claim is consumed and the conversation bound, or the person hears why not.
//!
//! In: a code and where it was typed. Out: one effect that consumes the claim and carries the reply for each result:
//! only the transaction knows which it is. Who is known to be a member of an organization links its agents by name,
//! without a code; a name that several of their organizations have must be said with the organization.

use super::{Desk, Outcome, place::Place};
use shared::{
    store::{ClaimResult, ConsumeClaim, Effects, NamedAgent, StoreError, What},
    types::{AgentId, ClaimCode, OrgId, Platform, Surface},
};

pub(super) async fn link(
    desk: &Desk<'_>,
    place: Place,
    word: Option<&str>,
) -> Result<Outcome, StoreError> {
    let name = &desk.workshop.command;
    let Some(word) = word else {
        return Ok(place.say(&format!("Say `{name} link <code>`, with the code you were given.")));
    };
    match &linkable(desk, &place, word).await?[..] {
        [] => Ok(consume(desk, place, word)),
        [agent] => Ok(bind(desk, place, agent)),
        several => {
            let words: Vec<String> =
                several.iter().map(|a| format!("`{name} link {}/{}`", a.org, a.agent)).collect();
            Ok(place.say(&format!("Several are called that. Say {}.", words.join(" or "))))
        }
    }
}

pub(super) fn unlink(desk: &Desk<'_>, place: Place) -> Outcome {
    let what = What::Unbind(place.chat(desk));
    place.change(
        what,
        "Unlinked. The agent answers here no more.",
        "This conversation isn't linked.",
    )
}

/// Binds the conversation to an agent that the person may link.
pub(super) fn bind(desk: &Desk<'_>, place: Place, agent: &NamedAgent) -> Outcome {
    let NamedAgent { org, agent: id, name } = agent.clone();
    let what = What::Bind { chat: place.chat(desk), org, agent: id, by: place.user.clone() };
    place.change(what, &linked(&name), "That agent is gone.")
}

/// The agents that this person may link by this word here.
async fn linkable(
    desk: &Desk<'_>,
    place: &Place,
    word: &str,
) -> Result<Vec<NamedAgent>, StoreError> {
    let (org, agent) = match word.split_once('/') {
        Some((org, agent)) => (org.parse::<OrgId>().ok(), agent),
        None => (None, word),
    };
    let Ok(agent) = agent.parse::<AgentId>() else { return Ok(Vec::new()) };
    let store = &desk.workshop.store;
    let found = store.linkable_agents(Platform::Slack, &place.team, &place.user, &agent).await?;
    // A tenant's bot is for the tenant's agents, whoever asks.
    let here =
        |found: &NamedAgent| desk.connection.preview_mode || found.org == desk.connection.org;
    let named = |found: &NamedAgent| org.as_ref().is_none_or(|org| *org == found.org);
    Ok(found.into_iter().filter(|agent| here(agent) && named(agent)).collect())
}

fn consume(desk: &Desk<'_>, place: Place, code: &str) -> Outcome {
    let Ok(code) = code.parse::<ClaimCode>() else {
        return place.say(&text(&ClaimResult::NotFound));
    };
    let consume = ConsumeClaim {
        code: code.hash(),
        connection: desk.connection.id,
        team: place.team.clone(),
        channel: place.channel.clone(),
        surface: place.surface,
        user: place.user.clone(),
        reply: Box::new(move |result| vec![place.reply(&text(result))]),
    };
    Effects { consume: Some(consume), outcome: "done", ..Effects::default() }.into()
}

fn linked(agent: &str) -> String {
    format!("Linked. *{agent}* answers here now.")
}

/// One text for whatever is no code, so that nothing can be learnt from it.
fn text(result: &ClaimResult) -> String {
    match result {
        ClaimResult::Bound { agent } => linked(agent),
        ClaimResult::NotFound | ClaimResult::TooManyGuesses => {
            "That code is invalid or expired. Ask for a new one; after several wrong ones, wait a quarter of an hour.".into()
        }
        ClaimResult::WrongSurface { allowed } => {
            format!("That code is good, but not here: use it in {}.", places(allowed))
        }
        ClaimResult::AlreadyUsed => "That code was used already. Ask for a new one.".into(),
    }
}

/// Surfaces in words.
pub(super) fn places(surfaces: &[Surface]) -> String {
    let places: Vec<&str> = surfaces
        .iter()
        .map(|surface| match surface {
            Surface::Dm => "a direct message with me",
            Surface::Channel => "a channel",
        })
        .collect();
    places.join(" or ")
}
