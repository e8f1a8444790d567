//! A world under load while something is done to it, judged.

use crate::rows::Outcome;
use anyhow::{Context, ensure};
use shared::{partition::Partition, types::ConnectionId};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tests::{
    checker::{Verdict, check},
    load::{Load, channel},
    slack::{signing::Signing, webhook::Webhook},
    strike::CALM,
    until::try_until,
    world::{App, LEASE_TTL, SOON, Size, World, agent_id},
};

/// Two ingests, three workers, servers of its own.
pub const SIZE: Size = Size { ingests: 2, workers: 3, own_postgres: true };
/// Slack is told something by then, whatever happens: 2.5 s, and what a busy machine takes.
pub const ANSWERED_WITHIN: Duration = Duration::from_millis(3_000);
/// Everything is done and said this long after the load.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);
/// A worker's partitions are another's this long after it died or was parted: its lease, and what a busy machine takes.
pub const TAKEN_OVER: Duration = Duration::from_secs(LEASE_TTL.as_secs() + 4);
/// What is done at the door disturbs nobody: an answer is quick, as far as a busy machine lets it be,
pub const QUICK: Duration = Duration::from_secs(1);
/// and no conversation stands still for longer.
const NO_STALL: Duration = Duration::from_secs(2);

/// How a world is loaded and judged.
pub struct Trial {
    pub size: Size,
    pub conversations: u32,
    pub users: u32,
    pub pace: Duration,
    pub says: &'static str,
    pub balanced: bool,
    /// What is signed with, if that changes.
    pub signing: Signing,
    /// Whether something may be said twice: only when what says it was killed or frozen.
    pub repeats: bool,
    pub drained_within: Duration,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            size: SIZE,
            conversations: 12,
            users: 1,
            pace: Duration::from_millis(150),
            says: "",
            balanced: false,
            signing: Signing::default(),
            repeats: true,
            drained_within: DRAINED_WITHIN,
        }
    }
}

impl Trial {
    /// In a world of its own.
    pub async fn run(
        &self,
        strike: impl AsyncFnOnce(&World, &App) -> anyhow::Result<()>,
    ) -> anyhow::Result<Verdict> {
        let world = World::start(self.size).await?;
        self.in_world(&world, strike).await
    }

    /// In a world that was made for it.
    pub async fn in_world(
        &self,
        world: &World,
        strike: impl AsyncFnOnce(&World, &App) -> anyhow::Result<()>,
    ) -> anyhow::Result<Verdict> {
        let app = self.app(world).await?;
        self.of_app(world, &app, strike).await
    }

    /// An app of whose conversations some are the first worker's, which is the one that is struck: a connection has few of the
    /// partitions.
    async fn app(&self, world: &World) -> anyhow::Result<App> {
        let first = world.workers.first().map(|worker| worker.id.as_str());
        let owned: Vec<i16> =
            sqlx::query_scalar("select partition from partition_cursors where owner = $1")
                .bind(first)
                .fetch_all(&world.pool)
                .await?;
        let is_owned = |id, conversation| {
            let partition = Partition::of(id, Some(&channel(conversation)));
            owned.contains(&(partition.number() as i16))
        };
        let mut id = ConnectionId::random()?;
        while !owned.is_empty() && !(0..self.conversations).any(|n| is_owned(id, n)) {
            id = ConnectionId::random()?;
        }
        world.connect_as(|new| (new.id, new.agent) = (id, Some(agent_id()))).await
    }

