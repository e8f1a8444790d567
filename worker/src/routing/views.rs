//! Decides clicks, shortcuts and views that no app gets.
//!
//! A person waits for the response to a submission, a menu or a legacy click, so dispatch answers
//! it. Agents in mode `reply` do not get these.

use super::{Input, unparsable};
use shared::{
    slack::Interaction,
    store::{Decision, Effects, IgnoreReason, NewDelivery, ProcessedAs},
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

/// Decides to deliver a webhook to the worker: to its own handler or its responses for views.
pub(super) fn deliver_to_worker(input: &Input<'_>) -> Decision {
    let delivery = Some(NewDelivery::to_gateway(input.priority()));
    let question = input.question();
    let effects = Effects { delivery, question, ..Effects::new(ProcessedAs::Delivery) };
    Decision::Apply(Box::new(effects))
}
