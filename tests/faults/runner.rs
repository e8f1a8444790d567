//! Runner of faults: puts a test environment under load, injects a fault, and checks the run.

use crate::matrix::Outcome;
use anyhow::{Context, ensure};
use shared::{domain::ConnectionId, stream::Partition};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tests::{
    checker::{Verdict, check},
    eventually::try_eventually,
    fault::CALM,
    load::{Load, channel},
    slack::{signing::Signing, webhook::Webhook},
    test_env::{App, LEASE_TTL, Size, TIMEOUT, TestEnv, agent_id},
};

/// Two ingests, three workers, and a separate Postgres.
pub const SIZE: Size = Size { ingests: 2, workers: 3, own_postgres: true };
/// Maximum time of an answer to Slack: 2.5 s, and the delay of a busy machine.
pub const ANSWERED_WITHIN: Duration = Duration::from_millis(3_000);
/// Maximum time after the load until everything is processed.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);
/// Maximum time until the partitions of a dead or disconnected worker are claimed: its lease, and
/// the delay of a busy machine.
pub const TAKEN_OVER: Duration = Duration::from_secs(LEASE_TTL.as_secs() + 4);
/// Maximum time of an answer of an undisturbed ingest on a busy machine.
pub const QUICK: Duration = Duration::from_secs(1);
/// Maximum stall of an undisturbed conversation.
const NO_STALL: Duration = Duration::from_secs(2);

/// Parameters of a run.
pub struct Runner {
    pub size: Size,
    pub conversations: u32,
    pub users: u32,
    pub pace: Duration,
    pub text_prefix: &'static str,
    pub balanced: bool,
    /// Signing secrets, for tests that change them.
    pub signing: Signing,
    /// True if messages may be sent twice, because a sender was killed or frozen.
    pub repeats: bool,
    pub drained_within: Duration,
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            size: SIZE,
            conversations: 12,
            users: 1,
            pace: Duration::from_millis(150),
            text_prefix: "",
            balanced: false,
            signing: Signing::default(),
            repeats: true,
            drained_within: DRAINED_WITHIN,
        }
    }
}

impl Runner {
    /// Runs the load and the fault in a new environment.
    pub async fn run(
        &self,
        inject: impl AsyncFnOnce(&TestEnv, &App) -> anyhow::Result<()>,
    ) -> anyhow::Result<Verdict> {
        let env = TestEnv::start(self.size).await?;
        self.run_in(&env, inject).await
    }

    /// Runs the load and the fault in an existing environment.
    pub async fn run_in(
        &self,
        env: &TestEnv,
        inject: impl AsyncFnOnce(&TestEnv, &App) -> anyhow::Result<()>,
    ) -> anyhow::Result<Verdict> {
        let app = self.app(env).await?;
        self.run_with_app(env, &app, inject).await
    }

    /// Connects an app with conversations in partitions of the first worker, which gets the fault.
    /// A connection has few partitions.
    async fn app(&self, env: &TestEnv) -> anyhow::Result<App> {
        let first = env.workers.first().map(|worker| worker.id.as_str());
        let owned: Vec<i16> =
            sqlx::query_scalar("select partition from partition_cursors where owner = $1")
                .bind(first)
                .fetch_all(&env.pool)
                .await?;
        let is_owned = |id, conversation| {
            let partition = Partition::of(id, Some(&channel(conversation)));
            owned.contains(&(partition.number() as i16))
        };
        let mut id = ConnectionId::random()?;
        while !owned.is_empty() && !(0..self.conversations).any(|n| is_owned(id, n)) {
            id = ConnectionId::random()?;
        }
        env.connect_as(|new| (new.id, new.agent) = (id, Some(agent_id()))).await
    }

