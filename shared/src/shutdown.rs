//! How a process ends: one token, no orphan tasks, a counted drain.
//!
//! In: SIGTERM (Kubernetes) or SIGINT (a terminal). Out: a token that every task heeds, then a drain with a
//! deadline. A vital task that ends stops the whole process, so that half a process never looks alive.

use std::{future::Future, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info};

/// Made once in `main` and handed down.
#[derive(Clone)]
pub struct Shutdown {
    token: CancellationToken,
    failed: CancellationToken,
    tasks: TaskTracker,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything finished.
    Clean,
    /// The grace was over with this many tasks still running.
    Abandoned(usize),
}

impl Shutdown {
    /// Begins to listen for SIGTERM and SIGINT.
    pub fn on_signal() -> std::io::Result<Self> {
        let this = Self {
            token: CancellationToken::new(),
            failed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let token = this.token.clone();
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            info!("asked to stop");
            token.cancel();
        });
        Ok(this)
    }

    /// Heed this: it is cancelled when the process stops.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Waits until the process is to stop.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Runs a task that the drain waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Runs a task the process can't live without. Should it end unasked, even by panic, everything stops and
    /// the process fails.
    pub fn spawn_vital(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        let task = tokio::spawn(task);
        self.tasks.spawn(async move {
            let ended = task.await;
            if ended.is_err() || !this.token.is_cancelled() {
                error!(task = name, panicked = ended.is_err(), "a vital task ended; stopping");
                this.failed.cancel();
                this.token.cancel();
            }
        });
    }

    /// Stops intake and gives what runs `grace` to finish. Then the exit code: 0 when asked to stop and clean.
    pub async fn drain(self, grace: Duration) -> std::process::ExitCode {
        self.token.cancel();
        self.tasks.close();
        let drained = match tokio::time::timeout(grace, self.tasks.wait()).await {
            Ok(()) => Drained::Clean,
            Err(_) => Drained::Abandoned(self.tasks.len()),
        };
        info!(?drained, "stopped");
        if drained == Drained::Clean && !self.failed.is_cancelled() {
            std::process::ExitCode::SUCCESS
        } else {
            std::process::ExitCode::FAILURE
        }
    }
}
