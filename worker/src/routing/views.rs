//! Decides clicks, shortcuts and views that no app gets.
//!
//! A person waits for the response to a submission or a menu, so dispatch answers it. Agents in
//! mode `reply` do not get interactions.

use super::{Input, deliver_to_worker, not_understood};
use shared::{
    codec::slack::Interaction,
    store::{Decision, IgnoreReason},
};

/// Decides an interaction in a conversation without an app.
pub(super) fn decide(input: &Input<'_>, interaction: &Interaction<'_>) -> Decision {
    match interaction.kind.get() {
        Some("view_submission" | "block_suggestion") => deliver_to_worker(input),
        Some(_) => input.ignore(IgnoreReason::NotAMessage),
        None => not_understood("neither event, command nor interaction"),
    }
}