    /// Runs the load of an existing app and the fault.
    pub async fn run_with_app(
        &self,
        env: &TestEnv,
        app: &App,
        inject: impl AsyncFnOnce(&TestEnv, &App) -> anyhow::Result<()>,
    ) -> anyhow::Result<Verdict> {
        let over = AtomicBool::new(false);
        let load = Load::new(env, app, self.conversations).commands(self.users);
        let mut load = load.pace(self.pace).signing(self.signing.clone());
        if !self.text_prefix.is_empty() {
            load = load.with_text(self.text_prefix);
        }
        if self.balanced {
            load = load.ready_only();
        }
        let fault = async {
            tokio::time::sleep(CALM).await;
            let injected = inject(env, app).await;
            tokio::time::sleep(CALM).await;
            over.store(true, Ordering::Relaxed);
            injected
        };
        let (sent, injected) = tokio::join!(load.run(&over), fault);
        injected?;
        let history = sent.history(env, self.drained_within).await;
        let history = history.with_context(|| keep_logs(env))?;
        let verdict = check(&history);
        ensure!(verdict.holds(self.repeats), "{verdict}\n{verdict:?}\n{}", keep_logs(env));
        Ok(verdict)
    }
}

/// Writes the logs of a failed run to a file and returns a text with its path.
fn keep_logs(env: &TestEnv) -> String {
    let path = std::env::temp_dir().join(format!("tidegate-faults-{}.log", std::process::id()));
    match std::fs::write(&path, env.logs()) {
        Ok(()) => format!("logs: {}", path.display()),
        Err(error) => format!("failed to write the logs: {error}"),
    }
}

/// Restarts every worker, as a deploy does.
pub async fn replace_workers(env: &TestEnv) -> anyhow::Result<()> {
    for worker in &env.workers {
        worker.process.terminate();
    }
    for worker in &env.workers {
        worker.process.wait(TIMEOUT).await?;
        worker.process.restart()?;
    }
    env.wait_until_balanced().await
}

/// Returns a held outcome with notes.
pub fn held(verdict: Verdict, notes: impl IntoIterator<Item = String>) -> anyhow::Result<Outcome> {
    let mut all = Vec::new();
    if verdict.repeated + verdict.repeated_calls > 0 {
        all.push(format!(
            "sent twice {}, called twice {}",
            verdict.repeated, verdict.repeated_calls
        ));
    }
    if verdict.notified > 0 {
        all.push(format!(
            "{} of {} commands notified",
            verdict.notified,
            verdict.commands + verdict.notified
        ));
    }
    all.extend(notes);
    Ok(Outcome::Held(Box::new(verdict), all))
}

/// Checks that Slack got all answers in time.
pub fn ensure_in_time(verdict: &Verdict) -> anyhow::Result<()> {
    let slowest = verdict.slowest;
    ensure!(slowest < ANSWERED_WITHIN, "an answer took {slowest:?}: {verdict}");
    Ok(())
}

/// Checks that the load was not disturbed: accepted at the first attempt, answered quickly,
/// processed without stalls.
pub fn ensure_undisturbed(verdict: &Verdict) -> anyhow::Result<()> {
    ensure!(verdict.rejected == 0, "{} requests were rejected: {verdict}", verdict.rejected);
    ensure!(verdict.slowest < QUICK, "an answer took {:?}: {verdict}", verdict.slowest);
    ensure!(verdict.worst_gap < NO_STALL, "a conversation stalled: {verdict}");
    Ok(())
}

/// Checks that the stream has the accepted webhooks of the load, `beside` other webhooks, and
/// nothing else.
pub async fn ensure_nothing_else_stored(
    env: &TestEnv,
    verdict: &Verdict,
    beside: usize,
) -> anyhow::Result<()> {
    let (stored, load) = (env.stored().await?, verdict.accepted + verdict.commands);
    let wanted = (load + beside) as u64;
    ensure!(stored == wanted, "{stored} webhooks are stored, but {load} + {beside} were accepted");
    Ok(())
}

/// Sends a message to channels in all partitions of the connection. Waits until each is processed.
pub async fn send_everywhere(env: &TestEnv, app: &App, text: &str) -> anyhow::Result<Vec<Webhook>> {
    let mut sent = Vec::new();
    for n in 0..24 {
        let webhook = Webhook::message(&env.slack, app, &format!("D97{n:02}"), "U1", text);
        send_until_accepted(env, app, &webhook).await?;
        sent.push(webhook);
    }
    for webhook in &sent {
        env.try_wait_for_outcome(&webhook.dedup_key).await?;
    }
    Ok(sent)
}

/// Resends a webhook until it is accepted.
pub async fn send_until_accepted(
    env: &TestEnv,
    app: &App,
    webhook: &Webhook,
) -> anyhow::Result<()> {
    try_eventually("the webhook is accepted", TIMEOUT, async || {
        let answer = env.send(app, webhook).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}
