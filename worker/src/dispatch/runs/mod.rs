//! Runs: answers that an agent streams, for seconds or hours.
//!
//! The scheduler starts a run when an agent answers with an event stream. A run belongs to its
//! delivery, whose lane it holds, and has freed the agent's slot. What the agent sends is gathered,
//! stored as a part of the answer, and then sent: `writer` decides, `calls` talks to Slack. The run
//! ends its delivery like any attempt. If it is interrupted, the next attempt asks the agent again,
//! with the id of the last event that is stored.

mod budget;
mod calls;
mod controls;
mod execution;
mod lookup;
mod pending;
mod writer;

pub use budget::{Budgets, Feature, Pace, UNSUPPORTED};
pub use controls::{Controls, watch as watch_controls};

use super::{
    agents::{AnswerPolicy, AskPlace, ask_change},
    attempt::{AttemptOutcome, CallResult, outcome_of},
    attempt_context::AttemptContext,
    outcome_recorder::RECORD_INTERVAL,
    payloads, retry,
    sessions::ActiveSession,
};
use crate::{
    agent_client::{AgentAsk, AgentError, AgentStream},
    context::WorkerTerm,
    routing::AgentMessage,
};
use controls::{CancelReason, Registration};
use execution::{Canceller, Executed, RunEnd, execute};
use pending::Pending;
use sha2::{Digest, Sha256};
use shared::{
    domain::{AgentMode, ChannelId, ConnectionId, HeaderToken, TeamId},
    runtime::telemetry::{self, ErrorChain, TRACE_TARGET},
    store::{
        Agent, Change, ClaimedDelivery, FinishedDelivery, FinishedOutcome, NewRun,
        PostponedDelivery, StoreError, StoredRun,
    },
    stream::DedupKey,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, info, warn};
use writer::{WriteEnd, Writer};

/// Maximum number of runs of a worker. One organization gets at most half of them; the last quarter
/// is for organizations without a run.
const RUNS_MAX: usize = 2_048;
/// Maximum bytes of an answer's text.
const TEXT_BYTES_MAX: i64 = 1 << 20;

/// Settings of runs.
#[derive(Debug, Clone, Copy)]
pub struct RunSettings {
    /// Age at which a stream of Slack is ended and another one begun.
    pub segment_period: Duration,
    /// Minimum time between two parts of an answer, and of a connection's answers in the mean.
    pub append_interval: Duration,
    /// Minimum time between two begins of a connection's streams in the mean.
    pub start_interval: Duration,
    /// Minimum time between two edits of a message.
    pub edit_interval: Duration,
    /// Maximum time of a run.
    pub max_duration: Duration,
    /// Number of runs of an agent, on all workers, above which a run keeps its slot.
    pub max_runs_per_agent: u32,
}

/// Place of an answer.
#[derive(Debug, Clone)]
pub struct RunTarget {
    /// Id of the run, the same in every attempt.
    pub run: String,
    pub team: TeamId,
    pub channel: ChannelId,
    /// Thread of the answer; streams have one in direct messages, too.
    pub thread_ts: String,
    /// Message that the agent answers, or whose button was clicked.
    pub message_ts: String,
    /// Time of the question by Slack's clock.
    pub trigger_ts: String,
    /// Author of the message.
    pub user: String,
    /// Number of agents that answered each other, this answer included.
    pub hops: i32,
}

/// Run to execute.
pub struct StreamingRun {
    pub delivery: ClaimedDelivery,
    pub agent: Arc<Agent>,
    pub target: RunTarget,
    /// Stream of the agent; `None` if the agent had ended in an earlier attempt.
    pub stream: Option<AgentStream>,
    /// Progress of an earlier attempt.
    pub stored: Option<StoredRun>,
    pub policy: AnswerPolicy,
    pub session: ActiveSession,
    pub traceparent: Option<HeaderToken>,
}

impl RunTarget {
    pub fn new(run: String, message: &AgentMessage<'_>) -> Self {
        Self {
            run,
            team: message.team.clone(),
            channel: message.channel.clone(),
            thread_ts: message.thread_ts.unwrap_or(message.ts).to_owned(),
            message_ts: message.ts.to_owned(),
            trigger_ts: message.asked_at.to_owned(),
            user: message.user.to_owned(),
            hops: message.hops.saturating_add(1),
        }
    }
}

/// Returns whether another run fits beside those of all organizations and of its own.
pub fn has_room(all: usize, of_organization: usize) -> bool {
    let is_newcomer = of_organization == 0;
    all < RUNS_MAX && of_organization < RUNS_MAX / 2 && (is_newcomer || all < RUNS_MAX * 3 / 4)
}

