//! Notices to the person behind a webhook: the delivery waits, or was given up.

use super::{agents, attempt_context::AttemptContext};
use crate::routing::{self, Webhook};
use futures_util::future::{Either, select};
use shared::{
    domain::{AgentMode, OutgoingMessage},
    runtime::telemetry::ErrorChain,
    slack::BodyParts,
    store::{ClaimedDelivery, Connection},
    stream::Envelope,
};
use std::{pin::pin, time::Duration};
use tracing::warn;

/// Time after which a person whose request waits gets a notice.
pub const NOTICE_AFTER: Duration = Duration::from_secs(30);
/// Minimum duration of an attempt before its notice: most attempts end within this time.
const NOTICE_DELAY: Duration = Duration::from_secs(2);

/// Returns the notice for the person whose webhook is given up.
pub async fn build_failure_notice(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
) -> Option<OutgoingMessage> {
    build_notice(context, delivery, envelope, agents::failure_notice).await
}

/// Awaits an attempt. If the delivery has waited too long meanwhile, enqueues the notice that it
/// waits.
pub async fn run_with_waiting_notice<T>(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
    attempt: impl Future<Output = T>,
) -> T {
    let delay = NOTICE_AFTER.saturating_sub(delivery.waited).max(NOTICE_DELAY);
    let noticing = async {
        tokio::time::sleep(delay).await;
        enqueue_waiting_notice(context, delivery, envelope).await;
    };
    match select(pin!(attempt), pin!(noticing)).await {
        Either::Left((result, _)) => result,
        Either::Right(((), attempt)) => attempt.await,
    }
}

/// Enqueues the notice that a delivery waits, unless its conversation got one within the hour.
pub async fn enqueue_waiting_notice(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
) {
    if delivery.was_notified || delivery.agent().is_none() {
        return;
    }
    let notice = |webhook: &Webhook<'_>, connection: &Connection| {
        routing::notice(webhook, connection.team.as_ref(), routing::WAITING)
    };
    let Some(message) = build_notice(context, delivery, envelope, notice).await else { return };
    match context.clients.store.enqueue_waiting_notice(delivery, &message).await {
        Ok(()) => context.clients.wake_outbox.notify_one(),
        Err(error) => {
            warn!(
                key = %delivery.dedup_key, error = %ErrorChain(&error), "failed to enqueue notice"
            );
        }
    }
}

/// Returns a message for the person behind a webhook, `None` if no person addressed the app: apps
/// get messages that are not addressed to them.
async fn build_notice(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
    message: impl Fn(&Webhook<'_>, &Connection) -> Option<OutgoingMessage>,
) -> Option<OutgoingMessage> {
    let id = delivery.key.connection;
    let connection = context.clients.connections.connection(id).await.ok()??;
    let is_message = match delivery.agent() {
        Some((org, id)) => {
            let agent = context.agent(&org, &id).await.ok().flatten();
            agent.is_none_or(|agent| agent.mode == AgentMode::Reply)
        }
        None => false,
    };
    let parts = BodyParts::split(envelope.media, &envelope.body);
    let webhook = Webhook { envelope, inbound: parts.read() };
    let is_addressed = routing::is_addressed(&webhook, connection.bot_user.as_deref(), is_message);
    is_addressed.then(|| message(&webhook, &connection)).flatten()
}
