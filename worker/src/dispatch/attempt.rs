//! One attempt of a delivery: reads its bytes, calls the agent, and says what follows.

use super::{
    agents::{self, Answered},
    handler::{AnyHandler, HandlerContext, HandlerOutcome},
    retry::{self, CRASHES_MAX, Failure, Next},
    scheduler::{HandlerSettings, Shared},
};
use crate::{
    agent_client::{AgentError, FailureKind},
    context::{Context, WorkerTerm},
    probe::Stage,
    routing::{self, Webhook},
};
use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{Either, select},
};
use shared::{
    codec::{
        envelope::{Envelope, NotDecoded},
        slack::Parts,
    },
    store::{
        Change, ClaimedDelivery, Connection, FinishedDelivery, FinishedOutcome, PostponedDelivery,
        SealedPayload,
    },
    stream::{self, pairs_to_headers},
    telemetry::{self, Chain, DESTINATION},
    types::{AgentMode, Outgoing},
};
use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tracing::{Instrument, Span, info, warn};

/// Wait after something of Tidegate's own was away, or when there was no room.
pub const RELEASE_WAIT: Duration = Duration::from_millis(500);
/// Wait for what a person has to mend: a missing key, a newer release.
const UNREADABLE_WAIT: Duration = Duration::from_secs(60);

/// A person whose request waited for this long is told so.
const TELL_AFTER: Duration = Duration::from_secs(30);
/// An attempt that has just begun may end at once: no notice within this time.
const TELL_NO_SOONER: Duration = Duration::from_secs(2);

/// What follows from an attempt, to be recorded.
pub enum End {
    /// It is over.
    Finished(Box<FinishedDelivery>, Option<Change>),
    /// It waits.
    Postponed(PostponedDelivery),
}

/// How a call ended.
enum Called {
    Answered(Box<Answered>),
    Failed(AgentError, Duration),
    DeadLetter { reason: String, error: String },
    Released { after: Duration, error: String },
}

impl Called {
    fn answered(answered: Answered) -> Self {
        Self::Answered(Box::new(answered))
    }
}

/// Runs an attempt to its end. Panics are caught: they count, and the third gives the delivery up.
pub async fn run(shared: &Shared, term: &WorkerTerm, delivery: ClaimedDelivery) -> End {
    let (context, began) = (&shared.context, Instant::now());
    let envelope = match envelope(shared, &delivery).await {
        Ok(envelope) => envelope,
        Err(Unreadable::Wait(after, error)) => {
            return released(delivery, after, error, false);
        }
        Err(Unreadable::Gone(error)) => {
            return given_up(delivery, "its bytes are gone", error, None);
        }
    };
    let span = span(&delivery, &envelope);
    let attempt = attempt(shared, term, &delivery, &envelope).instrument(span);
    let attempt = AssertUnwindSafe(attempt).catch_unwind();
    let called = beside(attempt, tell_when_late(shared, &delivery, &envelope)).await;
    let (called, crashed) = match called {
        Ok(called) => (called, false),
        Err(_) => {
            warn!(key = %delivery.dedup_key, "attempt panicked");
            let error = "the attempt panicked".to_owned();
            (Called::Released { after: RELEASE_WAIT, error }, true)
        }
    };
    let kind = delivery.kind;
    let (outcome, end) = follow(shared, delivery, &envelope, called, crashed).await;
    context.usage.attempt(envelope.connection, began.elapsed(), outcome != "completed");
    shared.metrics.attempt(kind, outcome, began.elapsed());
    if matches!(end, End::Finished(..)) {
        let received = UNIX_EPOCH + Duration::from_millis(envelope.received_at_ms);
        shared.metrics.finished(SystemTime::now().duration_since(received).unwrap_or_default());
    }
    end
}

