//! `/lobu link <code>`: a link claim is consumed and the conversation bound, or the person hears why not.
//!
//! In: a code and where it was typed. Out: one effect that consumes the claim and carries the reply for each result:
//! only the transaction knows which it is.

use super::{Desk, Outcome, place::Place};
use shared::{
    store::{ClaimResult, ConsumeClaim, Effects},
    types::{ClaimCode, Surface},
};

pub(super) fn handle(desk: &Desk<'_>, place: Place, code: Option<&str>) -> Outcome {
    let name = &desk.workshop.command;
    let Some(code) = code else {
        return place.say(&format!("Say `{name} link <code>`, with the code you were given."));
    };
    let Ok(code) = code.parse::<ClaimCode>() else {
        return place.say(&text(&ClaimResult::NotFound));
    };
    let surface = if place.channel.is_direct_message() { Surface::Dm } else { Surface::Channel };
    let consume = ConsumeClaim {
        code: code.hash(),
        connection: desk.connection.id,
        team: place.team.clone(),
        channel: place.channel.clone(),
        surface,
        user: place.user.clone(),
        reply: Box::new(move |result| vec![place.reply(&text(result))]),
    };
    Effects { consume: Some(consume), outcome: "done", ..Effects::default() }.into()
}

fn text(result: &ClaimResult) -> String {
    match result {
        ClaimResult::Bound { agent } => format!("Linked. *{agent}* answers here now."),
        ClaimResult::NotFound => "That code is invalid or expired. Ask for a new one.".into(),
        ClaimResult::WrongSurface { allowed } => {
            let places: Vec<&str> = allowed
                .iter()
                .map(|surface| match surface {
                    Surface::Dm => "a direct message with me",
                    Surface::Channel => "a channel",
                })
                .collect();
            format!("That code is good, but not here: use it in {}.", places.join(" or "))
        }
        ClaimResult::AlreadyUsed => "That code was used already. Ask for a new one.".into(),
    }
}
