//! Runs: answers that agents stream, for seconds to hours.
//!
//! The scheduler starts a run when an agent answers with an event stream. A run holds the lane of
//! its delivery and frees the agent's slot. `answer_buffer` collects events, `writer` stores them
//! as parts of the answer and then sends them, through `calls`. A run ends its delivery like any
//! attempt. If it is interrupted, the next attempt asks the agent again, with the id of the last
//! stored event.

mod budget;
mod calls;
mod controls;
mod execution;
mod lookup;
mod answer_buffer;
mod settlement;
mod slack_call;
mod writer;

pub use budget::{Budgets, CallKind, Feature, UNSUPPORTED};
pub use controls::{CancelReason, Controls, Registration, watch as watch_controls};
pub use execution::Canceller;
pub use settlement::settle_stored_run;

use super::{
    agents::{AnswerPolicy, AskPlace, ask_change},
    attempt::{AttemptOutcome, CallResult, dead_letter, outcome_of},
    attempt_context::AttemptContext,
    notices,
    outcome_recorder::RECORD_INTERVAL,
    payloads, retry,
    sessions::ActiveSession,
};
use crate::{
    agent_client::{AgentAsk, AgentError, AgentStream},
    context::WorkerTerm,
    routing::AgentMessage,
};
use answer_buffer::AnswerBuffer;
use execution::{ExecutionResult, RunEnd, end_cancelled, execute};
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
use writer::{WriteError, Writer};

/// Maximum number of runs of a worker. One organization gets at most half of them. The last quarter
/// is reserved for organizations without a run.
const RUNS_MAX: usize = 2_048;
/// Maximum bytes of the text of an answer.
const TEXT_BYTES_MAX: i64 = 1 << 20;

/// Settings of runs.
#[derive(Debug, Clone, Copy)]
pub struct RunSettings {
    /// Age at which a Slack stream is ended and another one is begun.
    pub segment_period: Duration,
    /// Minimum time between two parts of an answer. Also the minimum average time between parts of
    /// all answers of a connection.
    pub append_interval: Duration,
    /// Minimum average time between the starts of streams of a connection.
    pub start_interval: Duration,
    /// Minimum time between two edits of a message.
    pub edit_interval: Duration,
    /// Maximum duration of a run, over all attempts.
    pub max_duration: Duration,
    /// Number of runs of an agent, on all workers, at which further ones keep their agent slots.
    pub max_runs_per_agent: u32,
}

/// Question of a run, and the thread of its answer.
#[derive(Debug, Clone)]
pub struct RunTarget {
    /// Id of the run, equal in all attempts.
    pub run: String,
    pub team: TeamId,
    pub channel: ChannelId,
    /// Thread of the answer. Streams require one, also in direct messages.
    pub thread_ts: String,
    /// Message that the agent answers, or with the clicked button.
    pub message_ts: String,
    /// Timestamp of the question, assigned by Slack.
    pub trigger_ts: String,
    /// Author of the message.
    pub user: String,
    /// Number of consecutive answers of agents to each other, including this one.
    pub hops: i32,
}

/// Run to execute.
pub struct StreamingRun {
    pub delivery: ClaimedDelivery,
    pub agent: Arc<Agent>,
    pub target: RunTarget,
    /// Stream of the agent. `None` if only what an earlier attempt stored is to be written.
    pub stream: Option<AgentStream>,
    /// Progress of an earlier attempt.
    pub stored: Option<StoredRun>,
    pub policy: AnswerPolicy,
    pub session: ActiveSession,
    pub traceparent: Option<HeaderToken>,
}

