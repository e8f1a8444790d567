//! `status`, `agents` and `try`: who answers here, and who could.
//!
//! An organization's agents are listed and tried on its preview connection alone: an ordinary tenant's bot tells nobody
//! whom else the tenant has, and lets nobody choose among them.

use super::{Desk, Outcome, link, place::Place, whose};
use shared::store::{ChatState, NamedAgent, StoreError};

pub(super) async fn status(desk: &Desk<'_>, place: &Place) -> Result<Outcome, StoreError> {
    let chat = place.chat(desk);
    let ChatState { agent, linked_by, session } = whose::state_of(desk, &chat).await?;
    let Some(agent) = agent else { return Ok(place.say(&unlinked(desk))) };
    let called = if agent.name.is_empty() { agent.id.as_str() } else { &agent.name };
    let how = match linked_by {
        Some(by) => format!("linked by <@{by}>"),
        None => "as everywhere with me".into(),
    };
    Ok(place.say(&format!("*{called}* answers here, {how}. Session {session}.")))
}

pub(super) async fn agents(desk: &Desk<'_>, place: &Place) -> Result<Outcome, StoreError> {
    if !desk.connection.preview_mode {
        return Ok(place.say(&not_here(desk)));
    }
    Ok(place.say(&menu(desk, &to_try(desk).await?)))
}

/// `try`, which is a word of Rust's.
pub(super) async fn attempt(
    desk: &Desk<'_>,
    place: Place,
    word: Option<&str>,
) -> Result<Outcome, StoreError> {
    if !desk.connection.preview_mode {
        return Ok(place.say(&not_here(desk)));
    }
    let agents = to_try(desk).await?;
    match agents.iter().find(|agent| Some(agent.agent.as_str()) == word) {
        Some(agent) => Ok(link::bind(desk, place, agent)),
        None => Ok(place.say(&menu(desk, &agents))),
    }
}

/// What a conversation that belongs to nobody is told.
pub(super) fn unlinked(desk: &Desk<'_>) -> String {
    let name = &desk.workshop.command;
    let attempt = if desk.connection.preview_mode {
        format!(", or `{name} agents` to see whom you can try")
    } else {
        String::new()
    };
    format!(
        "This conversation isn't linked to an agent. Ask whoever runs one for a code and say `{name} link <code>`{attempt}."
    )
}

async fn to_try(desk: &Desk<'_>) -> Result<Vec<NamedAgent>, StoreError> {
    let mut agents = desk.workshop.store.agents_of(&desk.connection.org).await?;
    agents.retain(|agent| Some(&agent.agent) != desk.connection.agent.as_ref());
    Ok(agents)
}

fn menu(desk: &Desk<'_>, agents: &[NamedAgent]) -> String {
    let name = &desk.workshop.command;
    if agents.is_empty() {
        return "There is no agent to try.".into();
    }
    let rows = agents.iter().map(|a| format!("`{name} try {}` for *{}*", a.agent, a.name));
    rows.collect::<Vec<_>>().join("\n")
}

fn not_here(desk: &Desk<'_>) -> String {
    format!("That is for preview bots. Here, say `{} link <code>`.", desk.workshop.command)
}
