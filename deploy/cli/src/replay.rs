//! `tidegate replay`: a stretch of a connection's webhooks, handled once more by the workers.
//!
//! In: a connection and two times. Out: for each webhook what would be changed, said and called; with `--apply` what was. The
//! workers do it, in a scope of its own with a lease of its own, so it goes on when a worker dies; the verb asks, watches and
//! prints. Asked again under the same name it shows that replay and begins no other.

use crate::{StoreSettings, audit::since, print};
use anyhow::ensure;
use shared::{
    config,
    store::{NewReplay, ReplayState, Replayed, Store},
    types::{ConnectionId, OrgId},
};
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// Between two looks at how it goes.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Results fetched at once.
const BATCH: i64 = 500;

const COLUMNS: [print::Column; 5] = [
    ("sequence", true),
    ("stored at", false),
    ("kind", false),
    ("outcome", false),
    ("effects", false),
];

/// Settings of `tidegate replay`.
#[derive(Debug, clap::Args)]
pub struct Replay {
    #[command(flatten)]
    store: StoreSettings,
    /// Whose webhooks.
    #[arg(long)]
    connection: ConnectionId,
    /// From when on: so long ago, as in 1h, or a time, as in 2026-01-31T12:00:00Z.
    #[arg(long, value_parser = since)]
    from: OffsetDateTime,
    /// Up to when, likewise; up to now, if unset.
    #[arg(long, value_parser = since)]
    to: Option<OffsetDateTime>,
    /// Do it: call agents, commit, say. Their effects come on top of those of the first time.
    #[arg(long, conflicts_with = "dry_run")]
    apply: bool,
    /// Change nothing and call nobody; say what would be. This is what happens without --apply.
    #[arg(long)]
    dry_run: bool,
    /// A name for it; made up when unset. One name is one replay.
    #[arg(long)]
    name: Option<OrgId>,
    /// How long to wait for the workers before it is called off.
    #[arg(long, default_value = "1h", value_parser = config::duration)]
    within: Duration,
    /// Print JSON, a line a webhook.
    #[arg(long)]
    json: bool,
}

impl Replay {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let to = self.to.unwrap_or_else(OffsetDateTime::now_utc);
        ensure!(self.from < to, "--from lies after --to: there is nothing between");
        let store = self.store.open()?;
        let name = match &self.name {
            Some(name) => name.to_string(),
            None => ConnectionId::random()?.to_string(),
        };
        let scope = format!("replay:{name}");
        let (connection, from, apply) = (self.connection, self.from, self.apply);
        let new = NewReplay { scope: scope.clone(), connection, from, to, apply };
        if !store.ask_replay(&new).await? {
            let with = |apply| if apply { "with effects" } else { "that only looked" };
            let there = store.replay_state(&scope).await?.apply;
            ensure!(
                there == apply,
                "there is a replay {name} already, one {}: say another --name",
                with(there)
            );
            eprintln!("there is a replay of that name; this is how it went");
        }
        let ended = tokio::select! {
            ended = self.watch(&store, &scope) => ended?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                store.cancel_replay(&scope).await?;
                print::progress_over();
                anyhow::bail!("called off; what was done before stays done");
            }
        };
        print::progress_over();
        self.print(&store, &scope).await?;
        ensure!(
            ended.state == "done",
            "the replay {name} {}: {}",
            ended.state,
            print::or_dash(Some(&ended.note))
        );
        Ok(())
    }

    async fn watch(&self, store: &Store, scope: &str) -> anyhow::Result<ReplayState> {
        let deadline = Instant::now() + self.within;
        loop {
            let state = store.replay_state(scope).await?;
            if state.state != "open" {
                return Ok(state);
            }
            if Instant::now() >= deadline {
                store.cancel_replay(scope).await?;
                anyhow::bail!(
                    "not done in time, and called off: do workers run? tidegate partitions tells"
                );
            }
            let of = state.total.map_or_else(String::new, |total| format!(" of about {total}"));
            let by = state.owner.as_deref().unwrap_or("nobody yet");
            print::progress(&format!("{}{of} handled, by {}", state.handled, print::plain(by)));
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn print(&self, store: &Store, scope: &str) -> anyhow::Result<()> {
        let (mut after, mut all) = (0, Vec::new());
        loop {
            let some = store.replayed(scope, after, BATCH).await?;
            let Some(last) = some.last() else { break };
            after = last.sequence;
            match self.json {
                true => some.iter().try_for_each(print::json)?,
                false => all.extend(some.iter().map(row)),
            }
        }
        if !self.json {
            print::table(&COLUMNS, &all)?;
            let done = if self.apply { "replayed" } else { "would be replayed; --apply does it" };
            print::line(&format!("{} {done}", all.len()))?;
        }
        Ok(())
    }
}

fn row(one: &Replayed) -> Vec<String> {
    vec![
        one.sequence.to_string(),
        print::or_dash(one.stored_at.as_deref()),
        print::plain(&one.kind),
        print::plain(&one.outcome),
        print::or_dash(Some(&one.effects.join(", "))),
    ]
}
