//! Runs one attempt of a delivery and returns its outcome.
//!
//! Called by the scheduler's tasks. An attempt loads the payload, calls the agent or the team's
//! own handler, and classifies the result. `outcome_recorder` records outcomes; an attempt itself
//! records only states of the circuit breaker, waiting notices and merged messages.

use super::{
    agents::{self, Completion},
    attempt_context::AttemptContext,
    handler::{AnyHandler, HandlerContext, HandlerOutcome, HandlerSettings},
    notices,
    payloads::{self, PayloadError},
    question,
    retry::{self, AfterFailure, CRASHES_MAX, Failure},
    runs::StreamingRun,
};
use crate::{
    agent_client::{AgentError, FailureKind},
    context::{Context, WorkerTerm},
    probe::Stage,
    routing::Webhook,
};
use bytes::Bytes;
use shared::{
    domain::{AgentMode, ConnectionId, HeaderToken, OutgoingMessage, WebhookKind},
    runtime::telemetry::{self, DESTINATION_TEMPLATE, ErrorChain},
    slack::BodyParts,
    store::{
        Change, ClaimedDelivery, Connection, FinishedDelivery, FinishedOutcome, PostponedDelivery,
    },
    stream::Envelope,
};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tracing::{Instrument, Span, info, warn};

/// Wait after Postgres or the worker's row was unavailable, or when the worker had no capacity.
pub const RELEASE_WAIT: Duration = Duration::from_millis(500);

/// Reason and error of a dead letter after [`CRASHES_MAX`] crashes.
const CRASHED: (&str, &str) =
    ("attempts ended without an outcome", "the attempt panicked, or its process died");

/// Reason of a dead letter whose payload cannot be loaded.
const PAYLOAD_LOST: &str = "the payload is missing or unreadable";

/// Outcome of an attempt, to be recorded.
pub enum AttemptOutcome {
    /// The delivery ends, with a change of its conversation if there is one: a new session, or an
    /// approval.
    Finished(Box<FinishedDelivery>, Option<Change>),
    /// The delivery waits for another attempt.
    Postponed(PostponedDelivery),
}

/// Result of calling the agent or the handler.
pub enum CallResult {
    Completed(Box<Completion>),
    /// The agent failed. The duration is the time for which the delivery is retried.
    Failed(AgentError, Duration),
    DeadLetter {
        reason: String,
        error: String,
    },
    /// The attempt could not be made, and does not count.
    Released {
        after: Duration,
        error: String,
    },
    /// The agent streams its answer.
    Streaming(Box<StreamingRun>),
}

/// Result of an attempt.
#[expect(clippy::large_enum_variant, reason = "returned, never stored")]
pub enum AttemptResult {
    Ended(AttemptOutcome),
    /// The attempt continues as a run.
    Streaming(Box<StreamingRun>),
}

impl CallResult {
    pub fn completed(completion: Completion) -> Self {
        Self::Completed(Box::new(completion))
    }
}

/// Runs an attempt. After [`CRASHES_MAX`] crashes the delivery becomes a dead letter.
pub async fn run(
    context: &AttemptContext,
    term: &Arc<WorkerTerm>,
    delivery: ClaimedDelivery,
) -> AttemptResult {
    let began = Instant::now();
    if delivery.crashes > CRASHES_MAX {
        // The attempt that built the failure notice crashed, too: no notice.
        let (reason, error) = CRASHED;
        return AttemptResult::Ended(dead_letter(delivery, reason, error.into(), Vec::new(), None));
    }
    let envelope = match payloads::load(context, &delivery).await {
        Ok(envelope) => envelope,
        Err(PayloadError::Wait(after, error)) => {
            return AttemptResult::Ended(released_outcome(delivery, after, error));
        }
        Err(PayloadError::Lost(error)) => {
            let outcome = dead_letter(delivery, PAYLOAD_LOST, error, Vec::new(), None);
            return AttemptResult::Ended(outcome);
        }
    };
    let span = span(&delivery, &envelope);
    let call = call(context, term, &delivery, &envelope).instrument(span);
    let result = notices::run_with_waiting_notice(context, &delivery, &envelope, call).await;
    let kind = delivery.kind;
    if let CallResult::Streaming(run) = result {
        // The first event of the stream is a success for the circuit breaker.
        record(context, envelope.connection, kind, "completed", began);
        return AttemptResult::Streaming(run);
    }
    let (label, outcome) = outcome_of(context, delivery, &envelope, result).await;
    record(context, envelope.connection, kind, label, began);
    if matches!(outcome, AttemptOutcome::Finished(..)) {
        let received = UNIX_EPOCH + Duration::from_millis(envelope.received_at_ms);
        #[expect(clippy::disallowed_methods, reason = "a delivery ends")]
        let latency = SystemTime::now().duration_since(received).unwrap_or_default();
        context.metrics.record_latency(latency);
    }
    AttemptResult::Ended(outcome)
}

