//! What a person waits for with a view or a menu open.
//!
//! In: an interaction. Out: an outcome with the answer that goes into the HTTP response, and what is said if it comes too
//! late for that. No agent takes views yet: a submission closes its view, a menu gets no options.

use super::{Answer, Desk, Done, Outcome};
use crate::reply;
use shared::{
    codec::slack::Interaction,
    store::Effects,
    types::{Destination, Outgoing},
};

pub(super) fn handle(desk: &Desk<'_>, interaction: &Interaction<'_>) -> Outcome {
    match interaction.kind.get() {
        Some("view_submission") => {
            // Without the answer in time the view shows "working on it": then it is told that all is done.
            let id = interaction.view.0.as_ref().and_then(|view| view.id.get());
            let late = id.map(|id| Outgoing {
                to: Destination::UpdateView { view_id: id.to_owned() },
                message: serde_json::json!({
                    "type": "modal",
                    "title": { "type": "plain_text", "text": "Done" },
                    "blocks": [{ "type": "section", "text": { "type": "plain_text", "text": "Thank you." } }],
                }),
            });
            answered("", late.into_iter().collect())
        }
        Some("block_suggestion") => match &desk.job.envelope.reply {
            // Nobody waits for it any more, and there is no other way to say it.
            Some(window) if reply::left(window).is_zero() => Outcome::done("late"),
            _ => answered(r#"{"options":[]}"#, Vec::new()),
        },
        _ => Outcome::done("ignored"),
    }
}

fn answered(now: &'static str, late: Vec<Outgoing>) -> Outcome {
    let effects = Effects { outcome: "done", ..Effects::default() };
    Outcome::Done(Box::new(Done { effects, answer: Some(Answer { now: now.into(), late }) }))
}
