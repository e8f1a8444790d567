//! Approvals: questions to people with which agents end their answers. The approval is committed
//! with the end of the delivery; the decision is a delivery of its own.

use super::message_policy::AnswerPolicy;
use crate::{
    agent_client::AgentAsk, context::Context, dispatch::content::without_broadcasts, routing,
};
use serde_json::json;
use shared::{
    domain::{ChannelId, Destination, OutgoingMessage, TeamId, UserId},
    store::{AskedApproval, Change, ClaimedDelivery, ConversationChange, StoreError},
};
use std::time::{SystemTime, UNIX_EPOCH};

/// Origin of an approval, and the thread where it is posted.
#[derive(Debug)]
pub struct AskPlace<'a> {
    /// Run of the agent that asks for the approval.
    pub run: &'a str,
    pub team: &'a TeamId,
    pub channel: &'a ChannelId,
    pub thread_ts: Option<&'a str>,
    /// Author of the message that the agent answers.
    pub user: &'a str,
}

/// Returns the change that creates an approval and posts its buttons. `None` if nobody could
/// decide. Fails if the content cannot be encrypted.
pub fn ask_change(
    context: &Context,
    delivery: &ClaimedDelivery,
    place: &AskPlace<'_>,
    mut ask: AgentAsk,
    policy: AnswerPolicy,
) -> Result<Option<Change>, StoreError> {
    if ask.allowed.is_empty() && place.user.parse::<UserId>().is_ok() {
        ask.allowed.push(place.user.to_owned());
    }
    if ask.allowed.is_empty() {
        return Ok(None); // the author is a bot
    }
    let content = &mut ask.content;
    if !policy.broadcasts {
        content.prompt = without_broadcasts(&content.prompt);
    }
    let asked = AskedApproval {
        run: place.run,
        ask: &ask.id,
        team: place.team,
        channel: place.channel,
        thread_ts: place.thread_ts,
        content: &ask.content,
        allowed: &ask.allowed,
        expires_in: ask.expires_in,
    };
    let new = context.store.new_approval(delivery, &asked)?;
    let until = unix_now() + ask.expires_in.as_secs();
    let message = routing::pending_approval_message(new.id(), &ask.content, &ask.allowed, until);
    let (channel, thread_ts) = (place.channel.clone(), place.thread_ts.map(str::to_owned));
    let reply = move |is_added: bool| {
        let to =
            Destination::PostMessage { channel: channel.clone(), thread_ts: thread_ts.clone() };
        let message = match is_added {
            true => message.clone(),
            false => json!({ "text": routing::TOO_MANY_APPROVALS }),
        };
        vec![OutgoingMessage { to, message }]
    };
    Ok(Some(Change { action: ConversationChange::Ask(Box::new(new)), reply: Box::new(reply) }))
}

#[expect(clippy::disallowed_methods, reason = "time that the message shows")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