/// Returns the id of a delivery's run: equal in every attempt, and useless to its readers.
pub fn run_id(connection: ConnectionId, dedup_key: &DedupKey) -> String {
    let text = format!("run\0{connection}\0{dedup_key}");
    let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    hash[..12].iter().fold("run_".to_owned(), |id, byte| id + &format!("{byte:02x}"))
}

/// Executes a run within its trace span. Returns its outcome, `None` if another worker has the lane.
pub async fn run(
    context: &Arc<AttemptContext>,
    term: &Arc<WorkerTerm>,
    run: StreamingRun,
    cancel: &CancellationToken,
) -> Option<AttemptOutcome> {
    let span = span(&run);
    execute_run(context, term, run, cancel).instrument(span).await
}

/// Returns the trace span of a run, linked to the request that brought the webhook.
fn span(run: &StreamingRun) -> Span {
    let span = tracing::info_span!(
        target: "tidegate::trace",
        "run",
        otel.name = "run of agent",
        otel.kind = "client",
        tidegate.run = run.target.run,
        tidegate.agent = run.delivery.agent,
    );
    if let Some(traceparent) = &run.traceparent {
        telemetry::link_span(&span, traceparent);
    }
    span
}

async fn execute_run(
    context: &Arc<AttemptContext>,
    term: &Arc<WorkerTerm>,
    run: StreamingRun,
    cancel: &CancellationToken,
) -> Option<AttemptOutcome> {
    let StreamingRun { delivery, agent, target, stream, stored, policy, session, traceparent } =
        run;
    let session = Arc::new(session);
    session.set_goes_on(true); // a worker that stops leaves the run to the next one
    let age = begin(context, term, &delivery, &target).await?;
    let settings = context.run_settings;
    let id = target.run.clone();
    let mut registration = Registration::new(context, delivery.key.connection, &target);
    let control = find_control(context, term, &delivery, &target).await;
    let (context_of, term_of) = (Arc::clone(context), Arc::clone(term));
    let (delivery_of, session_of) = (delivery.clone(), Arc::clone(&session));
    let target_of = target.clone();
    let mut writer = Writer::new(context_of, term_of, delivery_of, target_of, settings, session_of);
    let mut pending = Pending::new(policy);
    if let Some(stored) = stored {
        // An agent without event ids begins anew.
        let begins_anew = stored.state.last_event_id.is_none() && stored.state.parts > 0;
        let text_bytes = stored.state.text_bytes;
        writer.adopt(stored);
        pending.resume(begins_anew, text_bytes, &writer.planned_text());
    }
    let deadline = Instant::now() + settings.max_duration.saturating_sub(age);
    let began = Instant::now();
    let cancelled = Box::pin(async {
        tokio::select! {
            reason = registration.cancelled() => reason,
            _ = cancel.cancelled() => CancelReason::Admin,
            reason = std::future::ready(control.unwrap_or(CancelReason::Stop)), if control.is_some() => reason,
        }
    });
    let agent_of = Canceller { context, agent: &agent, run: &id };
    let Executed { end, last_progress, writer } =
        execute(&mut pending, writer, stream, deadline, cancelled, agent_of, &session).await;
    let (seconds, outcome) = (began.elapsed().as_secs(), end.name());
    info!(run = id, seconds, outcome, "run ended");
    info!(target: TRACE_TARGET, outcome, "run ended");
    let finished = |outcome, change| {
        let outcome = FinishedOutcome::Completed(outcome);
        let (delivery, messages) = (delivery.clone(), Vec::new());
        let finished = FinishedDelivery { delivery, outcome, messages, traceparent };
        AttemptOutcome::Finished(Box::new(finished), change)
    };
    session.set_goes_on(matches!(end, RunEnd::Write(WriteEnd::Lost)));
    match end {
        RunEnd::Completed(outcome) => {
            let ask = writer.and_then(|writer| writer.state.ask);
            let ask = ask.and_then(|ask| serde_json::from_slice(&ask).ok());
            let Some(ask) = ask else { return Some(finished(outcome, None)) };
            match asking(context, &delivery, &target, ask, policy) {
                Ok(change) => Some(finished(outcome, change)),
                Err(error) => {
                    let (after, error) = (RECORD_INTERVAL, ErrorChain(&error).to_string());
                    Some(released_outcome_after(delivery, after, error))
                }
            }
        }
        RunEnd::Write(WriteEnd::Gone(outcome)) => Some(finished(outcome, None)),
        RunEnd::Write(WriteEnd::Lost) => None,
        RunEnd::Interrupted(error) => {
            let outcome = after_failure(context, delivery, &agent, error, last_progress).await;
            session.set_goes_on(matches!(outcome, AttemptOutcome::Postponed(_)));
            // No attempt follows that would end the message.
            if let (AttemptOutcome::Finished(..), Some(mut writer)) = (&outcome, writer) {
                let _ = writer.end_segment().await;
            }
            Some(outcome)
        }
    }
}

