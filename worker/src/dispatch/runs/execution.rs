//! Executes a run in one attempt: reads the agent's events and writes them, until both have ended or
//! the run is cancelled. Reading goes on while Slack is called, so that a stop is heard at once.

use super::{
    controls::CancelReason,
    pending::{self, Pending, StreamEnd},
    writer::{Batch, WriteEnd, Writer},
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
pub(super) struct Executed {
    pub end: RunEnd,
    /// Time of the last part.
    pub last_progress: Option<Instant>,
    /// Writer, if it can write.
    pub writer: Option<Writer>,
}

/// End of a run in this attempt.
#[derive(Debug)]
pub(super) enum RunEnd {
    Completed(&'static str),
    /// The agent's stream failed: another attempt goes on.
    Interrupted(AgentError),
    Write(WriteEnd),
}

impl RunEnd {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Completed(outcome) | Self::Write(WriteEnd::Gone(outcome)) => outcome,
            Self::Interrupted(_) => "interrupted",
            Self::Write(WriteEnd::Lost) => "lost",
        }
    }
}

type Writing = BoxFuture<'static, (Writer, Result<(), WriteEnd>)>;

/// What the writer does next.
enum Task {
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

/// Agent of a run, which hears that the run is cancelled.
#[derive(Clone, Copy)]
pub(super) struct Canceller<'a> {
    pub context: &'a AttemptContext,
    pub agent: &'a Agent,
    pub run: &'a str,
}

impl<'a> Canceller<'a> {
    fn cancel(self, reason: CancelReason) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Self { context, agent, run } = self;
            match context.clients.agents.cancel(agent, run, reason.as_str()).await {
                Ok(()) => info!(run, reason = reason.as_str(), "run cancelled"),
                // The agent has lost the connection, too.
                Err(AgentError { message: error, .. }) => {
                    info!(run, reason = reason.as_str(), error, "run cancelled without the agent");
                }
            }
        })
    }
}

/// Maximum time of a write after the run was cancelled or took too long: Slack may refuse the calls
/// of a connection for hours.
const WRITE_WAIT: Duration = Duration::from_secs(30);

/// Reads the agent's events and writes them until both have ended.
pub(super) async fn execute(
    pending: &mut Pending,
    writer: Writer,
    mut stream: Option<AgentStream>,
    deadline: Instant,
    mut cancelled: impl Future<Output = CancelReason> + Unpin,
    agent: Canceller<'_>,
    session: &ActiveSession,
) -> Executed {
    let (delivery, ended_before) = (writer.delivery.clone(), writer.state.ended.clone());
    let (mut has_answered, mut give_up) = (false, None::<(Instant, &'static str)>);
    let (mut idle, mut writing) = (None::<Writer>, Some(start(writer, Task::Settle)));
    let (mut end, mut last_progress, mut is_finishing) = (None, None, false);
    let (mut is_cancelled, mut cancelling) = (false, None::<BoxFuture<'_, ()>>);
    if stream.is_none() {
        let outcome = ended_before.as_deref().map_or("completed", pending::outcome_name);
        end = Some(StreamEnd::Completed(outcome));
    }
    let (run_end, writer) = loop {
        if let Some(writer) = idle.take() {
            let now = Instant::now();
            let is_due = pending.is_due(writer.written_at, &writer.settings, end.is_some(), now);
            let task = if is_due {
                last_progress = Some(now);
                Some(Task::Write(pending.take(end.as_ref())))
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
            let due = pending.due_at(writer.written_at, &writer.settings, Instant::now());
            due.into_iter().chain(writer.ends_segment_at()).min()
        });
        let is_open = end.is_none();
        tokio::select! {
            biased; // a run that is stopped writes nothing more
            reason = &mut cancelled, if !is_cancelled => {
                is_cancelled = true;
                give_up = give_up.or(Some((Instant::now() + WRITE_WAIT, reason.outcome())));
                if is_open {
                    (end, stream) = (Some(pending.cancel(reason.outcome())), None);
                    cancelling = Some(agent.cancel(reason));
                }
            }
            (writer, result) = complete(&mut writing) => {
                writing = None;
                if let Err(ended) = result {
                    if is_open && let WriteEnd::Gone(outcome) = ended {
                        let is_stop = outcome == CancelReason::Stop.outcome();
                        let reason = if is_stop { CancelReason::Stop } else { CancelReason::Deleted };
                        cancelling = Some(agent.cancel(reason));
                    }
                    break (RunEnd::Write(ended), Some(writer));
                }
                idle = Some(writer);
            }
            () = complete(&mut cancelling) => cancelling = None,
            event = next(&mut stream), if is_open && pending.has_room() => {
                if !has_answered && matches!(event, Ok(Some(_))) {
                    has_answered = true;
                    info!(target: TRACE_TARGET, "first event received");
                    agent.context.record_success(&delivery).await;
                }
                end = match event {
                    Ok(Some(event)) => {
                        session.apply(&event.event);
                        pending.add(event)
                    }
                    Ok(None) => Some(StreamEnd::Failed(without_done())),
                    Err(error) => Some(StreamEnd::Failed(error)),
                };
                if end.is_some() {
                    stream = None; // ends the call
                }
            }
            _ = tokio::time::sleep_until(deadline), if is_open => {
                let reason = CancelReason::Timeout;
                end = Some(pending.end_with("The agent took too long.", reason.outcome()));
                give_up = give_up.or(Some((Instant::now() + WRITE_WAIT, reason.outcome())));
                stream = None;
                cancelling = Some(agent.cancel(reason));
            }
            _ = tokio::time::sleep_until(wake.unwrap_or(deadline)), if wake.is_some() => {}
            _ = tokio::time::sleep_until(give_up.map_or(deadline, |(at, _)| at)),
                if give_up.is_some() && writing.is_some() =>
            {
                let outcome = give_up.map_or("cancelled", |(_, outcome)| outcome);
                break (RunEnd::Write(WriteEnd::Gone(outcome)), None);
            }
        }
    };
    drop(stream);
    if let Some(cancelling) = cancelling {
        cancelling.await;
    }
    Executed { end: run_end, last_progress, writer }
}

/// Waits for a task, for ever without one.
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

fn without_done() -> AgentError {
    let message = "the agent's stream ended without the event done".to_owned();
    AgentError { kind: FailureKind::Failing, message, retry_after: None }
}
