//! `new` and `clear`: the conversation begins anew.
//!
//! Tidegate keeps no history of a conversation; its agent may. So a conversation has a session, a number that the agent
//! is told with every question, and `new` raises it. `clear` asks the agent to delete what it keeps first; only when it
//! said yes is the session raised, and only that is said. An app that is handed Slack's own webhooks is not asked.

use super::{Desk, Outcome, place::Place, roster, whose};
use crate::agent::{AgentError, Question};
use shared::{
    store::{ChatState, StoreError, What},
    types::AgentMode,
};

pub(super) async fn new(desk: &Desk<'_>, place: Place) -> Result<Outcome, StoreError> {
    let chat = place.chat(desk);
    if whose::state_of(desk, &chat).await?.agent.is_none() {
        return Ok(place.say(&roster::unlinked(desk)));
    }
    Ok(begin(place, What::NewSession(chat), "A new session begins here."))
}

pub(super) async fn clear(desk: &Desk<'_>, place: Place) -> Result<Outcome, StoreError> {
    let chat = place.chat(desk);
    let ChatState { agent: Some(agent), session, .. } = whose::state_of(desk, &chat).await? else {
        return Ok(place.say(&roster::unlinked(desk)));
    };
    if agent.mode == AgentMode::Forward {
        return Ok(
            place.say("What is kept of this conversation is up to the app that answers here.")
        );
    }
    if desk.is_done().await? {
        return Ok(Outcome::done("done"));
    }
    if !desk.part.is_ours() {
        return Ok(Outcome::Return);
    }
    let question = Question {
        kind: "forget",
        connection: desk.connection.id,
        team: &place.team,
        channel: &place.channel,
        user: place.user.as_str(),
        text: "",
        ts: "",
        thread_ts: None,
        session,
    };
    match desk.workshop.agents.ask(&agent, desk.job.envelope.dedupe.as_str(), &question).await {
        Ok(_) => {
            let says = "The agent was asked to forget this conversation, and a new session begins.";
            Ok(begin(place, What::NewSession(chat), says))
        }
        // A person waits: better a plain word now than a success in an hour.
        Err(AgentError::Away(_) | AgentError::Wrong(_)) => Ok(place.say(
            "The agent did not take it: nothing was forgotten, and the session goes on. Try again later.",
        )),
    }
}

fn begin(place: Place, what: What, says: &str) -> Outcome {
    place.change(what, says, says)
}
