//! `tidegate connections`: switch a connection off and on. In force on every ingest when the verb returns.

use crate::{StoreSettings, jetstream};
use anyhow::Context;
use shared::{
    config::{self, Nats},
    directory::Directory,
    secrets::Secret,
    store::Store,
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
    /// Give a connection a new signing secret; the one before stays good for a while.
    Rotate(Rotate),
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

/// Settings of `tidegate connections rotate`.
#[derive(Debug, clap::Args)]
pub struct Rotate {
    #[command(flatten)]
    switch: Switch,
    /// The new signing secret, as file:<path>; or the text itself, which other users of this machine may then see.
    #[arg(long, env = "TIDEGATE_NEW_SIGNING_SECRET", value_parser = config::secret, hide_env_values = true)]
    secret: Secret,
    /// How long the secret before it stays good.
    #[arg(long, default_value = "24h", value_parser = config::duration)]
    overlap: Duration,
}

impl Connections {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Connections::Stop(switch) => switch.set(Status::Stopped).await,
            Connections::Start(switch) => switch.set(Status::Active).await,
            Connections::Rotate(rotate) => {
                let (id, store) = (rotate.switch.connection, rotate.switch.store.open()?);
                store.rotate_signing_secret(id, &rotate.secret, rotate.overlap).await?;
                rotate.switch.announce(&store).await?;
                println!("{id} has a new signing secret, on every ingest");
                Ok(())
            }
        }
    }
}

impl Switch {
    async fn set(&self, status: Status) -> anyhow::Result<()> {
        let store = self.store.open()?;
        store.set_connection_status(self.connection, status).await?;
        self.announce(&store).await?;
        println!("{} is {status}, on every ingest", self.connection);
        Ok(())
    }

    /// Writes the directory, and waits until every ingest has read it.
    async fn announce(&self, store: &Store) -> anyhow::Result<()> {
        let id = self.connection;
        let directory = Directory::open(&jetstream(&self.nats).await?).await?;
        let entry = store
            .directory_entry(id)
            .await?
            .with_context(|| format!("there is no connection {id}"))?;
        let revision = directory.project(id, &entry).await?;
        Ok(directory.applied_everywhere(revision, APPLY_WITHIN).await?)
    }
}
