//! Run controls that cancel calls and runs of this worker: stops, edits, deletions and
//! interruptions.
//!
//! A run registers itself before it queries its existing controls, so that none is missed. Then one
//! query finds the new controls of all runs: when this worker's intake commits a control, and at an
//! interval for controls that other workers commit. A call of an agent that has not answered yet
//! registers itself in the same way.

use super::RunTarget;
use crate::dispatch::attempt_context::AttemptContext;
use shared::{
    domain::ConnectionId,
    runtime::telemetry::ErrorChain,
    store::{RunControl, RunControlReason},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tracing::warn;

/// Interval of queries for controls without a wake-up.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Minimum interval between two queries.
const QUERY_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum age of a new control. Exceeds the time until a commit is visible.
const RECENT: Duration = Duration::from_secs(30);

/// Reason for which a run is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    Stop,
    Deleted,
    Edited,
    Interrupted,
    Admin,
    Timeout,
}

impl CancelReason {
    /// Returns the value of `reason` in the call `/cancel` to the agent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Deleted => "deleted",
            Self::Edited => "edit",
            Self::Interrupted => "interrupt",
            Self::Admin => "admin",
            Self::Timeout => "timeout",
        }
    }

    /// Returns the outcome to record for the delivery.
    pub fn outcome(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Deleted => "message_deleted",
            Self::Edited => "edited",
            Self::Interrupted => "interrupted",
            Self::Admin => "cancelled",
            Self::Timeout => "run_timed_out",
        }
    }

    /// Returns the reason with an outcome, if it is one after which nothing more is shown.
    pub fn of_outcome(outcome: &str) -> Option<Self> {
        [Self::Stop, Self::Deleted, Self::Edited, Self::Interrupted, Self::Admin]
            .into_iter()
            .find(|reason| reason.outcome() == outcome)
    }
}

impl From<RunControlReason> for CancelReason {
    fn from(reason: RunControlReason) -> Self {
        match reason {
            RunControlReason::Stop => Self::Stop,
            RunControlReason::Deleted => Self::Deleted,
            RunControlReason::Edited => Self::Edited,
            RunControlReason::Interrupted => Self::Interrupted,
        }
    }
}

/// Registered calls and runs of this worker.
#[derive(Debug, Default)]
pub struct Controls(Mutex<Registered>);

#[derive(Debug, Default)]
struct Registered {
    next: u64,
    runs: HashMap<u64, RegisteredRun>,
}

#[derive(Debug)]
struct RegisteredRun {
    connection: ConnectionId,
    target: RunTarget,
    cancelled: watch::Sender<Option<CancelReason>>,
}

/// Registration of a call or a run. Ends when it is dropped.
pub struct Registration<'a> {
    id: u64,
    controls: &'a Controls,
    cancelled: watch::Receiver<Option<CancelReason>>,
}

impl<'a> Registration<'a> {
    /// Registers a call or a run.
    pub fn new(controls: &'a Controls, connection: ConnectionId, target: &RunTarget) -> Self {
        let (sender, cancelled) = watch::channel(None);
        let run = RegisteredRun { connection, target: target.clone(), cancelled: sender };
        let mut registered = controls.registered();
        let id = registered.next;
        registered.next += 1;
        registered.runs.insert(id, run);
        drop(registered);
        Self { id, controls, cancelled }
    }

    /// Waits until a control cancels the run. Returns the reason.
    pub async fn cancelled(&mut self) -> CancelReason {
        loop {
            let reason = *self.cancelled.borrow_and_update();
            if let Some(reason) = reason {
                return reason;
            }
            if self.cancelled.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.controls.registered().runs.remove(&self.id);
    }
}

impl Controls {
    fn registered(&self) -> MutexGuard<'_, Registered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connections of the registered runs.
    fn connections(&self) -> Vec<String> {
        let connections: HashSet<ConnectionId> =
            self.registered().runs.values().map(|run| run.connection).collect();
        connections.iter().map(ConnectionId::to_string).collect()
    }

    fn apply(&self, controls: &[RunControl]) {
        let mut of_connection: HashMap<ConnectionId, Vec<&RunControl>> = HashMap::new();
        for control in controls {
            of_connection.entry(control.connection).or_default().push(control);
        }
        let registered = self.registered();
        for RegisteredRun { connection, target, cancelled } in registered.runs.values() {
            let controls = of_connection.get(connection).into_iter().flatten();
            let applies = controls.copied().find(|control| {
                let RunTarget { channel, thread_ts, message_ts, trigger_ts, .. } = target;
                control.applies_to(*connection, channel, thread_ts, message_ts, trigger_ts)
            });
            if let Some(control) = applies {
                cancelled.send_if_modified(|reason| {
                    let is_new = reason.is_none();
                    *reason = reason.or(Some(control.reason.into()));
                    is_new
                });
            }
        }
    }
}

/// Applies new controls to the runs of this worker. Never returns.
pub async fn watch(context: Arc<AttemptContext>) {
    loop {
        tokio::select! {
            _ = context.clients.wake_controls.notified() => {}
            _ = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let connections = context.controls.connections();
        if connections.is_empty() {
            continue;
        }
        match context.clients.store.recent_run_controls(&connections, RECENT).await {
            Ok(controls) => context.controls.apply(&controls),
            Err(error) => warn!(error = %ErrorChain(&error), "failed to look up run controls"),
        }
        tokio::time::sleep(QUERY_INTERVAL).await;
    }
}