async fn follow(
    shared: &Shared,
    delivery: ClaimedDelivery,
    envelope: &Envelope,
    called: Called,
    crashed: bool,
) -> (&'static str, End) {
    match called {
        Called::Answered(answered) => {
            let Answered { outcome, mut messages, response, change, reached } = *answered;
            if let Some((body, late)) = response {
                messages.extend(relayed_or_late(&shared.context, envelope, body, late).await);
            }
            if reached {
                shared.succeeded(&delivery).await;
            }
            let traceparent = envelope.traceparent.clone();
            let outcome_of = FinishedOutcome::Completed(outcome);
            let finished =
                FinishedDelivery { delivery, outcome: outcome_of, messages, traceparent };
            ("completed", End::Finished(Box::new(finished), change))
        }
        Called::Released { after, error } => {
            let word = if crashed { "panicked" } else { "released" };
            (word, released(delivery, after, error, crashed))
        }
        Called::DeadLetter { reason, error } => {
            let message = told(shared, &delivery, envelope).await;
            ("dead_letter", given_up_for(delivery, reason, error, message, envelope))
        }
        Called::Failed(error, retry_for) => {
            let AgentError { kind, message, retry_after } = error;
            if matches!(kind, FailureKind::Away | FailureKind::Failing) {
                shared.failed(&delivery, &message).await;
            }
            let failure = Failure {
                kind,
                attempts: delivery.attempts,
                faults: delivery.faults,
                age: delivery.age,
                retry_for,
                retry_after,
                answers_others: shared.answers_others(&delivery),
            };
            match retry::after_failure(&failure, shared.jitter()) {
                Next::Retry(after) => {
                    if delivery.waited > TELL_AFTER {
                        tell_waiting(shared, &delivery, envelope).await;
                    }
                    info!(key = %delivery.dedup_key, agent = delivery.agent, attempts = delivery.attempts, ?after, error = message, "attempt failed");
                    let postponed = PostponedDelivery {
                        delivery,
                        after,
                        error: message,
                        counts: true,
                        fault: failure.is_fault(),
                        crashed: false,
                    };
                    ("retry", End::Postponed(postponed))
                }
                Next::DeadLetter(reason) => {
                    let told = told(shared, &delivery, envelope).await;
                    let reason = reason.to_owned();
                    ("dead_letter", given_up_for(delivery, reason, message, told, envelope))
                }
            }
        }
    }
}

async fn attempt(
    shared: &Shared,
    term: &WorkerTerm,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
) -> Called {
    let context = &shared.context;
    if delivery.crashes >= CRASHES_MAX {
        let reason = "its attempts ended without an outcome".to_owned();
        return Called::DeadLetter { reason, error: "a panic, or a process that died".into() };
    }
    let unavailable = |error: String| Called::Released { after: RELEASE_WAIT, error };
    let connection = match context.connections.connection(delivery.key.connection).await {
        Ok(Some(connection)) => connection,
        Ok(None) => return Called::answered(Answered::unreached("connection_deleted", Vec::new())),
        Err(error) => return unavailable(Chain(&error).to_string()),
    };
    context.probe(Stage::Attempt, &envelope.body);
    let parts = Parts::split(envelope.media, &envelope.body);
    let webhook = Webhook { envelope, inbound: parts.read() };
    let Some((org, id)) = delivery.agent() else {
        return match &shared.handler {
            Some((handler, settings)) => handle(handler, settings, &connection, &webhook).await,
            None => Called::answered(agents::answer_view(&webhook)),
        };
    };
    let agent = match shared.agent(&org, &id).await {
        Ok(Some(agent)) => agent,
        Ok(None) => return Called::answered(Answered::unreached("agent_deleted", Vec::new())),
        Err(error) => return unavailable(Chain(&error).to_string()),
    };
    if delivery.attempts == 1 && delivery.waited > agent.keep_for {
        let reason = "it waited too long for its first attempt".to_owned();
        return Called::DeadLetter { reason, error: format!("waited {:?}", delivery.waited) };
    }
    if !term.holds() {
        return unavailable("the worker's row expired".into());
    }
    let answered = match agent.mode {
        AgentMode::Forward => agents::forward(&context.agents, &agent, &connection, &webhook).await,
        AgentMode::Reply => {
            agents::ask(context, term, &agent, &connection, &webhook, delivery.session).await
        }
    };
    let retry_for = retry::retry_for(agent.retry_for, agent.mode);
    answered.map_or_else(|error| Called::Failed(error, retry_for), Called::answered)
}

