//! Shutdown of a process: one token, tracked tasks, a bounded drain.
//!
//! SIGTERM (Kubernetes) and SIGINT (a terminal) cancel the token that every task observes. The
//! drain waits for tasks until a deadline. The end of a vital task stops the whole process, so that
//! no process runs partially.

use std::{future::Future, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info};

/// Shutdown signal and tracked tasks of a process. Created once in `main`.
#[derive(Clone)]
pub struct Shutdown {
    token: CancellationToken,
    failed: CancellationToken,
    tasks: TaskTracker,
}

/// Result of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainOutcome {
    /// All tasks finished.
    Clean,
    /// The grace period ended with this number of running tasks.
    Abandoned(usize),
}

impl Shutdown {
    /// Installs handlers for SIGTERM and SIGINT.
    pub fn on_signals() -> std::io::Result<Self> {
        let this = Self {
            token: CancellationToken::new(),
            failed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let token = this.token.clone();
        #[expect(clippy::disallowed_methods, reason = "ends with the process")]
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            info!("shutdown requested");
            token.cancel();
        });
        Ok(this)
    }

    /// Returns the token that is cancelled when the process stops.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Waits until a shutdown is requested.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Spawns a task that the drain waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Spawns a task the process cannot run without: when it ends early, even by panic, all tasks
    /// stop and the process fails.
    pub fn spawn_vital(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "the drain waits for the task that watches it"
        )]
        let task = tokio::spawn(task);
        self.tasks.spawn(async move {
            let ended = task.await;
            if ended.is_err() || !this.token.is_cancelled() {
                error!(task = name, panicked = ended.is_err(), "vital task ended");
                this.failed.cancel();
                this.token.cancel();
            }
        });
    }

    /// Stops all tasks and waits up to `grace` for them. Returns success only if all tasks finished
    /// and no vital task ended early.
    pub async fn drain(self, grace: Duration) -> std::process::ExitCode {
        self.token.cancel();
        self.tasks.close();
        let drained = match tokio::time::timeout(grace, self.tasks.wait()).await {
            Ok(()) => DrainOutcome::Clean,
            Err(_) => DrainOutcome::Abandoned(self.tasks.len()),
        };
        info!(?drained, "process stopped");
        if drained == DrainOutcome::Clean && !self.failed.is_cancelled() {
            std::process::ExitCode::SUCCESS
        } else {
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::ExitCode;

    const GRACE: Duration = Duration::from_secs(5);

    async fn exit_code(run: impl FnOnce(&Shutdown)) -> String {
        let shutdown = Shutdown::on_signals().expect("handlers");
        let stop = shutdown.token().clone();
        shutdown.spawn(async move { stop.cancelled().await });
        run(&shutdown);
        tokio::time::timeout(GRACE, shutdown.requested()).await.expect("a stop");
        format!("{:?}", shutdown.drain(GRACE).await)
    }

    /// No process runs without its retention, directory sync or leases.
    #[tokio::test]
    async fn stops_when_vital_task_ends() {
        let failed = format!("{:?}", ExitCode::FAILURE);
        let ended = exit_code(|all| all.spawn_vital("maintenance", async {})).await;
        assert_eq!(ended, failed);
        let panicked = exit_code(|all| all.spawn_vital("maintenance", async { panic!("broken") }));
        assert_eq!(panicked.await, failed);
        let stopped = exit_code(|all| {
            let stop = all.token().clone();
            all.spawn_vital("maintenance", async move { stop.cancelled().await });
            all.token().cancel();
        });
        assert_eq!(stopped.await, format!("{:?}", ExitCode::SUCCESS));
    }
}
