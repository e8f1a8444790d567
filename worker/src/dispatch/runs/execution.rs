//! Execution of a run in one attempt: reads the agent's events and writes them to Slack, until all
//! is written or the run is cancelled. Reads and writes are concurrent, so that a stop takes effect
//! while a call to Slack is in progress.

use super::{
    answer_buffer::{self, AnswerBuffer, StreamEnd},
    controls::CancelReason,
    writer::{Batch, WriteError, Writer},
};
use crate::{
    agent_client::{AgentError, AgentStream, FailureKind, StreamEvent},
    dispatch::{attempt_context::AttemptContext, sessions::ActiveSession},
};
use futures_util::future::BoxFuture;
use shared::{runtime::telemetry::TRACE_TARGET, store::Agent};
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;

/// Result of an execution.
pub(super) struct ExecutionResult {
    pub end: RunEnd,
    /// Time of the last write. `None` without progress in this attempt.
    pub last_progress: Option<Instant>,
    /// Writer, unless a write was abandoned.
    pub writer: Option<Writer>,
}

/// End of a run in this attempt.
#[derive(Debug)]
pub(super) enum RunEnd {
    /// The answer is complete. The value is the outcome of the delivery.
    Completed(&'static str),
    /// The agent's stream failed. Another attempt resumes the run.
    Interrupted(AgentError),
    /// The answer cannot be written.
    Write(WriteError),
}

impl RunEnd {
    /// Returns the outcome for logs and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Completed(outcome) | Self::Write(WriteError::Undeliverable(outcome)) => outcome,
            Self::Interrupted(_) => "interrupted",
            Self::Write(WriteError::Fenced) => "lost",
            Self::Write(WriteError::Refused { .. }) => "refused",
        }
    }
}

type Writing = BoxFuture<'static, (Writer, Result<(), WriteError>)>;

/// Next step of the writer.
enum Task {
    /// Resolve what an earlier attempt left.
    Settle,
    Write(Batch),
    EndOldSegment,
    Finish,
}

fn start(mut writer: Writer, task: Task) -> Writing {
    Box::pin(async move {
        let result = match task {
            Task::Settle => writer.settle().await,
            Task::Write(batch) => writer.write(batch).await,
            Task::EndOldSegment => writer.end_old_segment().await,
            Task::Finish => writer.end_segment().await,
        };
        (writer, result)
    })
}

/// Client that reports the cancellation of a call or a run to its agent.
#[derive(Clone, Copy)]
pub struct Canceller<'a> {
    pub context: &'a AttemptContext,
    pub agent: &'a Agent,
    pub run: &'a str,
}

impl<'a> Canceller<'a> {
    /// Reports a cancellation.
    pub fn cancel(self, reason: CancelReason) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Self { context, agent, run } = self;
            let reason = reason.as_str();
            match context.clients.agents.cancel(agent, run, reason).await {
                Ok(()) => info!(run, reason, "run cancelled"),
                // Not retried: the agent also sees that its stream is closed.
                Err(AgentError { message: error, .. }) => {
                    info!(run, reason, error, "run cancelled; failed to call agent");
                }
            }
        })
    }
}

/// Maximum duration of writes after a run was cancelled or timed out, since Slack may refuse the
/// calls of a connection for hours.
pub(super) const WRITE_WAIT: Duration = Duration::from_secs(30);

/// Ends a run that was cancelled before this attempt wrote to it. Parts that an earlier attempt
/// stored and did not send are dropped. `agent` is `None` if the agent got the cancellation.
pub(super) async fn end_cancelled(
    mut writer: Writer,
    reason: CancelReason,
    agent: Option<Canceller<'_>>,
) -> ExecutionResult {
    let outcome = reason.outcome();
    let ending = async {
        writer.discard_unsent().await?;
        writer.write(Batch { ended: Some(outcome), ..Batch::default() }).await?;
        writer.end_segment().await
    };
    let cancelling = async {
        if let Some(agent) = agent {
            agent.cancel(reason).await;
        }
    };
    let (ended, ()) = tokio::join!(tokio::time::timeout(WRITE_WAIT, ending), cancelling);
    let end = match ended {
        Ok(Ok(())) => RunEnd::Completed(outcome),
        Ok(Err(error)) => RunEnd::Write(error),
        Err(_) => RunEnd::Write(WriteError::Undeliverable(outcome)),
    };
    ExecutionResult { end, last_progress: None, writer: None }
}