async fn handle(
    handler: &AnyHandler,
    settings: &HandlerSettings,
    connection: &Arc<Connection>,
    webhook: &Webhook<'_>,
) -> Called {
    let context = HandlerContext { connection, envelope: webhook.envelope };
    let handling = handler.handle(&context, &webhook.inbound);
    let failed = |kind, message| {
        let error = AgentError { kind, message, retry_after: None };
        Called::Failed(error, retry::retry_for(None, AgentMode::Forward))
    };
    match tokio::time::timeout(settings.timeout, handling).await {
        Ok(HandlerOutcome::Done { messages, response }) => {
            Called::answered(Answered { messages, response, ..Answered::new("completed") })
        }
        Ok(HandlerOutcome::Retry { cause }) => failed(FailureKind::Away, cause),
        Ok(HandlerOutcome::Fail { error }) => failed(FailureKind::Unusable, error),
        Ok(HandlerOutcome::DeadLetter { reason, error }) => Called::DeadLetter { reason, error },
        Err(_) => {
            let message = format!("the handler took longer than {:?}", settings.timeout);
            failed(FailureKind::Failing, message)
        }
    }
}

/// Sends a response into the request that waits for it; returns what is left to send if none does.
async fn relayed_or_late(
    context: &Context,
    envelope: &Envelope,
    body: Bytes,
    late: Vec<Outgoing>,
) -> Vec<Outgoing> {
    match &envelope.reply {
        Some(window) if agents::relay(&context.nats, window, body).await => Vec::new(),
        _ => late,
    }
}

/// The message for the person whose webhook is given up.
async fn told(
    shared: &Shared,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
) -> Option<Outgoing> {
    message_to_person(shared, delivery, envelope, agents::given_up).await
}

/// Tells the person that the delivery waits, once it has waited for long.
async fn tell_when_late(shared: &Shared, delivery: &ClaimedDelivery, envelope: &Envelope) {
    // What is answered at once needs no notice, however long it waited for its turn.
    tokio::time::sleep(TELL_AFTER.saturating_sub(delivery.waited).max(TELL_NO_SOONER)).await;
    tell_waiting(shared, delivery, envelope).await;
}

/// Awaits the first future, and polls the second while it lasts.
async fn beside<T>(first: impl Future<Output = T>, second: impl Future<Output = ()>) -> T {
    let (first, second) = (pin!(first), pin!(second));
    match select(first, second).await {
        Either::Left((result, _)) => result,
        Either::Right(((), first)) => first.await,
    }
}

async fn tell_waiting(shared: &Shared, delivery: &ClaimedDelivery, envelope: &Envelope) {
    if delivery.told || delivery.agent().is_none() {
        return;
    }
    let notice = |webhook: &Webhook<'_>, connection: &Connection| {
        routing::notice(webhook, connection.team.as_ref(), routing::WAITING)
    };
    let Some(message) = message_to_person(shared, delivery, envelope, notice).await else { return };
    match shared.context.store.tell_waiting(delivery, &message).await {
        Ok(()) => shared.context.wake_outbox.notify_one(),
        Err(error) => {
            warn!(key = %delivery.dedup_key, error = %Chain(&error), "failed to enqueue the notice that a delivery waits");
        }
    }
}

