//! Replays a range of a connection's webhooks: reads them from the stream and decides them again.
//!
//! A dry run (the default of `tidegate replay`) records the outcome of each webhook. With `apply`,
//! deliveries are enqueued at background priority, with their own lanes and dedup keys; other
//! effects are left out. Another worker continues the replay of a worker that crashed. Decisions
//! use the current bindings and settings.

use crate::{
    context::Context,
    decider::{Decider, ReadWebhook},
};
use async_nats::jetstream;
use shared::{
    runtime::telemetry::ErrorChain,
    store::{DecidedWebhook, Decision, Replay, ReplayResult},
    stream::{BoxError, DedupKey, Envelope, ReaderEvent, STREAM, StreamReader, first_since},
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Interval of looking for replays.
const INTERVAL: Duration = Duration::from_secs(1);
/// Error of a replay whose lease is lost.
const LEASE_LOST: &str = "another worker runs the replay, or it was cancelled";

/// Runs replays, one at a time, until `stop`.
pub async fn run(
    context: &Context,
    js: &jetstream::Context,
    decider: &Decider,
    ttl: Duration,
    stop: &CancellationToken,
) {
    let working = async {
        loop {
            match context.store.claim_replay(&context.worker_name, ttl).await {
                Ok(Some(replay)) => run_replay(context, js, decider, ttl, &replay).await,
                Ok(None) => tokio::time::sleep(INTERVAL).await,
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "failed to claim replay");
                    tokio::time::sleep(INTERVAL).await;
                }
            }
        }
    };
    stop.run_until_cancelled(working).await;
}

async fn run_replay(
    context: &Context,
    js: &jetstream::Context,
    decider: &Decider,
    ttl: Duration,
    replay: &Replay,
) {
    let (id, apply) = (&replay.id, replay.apply);
    info!(replay = id, apply, cursor = replay.cursor, "replay started");
    let ended = tokio::select! {
        ended = decide_all(context, js, decider, replay) => ended,
        () = renew(context, replay, ttl) => {
            warn!(replay = id, "replay lost or cancelled");
            return;
        }
    };
    let result = ended.map_err(|error| ErrorChain(&*error).to_string());
    info!(replay = id, ?result, "replay ended");
    let result = result.as_ref().copied().map_err(String::as_str);
    if let Err(error) = context.store.end_replay(replay, result).await {
        warn!(replay = id, error = %ErrorChain(&error), "failed to record replay result");
    }
}

/// Renews the lease of a replay. Returns when it is lost or was not renewed for a TTL.
async fn renew(context: &Context, replay: &Replay, ttl: Duration) {
    let mut renewed = tokio::time::Instant::now();
    while renewed.elapsed() < ttl {
        tokio::time::sleep(ttl / 6).await;
        let before = tokio::time::Instant::now();
        match context.store.renew_replay(replay, None, ttl).await {
            Ok(true) => renewed = before,
            Ok(false) => return,
            Err(error) => warn!(error = %ErrorChain(&error), "failed to renew lease of replay"),
        }
    }
}

async fn decide_all(
    context: &Context,
    js: &jetstream::Context,
    decider: &Decider,
    replay: &Replay,
) -> Result<(), BoxError> {
    let filter = format!("slack.in.*.{}", replay.connection);
    let stream = js.get_stream(STREAM).await?;
    let last = stream.cached_info().state.last_sequence;
    let name = format!("{}-e{}", replay.id.replace(':', "-"), replay.epoch);
    let first = first_since(&stream, filter.clone(), replay.from, format!("{name}-since")).await?;
    let Some(first) = first else { return Ok(()) };
    let mut reader =
        StreamReader::new(js.clone(), STREAM, filter, name, first.max(replay.cursor + 1));
    let mut counted = false;
    loop {
        let (at, message) = match reader.next().await {
            ReaderEvent::Message(at, _) if at.stored_at >= replay.to => return Ok(()),
            ReaderEvent::Message(at, message) => (at, message),
            ReaderEvent::CaughtUp(through, _) if through >= last => return Ok(()),
            ReaderEvent::Opened(state) if state.last_sequence < last => {
                return Err("the stream was recreated during the replay".into());
            }
            ReaderEvent::CaughtUp(..) | ReaderEvent::Opened(_) => continue,
        };
        if !std::mem::replace(&mut counted, true) {
            context.store.count_replay(replay, at.waiting + 1).await?;
        }
        let body = message.payload.clone();
        let decoded = Envelope::decode(&message.subject, message.headers.as_ref(), body);
        let result = match decoded {
            Ok(envelope) => {
                let read = ReadWebhook { sequence: at.sequence, stored_at: at.stored_at, envelope };
                let (_, webhook) = decider.decide_again(&read).await?;
                let (outcome, effects) = describe(&webhook.decision);
                let kind = webhook.envelope.kind.as_str().to_owned();
                if replay.apply {
                    enqueue(context, replay, webhook).await?;
                }
                ReplayResult {
                    sequence: at.sequence,
                    stored_at: at.stored_at,
                    kind,
                    outcome,
                    effects,
                }
            }
            Err(reason) => ReplayResult {
                sequence: at.sequence,
                stored_at: at.stored_at,
                kind: "unknown".into(),
                outcome: "dead_letter".into(),
                effects: vec![reason.to_string()],
            },
        };
        if !context.store.record_replay_result(replay, &result).await? {
            return Err(LEASE_LOST.into());
        }
        if at.waiting == 0 && at.sequence >= last {
            return Ok(());
        }
    }
}

/// Enqueues the delivery of a webhook, if it has one. Idempotent per replay.
async fn enqueue(
    context: &Context,
    replay: &Replay,
    mut webhook: DecidedWebhook,
) -> Result<(), BoxError> {
    if !matches!(&webhook.decision, Decision::Apply(effects) if effects.delivery.is_some()) {
        return Ok(());
    }
    // The agent would drop a delivery with the original key as a duplicate.
    let key = format!("{}:replay:{}", webhook.envelope.dedup_key, replay.id);
    webhook.envelope.dedup_key = DedupKey::from_stored(key);
    webhook.envelope.lane = webhook.envelope.lane.of_replay(&replay.id);
    webhook.envelope.reply = None; // Slack's request has ended
    if !context.store.enqueue_replayed(replay, &webhook).await? {
        return Err(LEASE_LOST.into());
    }
    context.wake_dispatch.notify_one();
    Ok(())
}

/// Returns the outcome and the effects of a decision, without texts that people wrote.
fn describe(decision: &Decision) -> (String, Vec<String>) {
    match decision {
        Decision::Ignore { reason, .. } => ("ignored".into(), vec![reason.as_str().into()]),
        Decision::DeadLetter { reason, error } => {
            ("dead_letter".into(), vec![format!("{reason} {error}").trim().to_owned()])
        }
        Decision::Overflow => ("dead_letter".into(), vec![Decision::OVERFLOW.to_owned()]),
        Decision::Apply(effects) => {
            let consume = effects.consume.iter().map(|_| "consume a link code".to_owned());
            let changes = effects.changes.iter().map(|change| change.action.as_str().to_owned());
            let messages =
                effects.messages.iter().map(|message| format!("send by {}", message.to.as_str()));
            let delivery = effects
                .delivery
                .iter()
                .map(|delivery| format!("call agent {}/{}", delivery.org, delivery.agent));
            let effects_of = consume.chain(changes).chain(messages).chain(delivery).collect();
            (effects.processed_as.as_str().into(), effects_of)
        }
    }
}
