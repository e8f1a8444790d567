//! Notices to the person behind a webhook: the delivery waits, or was given up.

use super::{agents, attempt_context::AttemptContext};
use crate::routing::{self, Webhook};
use futures_util::future::{Either, select};
use shared::{
    codec::{envelope::Envelope, slack::Parts},
    store::{ClaimedDelivery, Connection},
    telemetry::Chain,
    types::{AgentMode, Outgoing},
};
use std::{pin::pin, time::Duration};
use tracing::warn;

/// Time after which a person whose request waits gets a notice.
pub const NOTICE_AFTER: Duration = Duration::from_secs(30);
/// Minimum duration of an attempt before its notice: most attempts end within this time.
const NOTICE_DELAY: Duration = Duration::from_secs(2);

/// Returns the notice for the person whose webhook is given up.
pub async fn given_up(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
) -> Option<Outgoing> {
    to_person(context, delivery, envelope, agents::given_up).await
}

/// Awaits an attempt. If the delivery has waited too long meanwhile, enqueues the notice that it
/// waits.
pub async fn while_waiting<T>(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
    attempt: impl Future<Output = T>,
) -> T {
    let delay = NOTICE_AFTER.saturating_sub(delivery.waited).max(NOTICE_DELAY);
    let noticing = async {
        tokio::time::sleep(delay).await;
        enqueue_waiting(context, delivery, envelope).await;
    };
    match select(pin!(attempt), pin!(noticing)).await {
        Either::Left((result, _)) => result,
        Either::Right(((), attempt)) => attempt.await,
    }
}

/// Enqueues the notice that a delivery waits, unless its conversation got one within the hour.
pub async fn enqueue_waiting(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
) {
    if delivery.told || delivery.agent().is_none() {
        return;
    }
    let notice = |webhook: &Webhook<'_>, connection: &Connection| {
        routing::notice(webhook, connection.team.as_ref(), routing::WAITING)
    };
    let Some(message) = to_person(context, delivery, envelope, notice).await else { return };
    match context.clients.store.tell_waiting(delivery, &message).await {
        Ok(()) => context.clients.wake_outbox.notify_one(),
        Err(error) => {
            warn!(key = %delivery.dedup_key, error = %Chain(&error), "failed to enqueue notice");
        }
    }
}

/// Returns a message for the person behind a webhook, `None` if no person addressed the app: apps
/// get messages that are not addressed to them.
async fn to_person(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
    message: impl Fn(&Webhook<'_>, &Connection) -> Option<Outgoing>,
) -> Option<Outgoing> {
    let id = delivery.key.connection;
    let connection = context.clients.connections.connection(id).await.ok()??;
    let is_message = match delivery.agent() {
        Some((org, id)) => {
            let agent = context.agent(&org, &id).await.ok().flatten();
            agent.is_none_or(|agent| agent.mode == AgentMode::Reply)
        }
        None => false,
    };
    let parts = Parts::split(envelope.media, &envelope.body);
    let webhook = Webhook { envelope, inbound: parts.read() };
    let is_addressed = routing::is_addressed(&webhook, connection.bot_user.as_deref(), is_message);
    is_addressed.then(|| message(&webhook, &connection)).flatten()
}