fn record(
    context: &AttemptContext,
    connection: ConnectionId,
    kind: WebhookKind,
    label: &'static str,
    began: Instant,
) {
    let is_failure = label != "completed";
    context.clients.usage.record_attempt(connection, began.elapsed(), is_failure);
    context.metrics.record_attempt(kind, label, began.elapsed());
}

/// Returns the outcome of a call, with its metric label.
pub async fn outcome_of(
    context: &AttemptContext,
    delivery: ClaimedDelivery,
    envelope: &Envelope,
    result: CallResult,
) -> (&'static str, AttemptOutcome) {
    let (reason, error) = match result {
        CallResult::Completed(completion) => {
            let Completion { outcome, mut messages, response, change, reached } = *completion;
            if let Some((body, late)) = response {
                messages.extend(relay_response(&context.clients, envelope, body, late).await);
            }
            if reached {
                context.record_success(&delivery).await;
            }
            let (outcome, traceparent) =
                (FinishedOutcome::Completed(outcome), envelope.traceparent.clone());
            let finished = FinishedDelivery { delivery, outcome, messages, traceparent };
            return ("completed", AttemptOutcome::Finished(Box::new(finished), change));
        }
        CallResult::Released { after, error } => {
            return ("released", released_outcome(delivery, after, error));
        }
        CallResult::DeadLetter { reason, error } => (reason, error),
        CallResult::Streaming(_) => {
            // Unreachable: `run` handles streams.
            return ("released", released_outcome(delivery, RELEASE_WAIT, String::new()));
        }
        CallResult::Failed(error, retry_for) => {
            let AgentError { kind, message, retry_after } = error;
            if matches!(kind, FailureKind::Unavailable | FailureKind::Failing) {
                context.record_failure(&delivery, &message).await;
            }
            let failure = Failure {
                kind,
                attempts: delivery.attempts,
                faults: delivery.faults,
                age: delivery.age,
                retry_for,
                retry_after,
                has_answered_others: context.has_answered_others(&delivery),
            };
            match retry::after_failure(&failure, jitter()) {
                AfterFailure::DeadLetter(reason) => (reason.to_owned(), message),
                AfterFailure::Retry(after) => {
                    if delivery.waited > notices::NOTICE_AFTER {
                        notices::enqueue_waiting_notice(context, &delivery, envelope).await;
                    }
                    info!(
                        key = %delivery.dedup_key, agent = delivery.agent,
                        attempts = delivery.attempts, ?after, error = message, "attempt failed"
                    );
                    return (
                        "retry",
                        AttemptOutcome::Postponed(PostponedDelivery {
                            delivery,
                            after,
                            error: message,
                            counts: true,
                            fault: failure.is_fault(),
                            crashed: false,
                        }),
                    );
                }
            }
        }
    };
    let notice = notices::build_failure_notice(context, &delivery, envelope).await;
    // As a sync response if possible: Slack replaces a view that is updated while its request is
    // open.
    let messages = match notice.as_ref().and_then(agents::failure_response) {
        Some(body) => {
            let late = notice.into_iter().collect();
            relay_response(&context.clients, envelope, body, late).await
        }
        None => notice.into_iter().collect(),
    };
    let traceparent = envelope.traceparent.clone();
    ("dead_letter", dead_letter(delivery, &reason, error, messages, traceparent))
}

async fn call(
    context: &AttemptContext,
    term: &Arc<WorkerTerm>,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
) -> CallResult {
    let clients = &context.clients;
    if delivery.crashes >= CRASHES_MAX {
        let (reason, error) = CRASHED;
        return CallResult::DeadLetter { reason: reason.into(), error: error.into() };
    }
    let unavailable = |error: String| CallResult::Released { after: RELEASE_WAIT, error };
    let unreached = |outcome| CallResult::completed(Completion::unreached(outcome, Vec::new()));
    let connection = match clients.connections.connection(delivery.key.connection).await {
        Ok(Some(connection)) => connection,
        Ok(None) => return unreached("connection_deleted"),
        Err(error) => return unavailable(ErrorChain(&error).to_string()),
    };
    clients.probe(Stage::Attempt, &envelope.body);
    let parts = BodyParts::split(envelope.media, &envelope.body);
    let webhook = Webhook { envelope, inbound: parts.read() };
    let Some((org, id)) = delivery.agent() else {
        return match &context.handler {
            Some((handler, settings)) => {
                call_handler(handler, settings, &connection, &webhook).await
            }
            None => CallResult::completed(agents::answer_view(&webhook)),
        };
    };
    let agent = match context.agent(&org, &id).await {
        Ok(Some(agent)) => agent,
        Ok(None) => return unreached("agent_deleted"),
        Err(error) => return unavailable(ErrorChain(&error).to_string()),
    };
    if delivery.attempts == 1 && delivery.waited > agent.keep_for {
        let reason = "the delivery waited too long for its first attempt".to_owned();
        return CallResult::DeadLetter { reason, error: format!("waited {:?}", delivery.waited) };
    }
    if !term.holds() {
        return unavailable("the worker's row expired".into());
    }
    let completed = match agent.mode {
        AgentMode::Forward if !connection.allows_app_of(&agent.org) => {
            return unreached("agent_not_allowed");
        }
        AgentMode::Forward => agents::forward(&clients.agents, &agent, &connection, &webhook).await,
        AgentMode::Reply => {
            return question::ask(context, term, &agent, &connection, &webhook, delivery).await;
        }
    };
    let retry_for = retry::retry_for(agent.retry_for, agent.mode);
    completed.map_or_else(|error| CallResult::Failed(error, retry_for), CallResult::completed)
}

