//! Commands `new` and `clear`: a new session of the conversation.
//!
//! Tidegate keeps no history of a conversation; its agent may. The session is a number that an
//! agent gets with every request. `new` raises it. `clear` raises it after dispatch asked the agent
//! to clear its history and the agent confirmed. An app (mode `forward`) is not asked.

use super::{super::Input, CommandInvocation, agents::unlinked_text, effects};
use shared::{
    domain::{AgentMode, OutgoingMessage},
    store::{Change, ConversationChange, Effects, NewDelivery, Priority, ProcessedAs},
};

pub(super) fn new(input: &Input<'_>, invocation: CommandInvocation) -> Effects {
    if input.facts.conversation.agent.is_none() {
        return invocation.answer(&unlinked_text(input));
    }
    let change = invocation.begin_session("A new session starts here.");
    Effects { changes: vec![change], ..effects() }
}

pub(super) fn clear(input: &Input<'_>, invocation: &CommandInvocation) -> Effects {
    let Some(agent) = &input.facts.conversation.agent else {
        return invocation.answer(&unlinked_text(input));
    };
    match agent.mode {
        AgentMode::Forward => invocation.answer(
            "The app that answers here keeps its own history. This command can't clear it.",
        ),
        AgentMode::Reply => {
            let priority = Priority::Interactive;
            let delivery = NewDelivery { priority, ..input.delivery_to(agent) };
            Effects { delivery: Some(delivery), ..Effects::new(ProcessedAs::Delivery) }
        }
    }
}

impl CommandInvocation {
    /// Returns the change to commit when the agent confirmed.
    pub(crate) fn clear_change(self) -> Change {
        self.begin_session(
            "The agent was asked to forget this conversation. A new session starts here.",
        )
    }

    /// Returns the answer when the agent did not confirm.
    pub(crate) fn clear_failure(&self) -> OutgoingMessage {
        self.reply("The agent did not confirm, so this session continues. Try again later.")
    }

    fn begin_session(self, text: &str) -> Change {
        let (conversation, by) = (self.conversation.clone(), self.user.clone());
        let action = ConversationChange::NewSession { conversation, by };
        self.change(action, text, text, None)
    }
}
