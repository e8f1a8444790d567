//! What a person waits for with a view or a menu open.
//!
//! In: an interaction. Out: an outcome with the answer that goes into the HTTP response, and what is said if it comes too
//! late for that. An agent that answers in JSON is not
//! asked for it: a submission closes its view, a menu gets no options. An app is (see `forward`).

use super::{Desk, Outcome, late};
use crate::reply;
use shared::codec::slack::Interaction;

pub(super) fn handle(desk: &Desk<'_>, interaction: &Interaction<'_>) -> Outcome {
    match interaction.kind.get() {
        Some("view_submission") => {
            // Without the answer in time the view shows "working on it": then it is told that all is done.
            let id = interaction.view.0.as_ref().and_then(|view| view.id.get());
            let submission = serde_json::json!({ "view": { "id": id } });
            let late = late::of(&submission, &serde_json::Value::Null);
            Outcome::answer("".into(), late.into_iter().collect())
        }
        Some("block_suggestion") => match &desk.job.envelope.reply {
            // Nobody waits for it any more, and there is no other way to say it.
            Some(window) if reply::left(window).is_zero() => Outcome::done("late"),
            _ => Outcome::answer(r#"{"options":[]}"#.into(), Vec::new()),
        },
        _ => Outcome::done("ignored"),
    }
}