async fn call_handler(
    handler: &AnyHandler,
    settings: &HandlerSettings,
    connection: &Arc<Connection>,
    webhook: &Webhook<'_>,
) -> CallResult {
    let context = HandlerContext { connection, envelope: webhook.envelope };
    let handling = handler.handle(&context, &webhook.inbound);
    let failed = |kind, message| {
        let error = AgentError { kind, message, retry_after: None };
        CallResult::Failed(error, retry::retry_for(None, AgentMode::Forward))
    };
    match tokio::time::timeout(settings.timeout, handling).await {
        Ok(HandlerOutcome::Completed { messages, response }) => {
            CallResult::completed(Completion { messages, response, ..Completion::new("completed") })
        }
        Ok(HandlerOutcome::Retry { cause }) => failed(FailureKind::Unavailable, cause),
        Ok(HandlerOutcome::Failed { error }) => failed(FailureKind::Unusable, error),
        Ok(HandlerOutcome::DeadLetter { reason, error }) => {
            CallResult::DeadLetter { reason, error }
        }
        Err(_) => {
            let message = format!("the handler took longer than {:?}", settings.timeout);
            failed(FailureKind::Failing, message)
        }
    }
}

/// Relays a sync response to the HTTP request that waits for it. Returns the messages to send
/// instead if no request waits.
async fn relay_response(
    context: &Context,
    envelope: &Envelope,
    body: Bytes,
    late: Vec<OutgoingMessage>,
) -> Vec<OutgoingMessage> {
    match &envelope.reply {
        Some(window) if agents::relay(&context.nats, window, body).await => Vec::new(),
        _ => late,
    }
}

/// Returns the outcome that releases a delivery whose agent was not called. The attempt does not
/// count.
pub fn released_outcome(
    delivery: ClaimedDelivery,
    after: Duration,
    error: String,
) -> AttemptOutcome {
    let (counts, fault, crashed) = (false, false, false);
    AttemptOutcome::Postponed(PostponedDelivery { delivery, after, error, counts, fault, crashed })
}

/// Returns the outcome of an attempt that panicked. The attempt counts as a crash.
pub fn panicked_outcome(
    context: &AttemptContext,
    delivery: ClaimedDelivery,
    began: Instant,
) -> AttemptOutcome {
    warn!(key = %delivery.dedup_key, "attempt panicked");
    record(context, delivery.key.connection, delivery.kind, "panicked", began);
    let (after, error) = (RELEASE_WAIT, "the attempt panicked".to_owned());
    let (counts, fault, crashed) = (true, false, true);
    AttemptOutcome::Postponed(PostponedDelivery { delivery, after, error, counts, fault, crashed })
}

/// Returns the outcome that ends a delivery which an operator cancelled.
pub fn cancelled_outcome(delivery: ClaimedDelivery) -> AttemptOutcome {
    let outcome = FinishedOutcome::Completed("cancelled");
    let finished = FinishedDelivery { delivery, outcome, messages: Vec::new(), traceparent: None };
    AttemptOutcome::Finished(Box::new(finished), None)
}

/// Returns the outcome that moves a delivery to the dead letters.
pub fn dead_letter(
    delivery: ClaimedDelivery,
    reason: &str,
    error: String,
    messages: Vec<OutgoingMessage>,
    traceparent: Option<HeaderToken>,
) -> AttemptOutcome {
    warn!(
        key = %delivery.dedup_key, agent = delivery.agent, attempts = delivery.attempts, reason,
        error, "delivery moved to the dead letters"
    );
    let outcome = FinishedOutcome::DeadLetter { reason: reason.to_owned(), error };
    let finished = FinishedDelivery { delivery, outcome, messages, traceparent };
    AttemptOutcome::Finished(Box::new(finished), None)
}

/// Returns a random number in 0.0..1.0, or 0.0 if the system's random source fails.
fn jitter() -> f64 {
    let mut byte = [0_u8];
    let _ = getrandom::fill(&mut byte);
    f64::from(byte[0]) / 256.0
}

/// Returns the trace span of an attempt, linked to the span of the webhook's HTTP request. It is no
/// child of that span, which has ended.
fn span(delivery: &ClaimedDelivery, envelope: &Envelope) -> Span {
    let span = tracing::info_span!(
        target: "tidegate::trace",
        "process",
        otel.name = format!("process {DESTINATION_TEMPLATE}"),
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.type = "process",
        messaging.destination.template = DESTINATION_TEMPLATE,
        messaging.message.id = %delivery.dedup_key,
    );
    if let Some(traceparent) = &envelope.traceparent {
        telemetry::link_span(&span, traceparent);
    }
    span
}