impl RunTarget {
    /// Returns the target of the answer to a message.
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

/// Returns whether a worker may start another run, given its number of runs of all organizations
/// and of the same one.
pub fn has_capacity(all: usize, of_organization: usize) -> bool {
    let is_newcomer = of_organization == 0;
    all < RUNS_MAX && of_organization < RUNS_MAX / 2 && (is_newcomer || all < RUNS_MAX * 3 / 4)
}

/// Returns the id of a delivery's run, equal in all attempts. A hash, since agents must not learn
/// the dedup key from it.
pub fn run_id(connection: ConnectionId, dedup_key: &DedupKey) -> String {
    let text = format!("run\0{connection}\0{dedup_key}");
    let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    hash[..12].iter().fold("run_".to_owned(), |id, byte| id + &format!("{byte:02x}"))
}

/// Executes a run within its trace span. Returns the outcome of its attempt, `None` if the worker
/// lost the lane.
pub async fn run(
    context: &Arc<AttemptContext>,
    term: &Arc<WorkerTerm>,
    run: StreamingRun,
    cancel: &CancellationToken,
) -> Option<AttemptOutcome> {
    let span = span(&run);
    execute_run(context, term, run, cancel).instrument(span).await
}

/// Returns the trace span of a run, linked to the span of the webhook's HTTP request.
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
    session.set_continues(true); // if the worker stops, another one resumes the run
    let age = begin_run(context, term, &delivery, &target).await?;
    let settings = context.run_settings;
    let id = target.run.clone();
    let mut registration = Registration::new(&context.controls, delivery.key.connection, &target);
    let control = find_control(context, term, &delivery, &target).await;
    let (context_of, term_of) = (Arc::clone(context), Arc::clone(term));
    let (delivery_of, session_of) = (delivery.clone(), Arc::clone(&session));
    let target_of = target.clone();
    let mut writer = Writer::new(context_of, term_of, delivery_of, target_of, settings, session_of);
    let mut buffer = AnswerBuffer::new(policy);
    if let Some(stored) = stored {
        // An agent without event ids restarts its answer.
        let begins_anew = stored.state.last_event_id.is_none() && stored.state.parts > 0;
        let text_bytes = stored.state.text_bytes;
        writer.adopt(stored);
        buffer.resume(begins_anew, text_bytes, &writer.planned_text());
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
    let ended_before = writer.state.ended.as_deref();
    let ended_by = ended_before.map_or(control, CancelReason::of_outcome);
    let ExecutionResult { end, last_progress, writer } = match ended_by {
        Some(reason) => {
            let agent_of = ended_before.is_none().then_some(agent_of);
            drop(stream); // closes the connection
            end_cancelled(writer, reason, agent_of).await
        }
        None => execute(&mut buffer, writer, stream, deadline, cancelled, agent_of, &session).await,
    };
    let (seconds, outcome) = (began.elapsed().as_secs(), end.name());
    info!(run = id, seconds, outcome, "run ended");
    info!(target: TRACE_TARGET, outcome, "run ended");
    let traceparent_of = traceparent.clone();
    let finished = |outcome, change| {
        let outcome = FinishedOutcome::Completed(outcome);
        let (delivery, messages) = (delivery.clone(), Vec::new());
        let finished = FinishedDelivery { delivery, outcome, messages, traceparent };
        AttemptOutcome::Finished(Box::new(finished), change)
    };
    session.set_continues(matches!(end, RunEnd::Write(WriteError::Fenced)));
    match end {
        RunEnd::Completed(outcome) => {
            let ask = writer.and_then(|writer| writer.state.ask);
            let ask = ask.and_then(|ask| serde_json::from_slice(&ask).ok());
            let Some(ask) = ask else { return Some(finished(outcome, None)) };
            match approval_change(context, &delivery, &target, ask, policy) {
                Ok(change) => Some(finished(outcome, change)),
                Err(error) => {
                    let (after, error) = (RECORD_INTERVAL, ErrorChain(&error).to_string());
                    Some(released_outcome_after(delivery, after, error))
                }
            }
        }
        RunEnd::Write(WriteError::Undeliverable(outcome)) => Some(finished(outcome, None)),
        RunEnd::Write(WriteError::Fenced) => None,
        RunEnd::Write(WriteError::Refused { reason, error }) => {
            let notice = match reason == slack_call::REVOKED {
                true => None, // it could not be sent
                false => notices::build_refusal_notice(context, &delivery).await,
            };
            let messages = notice.into_iter().collect();
            Some(dead_letter(delivery, reason, error, messages, traceparent_of))
        }
        RunEnd::Interrupted(error) => {
            let outcome = after_failure(context, delivery, &agent, error, last_progress).await;
            session.set_continues(matches!(outcome, AttemptOutcome::Postponed(_)));
            // No further attempt ends the message.
            if let (AttemptOutcome::Finished(..), Some(mut writer)) = (&outcome, writer) {
                writer.is_last = true;
                let _ = writer.end_segment().await;
            }
            Some(outcome)
        }
    }
}

/// Returns the change that creates the approval at the end of an answer.
fn approval_change(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
    target: &RunTarget,
    ask: AgentAsk,
    policy: AnswerPolicy,
) -> Result<Option<Change>, StoreError> {
    let place = AskPlace {
        run: &target.run,
        team: &target.team,
        channel: &target.channel,
        thread_ts: Some(&target.thread_ts),
        user: &target.user,
    };
    ask_change(&context.clients, delivery, &place, ask, policy)
}

/// Returns the outcome that releases a delivery whose agent may have been called. The attempt
/// counts: only attempts after the first look for a stored run and for merged messages.
pub fn released_outcome_after(
    delivery: ClaimedDelivery,
    after: Duration,
    error: String,
) -> AttemptOutcome {
    let (counts, fault, crashed) = (true, false, false);
    AttemptOutcome::Postponed(PostponedDelivery { delivery, after, error, counts, fault, crashed })
}

/// Records the run in Postgres, with retries. Returns its age, `None` if the worker lost the lane.
async fn begin_run(
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

/// Returns the reason of an existing control that applies to a run.
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

/// Returns the outcome after the agent's stream failed. Progress of the run resets its retries.
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
    fn limits_runs_per_organization() {
        let half = RUNS_MAX / 2;
        assert!(has_capacity(0, 0) && has_capacity(half - 1, half - 1));
        assert!(!has_capacity(half, half), "one organization has its share");
        assert!(!has_capacity(RUNS_MAX * 3 / 4, 1) && has_capacity(RUNS_MAX * 3 / 4, 0));
        assert!(!has_capacity(RUNS_MAX, 0));
    }
}
