//! `tidegate connections`: switch a connection off and on. In force on every ingest when the verb returns.

use crate::{StoreSettings, jetstream};
use anyhow::Context;
use shared::{
    config::Nats,
    directory::Directory,
    types::{ConnectionId, Status},
};
use std::time::Duration;

/// Longest the ingests may take to apply a change before the verb says which have not.
const APPLY_WITHIN: Duration = Duration::from_secs(10);

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Connections {
    /// Switch a connection off: its webhooks are answered 404.
    Stop(Switch),
    /// Switch a connection on.
    Start(Switch),
}

/// Settings of `tidegate connections stop` and `start`.
#[derive(Debug, clap::Args)]
pub struct Switch {
    /// The connection's id.
    connection: ConnectionId,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: Nats,
}

impl Connections {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        let (switch, status) = match self {
            Connections::Stop(switch) => (switch, Status::Stopped),
            Connections::Start(switch) => (switch, Status::Active),
        };
        let id = switch.connection;
        let store = switch.store.open()?;
        let directory = Directory::open(&jetstream(&switch.nats).await?).await?;
        store.set_connection_status(id, status).await?;
        let entry = store
            .directory_entry(id)
            .await?
            .with_context(|| format!("there is no connection {id}"))?;
        let revision = directory.project(id, &entry).await?;
        directory.applied_everywhere(revision, APPLY_WITHIN).await?;
        println!("{id} is {status}, on every ingest");
        Ok(())
    }
}
