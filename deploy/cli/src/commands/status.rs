//! `tidegate status`: prints the state of a deployment on one screen.

use crate::{
    output,
    settings::{NatsSettings, StoreSettings},
    stream_reader,
};
use anyhow::bail;
use serde::Serialize;
use shared::{
    directory::Directory,
    domain::ConnectionStatus,
    store::{AgentState, FailureFilter, Store},
    stream::{PARTITIONS, Partition},
};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of workers or agents that a line lists.
const NAMED_MAX: usize = 3;

/// Arguments of `tidegate status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
}

/// State of a deployment.
#[derive(Debug, Default, Serialize)]
struct Facts {
    live_ingests: usize,
    workers: Vec<String>,
    partitions_held: usize,
    /// Stored webhooks past the cursors.
    lag: u64,
    /// Open deliveries.
    deliveries: i64,
    /// Number of connections by status.
    connections: BTreeMap<String, usize>,
    agents: usize,
    agents_paused: Vec<String>,
    agents_circuit_open: Vec<String>,
    outbox_pending: i64,
    dead_letters: i64,
}

impl Status {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let js = self.nats.jetstream().await?;
        let (store, stream) = (self.store.open()?, stream_reader::open(&js).await?);
        let mut facts = Facts {
            live_ingests: Directory::open(&js).await?.ingests().await?.len(),
            ..Facts::default()
        };
        let mut workers = BTreeSet::new();
        for state in store.partition_states().await? {
            let number = u16::try_from(state.partition).ok();
            if let Some(partition) = number.and_then(|number| Partition::try_from(number).ok()) {
                let cursor = state.cursor.max(0) as u64;
                facts.lag += stream_reader::count_after(&stream, partition, cursor).await?;
            }
            facts.deliveries += state.deliveries;
            if state.held {
                facts.partitions_held += 1;
                workers.extend(state.owner);
            }
        }
        facts.workers = workers.into_iter().collect();
        facts.read(&store).await?;
        if self.json {
            output::print_json(&facts)?;
        } else {
            output::print_line(&facts.render())?;
        }
        match facts.concerns() {
            concerns if concerns.is_empty() => Ok(()),
            concerns => bail!("{}; run tidegate doctor", concerns.join("; ")),
        }
    }
}

impl Facts {
    /// Reads the facts that are in Postgres.
    async fn read(&mut self, store: &Store) -> anyhow::Result<()> {
        for connection in store.connection_summaries(None).await? {
            *self.connections.entry(connection.status.to_string()).or_default() += 1;
        }
        let agents = store.agent_states(None, None).await?;
        let named = |is: fn(&AgentState) -> bool| {
            let named = agents.iter().filter(|agent| is(agent));
            named.map(|agent| format!("{}/{}", agent.organization, agent.id)).collect()
        };
        self.agents = agents.len();
        self.agents_paused = named(|agent| agent.paused_at.is_some());
        self.agents_circuit_open = named(|agent| agent.circuit_opened_at.is_some());
        let outbox = store.outbox_backlog().await?;
        self.outbox_pending = outbox.waiting;
        self.dead_letters = store.count_dead_letters(&FailureFilter::default()).await?;
        Ok(())
    }

    /// Returns the conditions that need attention.
    fn concerns(&self) -> Vec<String> {
        let free = usize::from(PARTITIONS) - self.partitions_held;
        let revoked = self.connections.get(ConnectionStatus::Revoked.as_str()).copied();
        [
            (self.live_ingests == 0).then(|| "no ingest runs".to_owned()),
            (free > 0).then(|| format!("partitions without a worker: {free}")),
            (!self.agents_circuit_open.is_empty())
                .then(|| format!("failing agents: {}", self.agents_circuit_open.len())),
            revoked.map(|revoked| format!("revoked connections: {revoked}")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn render(&self) -> String {
        let connections = self.connections.iter();
        let connections: Vec<_> =
            connections.map(|(status, count)| format!("{count} {status}")).collect();
        let list = |names: &[String]| {
            let shown: Vec<_> = names.iter().take(NAMED_MAX).map(|n| output::sanitize(n)).collect();
            let more = names.len().saturating_sub(NAMED_MAX);
            shown.join(", ") + &if more > 0 { format!(", {more} more") } else { String::new() }
        };
        let group = |state: &str, names: &[String]| match names.len() {
            0 => String::new(),
            count => format!("; {count} {state} ({})", list(names)),
        };
        output::render_facts(&[
            ("ingests", format!("{} live", self.live_ingests)),
            ("workers", format!("{} ({})", self.workers.len(), list(&self.workers))),
            ("partitions", format!("{} of {PARTITIONS} held", self.partitions_held)),
            ("lag", format!("{} stored webhooks not committed", self.lag)),
            ("deliveries", format!("{} open", self.deliveries)),
            ("outbox", format!("{} messages to Slack pending", self.outbox_pending)),
            ("dead letters", self.dead_letters.to_string()),
            ("connections", output::or_dash(Some(&connections.join(", ")))),
            (
                "agents",
                format!(
                    "{}{}{}",
                    self.agents,
                    group("paused", &self.agents_paused),
                    group("with an open circuit", &self.agents_circuit_open)
                ),
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_one_screen() {
        let facts = Facts {
            live_ingests: 2,
            workers: vec!["worker-1".into(), "worker-2".into()],
            partitions_held: 60,
            lag: 12,
            deliveries: 3,
            connections: BTreeMap::from([("active".into(), 10), ("revoked".into(), 1)]),
            agents: 5,
            agents_paused: vec!["acme/helper".into()],
            agents_circuit_open: (1..6).map(|n| format!("acme/{n}")).collect(),
            outbox_pending: 7,
            dead_letters: 4,
        };
        insta::assert_snapshot!(facts.render(), @r"
        ingests         2 live
        workers         2 (worker-1, worker-2)
        partitions      60 of 64 held
        lag             12 stored webhooks not committed
        deliveries      3 open
        outbox          7 messages to Slack pending
        dead letters    4
        connections     10 active, 1 revoked
        agents          5; 1 paused (acme/helper); 5 with an open circuit (acme/1, acme/2, acme/3, 2 more)
        ");
        let concerns = facts.concerns().join("; ");
        insta::assert_snapshot!(
            concerns,
            @"partitions without a worker: 4; failing agents: 5; revoked connections: 1"
        );
        assert!(
            Facts { live_ingests: 1, partitions_held: 64, ..Facts::default() }
                .concerns()
                .is_empty()
        );
    }
}
