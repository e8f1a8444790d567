//! Clicks, shortcuts and views that no app gets.
//!
//! A person waits for the answer to a submission or a menu with the view open: dispatch gives it, with the late form
//! if Slack no longer waits. Agents in mode `reply` are not asked for it.

use super::{Input, deliver_to_gateway, not_understood};
use shared::{
    codec::slack::Interaction,
    store::{Decision, IgnoreReason},
};

/// Decides an interaction whose conversation has no app.
pub(super) fn decide(input: &Input<'_>, interaction: &Interaction<'_>) -> Decision {
    match interaction.kind.get() {
        Some("view_submission" | "block_suggestion") => deliver_to_gateway(input),
        Some(_) => input.ignore(IgnoreReason::NotAMessage),
        None => not_understood("neither event, command nor interaction"),
    }
}
