//! Merging of messages: a message and those that wait behind it in its lane become one question.
//!
//! Called by `question` for agents with the overlap policy `merge` or `interrupt`. The first
//! attempt fixes the set of messages in Postgres, so that later attempts send the same question.

use super::{agents, attempt_context::AttemptContext};
use crate::{
    agent_client::MessagePart,
    routing::{self, Webhook},
};
use shared::{
    domain::OverlapPolicy,
    slack::BodyParts,
    store::{Agent, ClaimedDelivery, Connection, StoreError, WaitingDelivery},
    stream::{self, Envelope, pairs_to_headers},
};

/// Maximum number of messages of one question.
const PARTS_MAX: i64 = 20;
/// Maximum bytes, encrypted, of the messages after the first one.
const PARTS_BYTES_MAX: i64 = 64 * 1024;

/// Returns the messages of a merged question, in order; empty if there is only one. The first
/// attempt merges the messages that wait, later attempts load the same ones.
pub async fn load(
    context: &AttemptContext,
    agent: &Agent,
    connection: &Connection,
    webhook: &Webhook<'_>,
    delivery: &ClaimedDelivery,
) -> Result<Vec<MessagePart>, StoreError> {
    let is_first = delivery.attempts == 1;
    let merges = match agent.policies.overlap {
        OverlapPolicy::Merge | OverlapPolicy::Interrupt => is_first,
        OverlapPolicy::Queue => false,
    };
    if !routing::is_plain_message(webhook) || !(merges || delivery.merged > 1) {
        return Ok(Vec::new());
    }
    let count = if merges { PARTS_MAX - 1 } else { i64::from(delivery.merged) - 1 };
    let store = &context.clients.store;
    let waiting = store.waiting_behind(delivery, count, PARTS_BYTES_MAX).await?;
    let Some(first) = part(connection, webhook) else { return Ok(Vec::new()) };
    let mut parts = vec![first];
    let mut merged = 1;
    for WaitingDelivery { dedup_key, payload } in waiting {
        let Ok(payload) = payload else { break };
        let subject = stream::subject(delivery.partition, delivery.key.connection);
        let headers = pairs_to_headers(&payload.headers);
        let Ok(envelope) = Envelope::decode(&subject, Some(&headers), payload.body.into()) else {
            break;
        };
        let body = BodyParts::split(envelope.media, &envelope.body);
        let behind = Webhook { envelope: &envelope, inbound: body.read() };
        if dedup_key != envelope.dedup_key.as_str() || !is_same_thread(webhook, &behind) {
            break; // a replayed delivery is not merged
        }
        merged += 1;
        if agents::control_outcome(&context.clients, connection, &behind).await.is_none() {
            parts.extend(part(connection, &behind));
        }
    }
    if merges && (merged == 1 || !store.merge_deliveries(delivery, merged).await?) {
        return Ok(Vec::new());
    }
    Ok(if parts.len() > 1 { parts } else { Vec::new() })
}

/// Returns whether two messages of a lane belong to the same thread. All threads of a direct
/// message share one lane.
fn is_same_thread(first: &Webhook<'_>, other: &Webhook<'_>) -> bool {
    let thread = |webhook| {
        let message = routing::agent_message(webhook, None)?;
        let thread = message.thread_ts.filter(|_| message.in_direct_message);
        Some((message.in_direct_message, thread))
    };
    let (first, thread_of_other) = (thread(first), thread(other));
    routing::is_plain_message(other) && first.is_some() && first == thread_of_other
}

fn part(connection: &Connection, webhook: &Webhook<'_>) -> Option<MessagePart> {
    let message = routing::agent_message(webhook, connection.team.as_ref())?;
    Some(MessagePart {
        user: message.user.to_owned(),
        ts: message.ts.to_owned(),
        text: message.text.to_owned(),
        content: agents::content(webhook),
    })
}