/// A message for the person behind a webhook, if a person meant the app with it: an app gets all that is said.
async fn message_to_person(
    shared: &Shared,
    delivery: &ClaimedDelivery,
    envelope: &Envelope,
    message: impl Fn(&Webhook<'_>, &Connection) -> Option<Outgoing>,
) -> Option<Outgoing> {
    let connection =
        shared.context.connections.connection(delivery.key.connection).await.ok()??;
    let is_message = match delivery.agent() {
        Some((org, id)) => {
            let agent = shared.agent(&org, &id).await.ok().flatten();
            agent.is_none_or(|agent| agent.mode == AgentMode::Reply)
        }
        None => false,
    };
    let parts = Parts::split(envelope.media, &envelope.body);
    let webhook = Webhook { envelope, inbound: parts.read() };
    let is_meant = routing::is_addressed(&webhook, connection.bot_user.as_deref(), is_message);
    is_meant.then(|| message(&webhook, &connection)).flatten()
}

/// Puts a delivery back. An attempt that crashed counts; any other does not.
pub fn released(delivery: ClaimedDelivery, after: Duration, error: String, crashed: bool) -> End {
    let (counts, fault) = (crashed, false);
    End::Postponed(PostponedDelivery { delivery, after, error, counts, fault, crashed })
}

/// Ends a delivery that an operator cancelled.
pub fn cancelled(delivery: ClaimedDelivery) -> End {
    let outcome = FinishedOutcome::Completed("cancelled");
    let finished = FinishedDelivery { delivery, outcome, messages: Vec::new(), traceparent: None };
    End::Finished(Box::new(finished), None)
}

fn given_up_for(
    delivery: ClaimedDelivery,
    reason: String,
    error: String,
    message: Option<Outgoing>,
    envelope: &Envelope,
) -> End {
    let traceparent = envelope.traceparent.clone();
    let end = given_up(delivery, &reason, error, message);
    match end {
        End::Finished(finished, change) => {
            End::Finished(Box::new(FinishedDelivery { traceparent, ..*finished }), change)
        }
        postponed => postponed,
    }
}

fn given_up(
    delivery: ClaimedDelivery,
    reason: &str,
    error: String,
    message: Option<Outgoing>,
) -> End {
    warn!(key = %delivery.dedup_key, agent = delivery.agent, attempts = delivery.attempts, reason, error, "delivery moved to the dead letters");
    let outcome = FinishedOutcome::DeadLetter { reason: reason.to_owned(), error };
    let messages = message.into_iter().collect();
    End::Finished(
        Box::new(FinishedDelivery { delivery, outcome, messages, traceparent: None }),
        None,
    )
}

enum Unreadable {
    /// It may be readable later: by another release, or with another key.
    Wait(Duration, String),
    /// Its row is gone: it was deleted, or skipped.
    Gone(String),
}

/// The webhook: from memory when intake committed it a moment ago, else from Postgres.
async fn envelope(shared: &Shared, delivery: &ClaimedDelivery) -> Result<Envelope, Unreadable> {
    if let Some(envelope) = shared.context.payloads.take(delivery.dedup_key.as_str()) {
        return Ok(envelope);
    }
    let payload = match shared.payloads.run(delivery.clone()).await {
        Some(Ok(Ok(payload))) => payload,
        Some(Ok(Err(why))) if why.contains("deleted") => return Err(Unreadable::Gone(why)),
        Some(Ok(Err(why))) => {
            warn!(key = %delivery.dedup_key, why, "failed to open the payload of a delivery");
            return Err(Unreadable::Wait(UNREADABLE_WAIT, why));
        }
        Some(Err(error)) => {
            return Err(Unreadable::Wait(RELEASE_WAIT, Chain(&error).to_string()));
        }
        None => return Err(Unreadable::Wait(RELEASE_WAIT, "reading its bytes failed".into())),
    };
    let SealedPayload { headers, body } = payload;
    let subject = stream::subject(delivery.partition, delivery.key.connection);
    let decoded = Envelope::decode(&subject, Some(&pairs_to_headers(&headers)), body.into());
    match decoded {
        // A replayed delivery has a key of its own.
        Ok(envelope) => Ok(Envelope { dedupe: delivery.dedup_key.clone(), ..envelope }),
        Err(newer @ NotDecoded::Newer(_)) => {
            Err(Unreadable::Wait(UNREADABLE_WAIT, newer.to_string()))
        }
        Err(why) => Err(Unreadable::Gone(why.to_string())),
    }
}

/// The processing of a webhook: linked to the request that brought it, not part of it.
fn span(delivery: &ClaimedDelivery, envelope: &Envelope) -> Span {
    let span = tracing::info_span!(
        target: "tidegate::trace",
        "process",
        otel.name = format!("process {DESTINATION}"),
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.type = "process",
        messaging.destination.template = DESTINATION,
        messaging.message.id = %delivery.dedup_key,
    );
    if let Some(traceparent) = &envelope.traceparent {
        telemetry::link(&span, traceparent);
    }
    span
}
