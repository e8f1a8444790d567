//! Notices to the author of a webhook that its delivery waits or was given up.

use super::{agents, attempt_context::AttemptContext, payloads};
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

/// Time that a delivery waits before its author gets a notice.
pub const NOTICE_AFTER: Duration = Duration::from_secs(30);
/// Minimum duration of an attempt before the notice. Most attempts end within this time.
const NOTICE_DELAY: Duration = Duration::from_secs(2);

/// Returns the notice to the author of a webhook that was given up, `None` if nobody gets one.
pub async fn build_failure_notice(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
) -> Option<OutgoingMessage> {
    build_notice(context, delivery, envelope, agents::failure_notice).await
}

/// Returns the notice to the author of a webhook that Slack refused the answer. `None` if nobody
/// gets one.
pub async fn build_refusal_notice(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
) -> Option<OutgoingMessage> {
    let envelope = payloads::load(context, delivery).await.ok()?;
    let key = delivery.dedup_key.as_str();
    let reference = key.rsplit(':').next().unwrap_or(key);
    let text =
        format!("Slack did not accept the answer. Ask an administrator about `{reference}`.");
    let notice = |webhook: &Webhook<'_>, connection: &Connection| {
        routing::notice(webhook, connection.team.as_ref(), &text)
    };
    build_notice(context, delivery, &envelope, notice).await
}

/// Runs an attempt. Enqueues the waiting notice once the delivery has waited [`NOTICE_AFTER`] and
/// the attempt has taken [`NOTICE_DELAY`].
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

/// Enqueues the notice that a delivery waits, unless its conversation got one within an hour.
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
            let (key, error) = (&delivery.dedup_key, ErrorChain(&error));
            warn!(%key, %error, "failed to enqueue waiting notice");
        }
    }
}

/// Returns a message to the author of a webhook. `None` if the webhook does not address the app:
/// apps get all messages of their channels.
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
