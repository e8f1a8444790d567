//! Decides clicks, shortcuts and views that no app gets.
//!
//! A person waits for the response to a submission, a menu or a legacy click, so dispatch answers
//! it. Agents in mode `reply` do not get these.

use super::{Input, deliver_to_worker, unparsable};
use shared::{
    slack::Interaction,
    store::{Decision, IgnoreReason},
};

/// Decides an interaction in a conversation without an app.
pub(super) fn decide(input: &Input<'_>, interaction: &Interaction<'_>) -> Decision {
    if interaction.sync_response_kind().is_some() {
        return deliver_to_worker(input);
    }
    match interaction.kind.get() {
        Some(_) => input.ignore(IgnoreReason::NotAMessage),
        None => unparsable("neither event, command nor interaction"),
    }
}