    /// With an app that is there already.
    pub async fn of_app(
        &self,
        world: &World,
        app: &App,
        strike: impl AsyncFnOnce(&World, &App) -> anyhow::Result<()>,
    ) -> anyhow::Result<Verdict> {
        let over = AtomicBool::new(false);
        let load = Load::new(world, app, self.conversations).commands(self.users);
        let mut load = load.pace(self.pace).signing(self.signing.clone());
        if !self.says.is_empty() {
            load = load.says(self.says);
        }
        if self.balanced {
            load = load.balanced();
        }
        let striking = async {
            tokio::time::sleep(CALM).await;
            let struck = strike(world, app).await;
            tokio::time::sleep(CALM).await;
            over.store(true, Ordering::Relaxed);
            struck
        };
        let (sent, struck) = tokio::join!(load.run(&over), striking);
        struck?;
        let history = sent.history(world, self.drained_within).await;
        let history = history.with_context(|| kept(world))?;
        let verdict = check(&history);
        ensure!(verdict.holds(self.repeats), "{verdict}\n{verdict:?}\n{}", kept(world));
        Ok(verdict)
    }
}

/// Where the logs of a world that broke are kept, for people.
fn kept(world: &World) -> String {
    let path = std::env::temp_dir().join(format!("tidegate-faults-{}.log", std::process::id()));
    match std::fs::write(&path, world.logs()) {
        Ok(()) => format!("logs: {}", path.display()),
        Err(error) => format!("its logs could not be kept: {error}"),
    }
}

/// Every worker is replaced, as at a new release.
pub async fn replace_workers(world: &World) -> anyhow::Result<()> {
    for worker in &world.workers {
        worker.process.terminate();
    }
    for worker in &world.workers {
        worker.process.wait(SOON).await?;
        worker.process.restart()?;
    }
    world.settled().await
}

/// It held, with these notes.
pub fn held(verdict: Verdict, notes: impl IntoIterator<Item = String>) -> anyhow::Result<Outcome> {
    let mut all = Vec::new();
    if verdict.repeated + verdict.asked_again > 0 {
        all.push(format!("said twice {}, asked twice {}", verdict.repeated, verdict.asked_again));
    }
    if verdict.told_so > 0 {
        all.push(format!(
            "{} of {} commands told so",
            verdict.told_so,
            verdict.commands + verdict.told_so
        ));
    }
    all.extend(notes);
    Ok(Outcome::Held(Box::new(verdict), all))
}

/// Slack got every answer in time.
pub fn in_time(verdict: &Verdict) -> anyhow::Result<()> {
    let slowest = verdict.slowest;
    ensure!(slowest < ANSWERED_WITHIN, "an answer took {slowest:?}: {verdict}");
    Ok(())
}

/// Whoever is well-behaved noticed nothing of it: taken at the first try, answered quickly, handled at once.
pub fn undisturbed(verdict: &Verdict) -> anyhow::Result<()> {
    ensure!(verdict.turned_away == 0, "{} were turned away: {verdict}", verdict.turned_away);
    ensure!(verdict.slowest < QUICK, "an answer took {:?}: {verdict}", verdict.slowest);
    ensure!(verdict.worst_gap < NO_STALL, "a conversation stood still: {verdict}");
    Ok(())
}

/// The stream holds what was accepted of the load, so many more that were sent beside it, and nothing else.
pub async fn nothing_else_stored(
    world: &World,
    verdict: &Verdict,
    beside: usize,
) -> anyhow::Result<()> {
    let (stored, load) = (world.stored().await?, verdict.accepted + verdict.commands);
    let wanted = (load + beside) as u64;
    ensure!(stored == wanted, "{stored} are stored, and {load} + {beside} were accepted");
    Ok(())
}

/// A message in so many channels that all partitions of the connection get one; each is handled.
pub async fn say_everywhere(world: &World, app: &App, text: &str) -> anyhow::Result<Vec<Webhook>> {
    let mut sent = Vec::new();
    for n in 0..24 {
        let webhook = Webhook::message(&world.slack, app, &format!("D97{n:02}"), "U1", text);
        taken(world, app, &webhook).await?;
        sent.push(webhook);
    }
    for webhook in &sent {
        world.try_handled(&webhook.dedupe).await?;
    }
    Ok(sent)
}

/// It is taken, as soon as there is a stream.
pub async fn taken(world: &World, app: &App, webhook: &Webhook) -> anyhow::Result<()> {
    try_until("it is taken", SOON, async || {
        let answer = world.send(app, webhook).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}