/// Executes a run until the answer is written, cancelled or interrupted. Without a `stream` it only
/// writes what an earlier attempt stored.
pub(super) async fn execute(
    buffer: &mut AnswerBuffer,
    writer: Writer,
    mut stream: Option<AgentStream>,
    deadline: Instant,
    mut cancelled: impl Future<Output = CancelReason> + Unpin,
    agent: Canceller<'_>,
    session: &ActiveSession,
) -> ExecutionResult {
    let (delivery, ended_before) = (writer.delivery.clone(), writer.state.ended.clone());
    let (mut has_answered, mut give_up) = (false, None::<(Instant, &'static str)>);
    let (mut idle, mut writing) = (None::<Writer>, Some(start(writer, Task::Settle)));
    let (mut end, mut last_progress, mut is_finishing) = (None, None, false);
    let (mut is_cancelled, mut cancelling) = (false, None::<BoxFuture<'_, ()>>);
    if stream.is_none() {
        let outcome = ended_before.as_deref().map_or("completed", answer_buffer::outcome_name);
        end = Some(StreamEnd::Completed(outcome));
    }
    let (run_end, writer) = loop {
        if let Some(writer) = idle.take() {
            let now = Instant::now();
            let is_due = buffer.is_due(writer.written_at, &writer.settings, end.is_some(), now);
            let task = if is_due {
                last_progress = Some(now);
                Some(Task::Write(buffer.take(end.as_ref())))
            } else if let Some(ended) = &end {
                match ended {
                    StreamEnd::Failed(error) => {
                        break (RunEnd::Interrupted(error.clone()), Some(writer));
                    }
                    StreamEnd::Completed(outcome) if is_finishing => {
                        break (RunEnd::Completed(outcome), Some(writer));
                    }
                    StreamEnd::Completed(_) => {
                        is_finishing = true;
                        Some(Task::Finish)
                    }
                }
            } else if writer.ends_segment_at().is_some_and(|at| at <= now) {
                Some(Task::EndOldSegment)
            } else {
                None
            };
            match task {
                Some(task) => writing = Some(start(writer, task)),
                None => idle = Some(writer),
            }
        }
        let wake = idle.as_ref().and_then(|writer| {
            let due = buffer.due_at(writer.written_at, &writer.settings, Instant::now());
            due.into_iter().chain(writer.ends_segment_at()).min()
        });
        let is_open = end.is_none();
        tokio::select! {
            biased; // a cancellation has priority over further writes
            reason = &mut cancelled, if !is_cancelled => {
                is_cancelled = true;
                give_up = give_up.or(Some((Instant::now() + WRITE_WAIT, reason.outcome())));
                if is_open {
                    (end, stream) = (Some(buffer.cancel(reason.outcome())), None);
                    cancelling = Some(agent.cancel(reason));
                }
            }
            (writer, result) = complete(&mut writing) => {
                writing = None;
                if let Err(ended) = result {
                    if is_open && ended != WriteError::Fenced {
                        let stopped = WriteError::Undeliverable(CancelReason::Stop.outcome());
                        let is_stop = ended == stopped;
                        let reason = if is_stop { CancelReason::Stop } else { CancelReason::Deleted };
                        cancelling = Some(agent.cancel(reason));
                    }
                    break (RunEnd::Write(ended), Some(writer));
                }
                idle = Some(writer);
            }
            () = complete(&mut cancelling) => cancelling = None,
            event = next(&mut stream), if is_open && buffer.has_capacity() => {
                if !has_answered && matches!(event, Ok(Some(_))) {
                    has_answered = true;
                    info!(target: TRACE_TARGET, "first event received");
                    agent.context.record_success(&delivery).await;
                }
                end = match event {
                    Ok(Some(event)) => {
                        session.apply(&event.event);
                        buffer.add(event)
                    }
                    Ok(None) => Some(StreamEnd::Failed(missing_done_error())),
                    Err(error) => Some(StreamEnd::Failed(error)),
                };
                if end.is_some() {
                    stream = None; // closes the connection
                }
            }
            _ = tokio::time::sleep_until(deadline), if is_open => {
                let reason = CancelReason::Timeout;
                end = Some(buffer.end_with("The agent took too long.", reason.outcome()));
                give_up = give_up.or(Some((Instant::now() + WRITE_WAIT, reason.outcome())));
                stream = None;
                cancelling = Some(agent.cancel(reason));
            }
            _ = tokio::time::sleep_until(wake.unwrap_or(deadline)), if wake.is_some() => {}
            _ = tokio::time::sleep_until(give_up.map_or(deadline, |(at, _)| at)),
                if give_up.is_some() && writing.is_some() =>
            {
                let outcome = give_up.map_or("cancelled", |(_, outcome)| outcome);
                break (RunEnd::Write(WriteError::Undeliverable(outcome)), None);
            }
        }
    };
    drop(stream);
    if let Some(cancelling) = cancelling {
        cancelling.await;
    }
    ExecutionResult { end: run_end, last_progress, writer }
}

/// Waits for a task. Never returns without one.
async fn complete<T>(task: &mut Option<BoxFuture<'_, T>>) -> T {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn next(stream: &mut Option<AgentStream>) -> Result<Option<StreamEvent>, AgentError> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

fn missing_done_error() -> AgentError {
    let message = "the agent's stream ended without the event done".to_owned();
    AgentError { kind: FailureKind::Failing, message, retry_after: None }
}