/// Returns the change that asks people after the answer.
fn asking(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    target: &RunTarget,
    ask: AgentAsk,
    policy: AnswerPolicy,
) -> Result<Option<Change>, StoreError> {
    let place = AskPlace {
        run: &target.run,
        channel: &target.channel,
        thread_ts: Some(&target.thread_ts),
        user: &target.user,
    };
    ask_change(&context.clients, delivery, &place, ask, policy)
}

/// Returns the outcome that puts a run back when its worker stops.
pub fn released_outcome(delivery: ClaimedDelivery) -> AttemptOutcome {
    released_outcome_after(delivery, Duration::ZERO, "the worker stops".to_owned())
}

fn released_outcome_after(
    delivery: ClaimedDelivery,
    after: Duration,
    error: String,
) -> AttemptOutcome {
    let (counts, fault, crashed) = (true, false, false);
    AttemptOutcome::Postponed(PostponedDelivery { delivery, after, error, counts, fault, crashed })
}

/// Records the run until Postgres confirms it. Returns its age.
async fn begin(
    context: &AttemptContext,
    term: &WorkerTerm,
    delivery: &ClaimedDelivery,
    target: &RunTarget,
) -> Option<Duration> {
    let new = NewRun {
        id: &target.run,
        channel: target.channel.as_str(),
        thread_ts: &target.thread_ts,
        trigger_ts: &target.message_ts,
        max_runs: i64::from(context.run_settings.max_runs_per_agent),
    };
    loop {
        match context.clients.store.begin_run(delivery, &new).await {
            Ok(begun) => {
                if begun.is_some_and(|begun| begun.frees_slot) {
                    context.clients.wake_dispatch.notify_one();
                }
                return begun.map(|begun| begun.age);
            }
            Err(error) => warn!(error = %ErrorChain(&error), "failed to begin run"),
        }
        tokio::time::sleep(RECORD_INTERVAL).await;
        if !term.holds() {
            return None;
        }
    }
}

/// Returns the control that applies to a run already.
async fn find_control(
    context: &AttemptContext,
    term: &WorkerTerm,
    delivery: &ClaimedDelivery,
    target: &RunTarget,
) -> Option<CancelReason> {
    let RunTarget { channel, thread_ts, message_ts, trigger_ts, .. } = target;
    let (store, connection) = (&context.clients.store, delivery.key.connection);
    while term.holds() {
        match store.run_control(connection, channel, thread_ts, message_ts, trigger_ts).await {
            Ok(reason) => return reason.map(CancelReason::from),
            Err(error) => warn!(error = %ErrorChain(&error), "failed to look up run control"),
        }
        tokio::time::sleep(RECORD_INTERVAL).await;
    }
    None
}

/// Returns the outcome after the agent's stream failed. A run that made progress begins its retries
/// anew.
async fn after_failure(
    context: &AttemptContext,
    mut delivery: ClaimedDelivery,
    agent: &Agent,
    error: AgentError,
    last_progress: Option<Instant>,
) -> AttemptOutcome {
    if let Some(at) = last_progress {
        (delivery.attempts, delivery.faults, delivery.age) = (1, 0, at.elapsed());
    }
    let retry_for = retry::retry_for(agent.retry_for, AgentMode::Reply);
    match payloads::load(context, &delivery).await {
        Ok(envelope) => {
            outcome_of(context, delivery, &envelope, CallResult::Failed(error, retry_for)).await.1
        }
        Err(_) => {
            let (after, error) = (retry::backoff(delivery.attempts, 0.0), error.message);
            let (counts, fault, crashed) = (true, false, false);
            let postponed = PostponedDelivery { delivery, after, error, counts, fault, crashed };
            AttemptOutcome::Postponed(postponed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_room_between_organizations() {
        let half = RUNS_MAX / 2;
        assert!(has_room(0, 0) && has_room(half - 1, half - 1));
        assert!(!has_room(half, half), "one organization has its share");
        assert!(!has_room(RUNS_MAX * 3 / 4, 1) && has_room(RUNS_MAX * 3 / 4, 0));
        assert!(!has_room(RUNS_MAX, 0));
    }
}
