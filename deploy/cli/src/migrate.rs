//! `tidegate migrate`: the schema in Postgres; the stream and the buckets in NATS.

use crate::{StoreSettings, jetstream};
use anyhow::Context;
use shared::{config::Nats, stream};

/// Settings of `tidegate migrate`.
#[derive(Debug, clap::Args)]
pub struct Migrate {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: Nats,
    /// Copies of everything in NATS: 3 in production. Unset: as it is; 1 for a new stream.
    #[arg(long, env = "TIDEGATE_STREAM_REPLICAS", value_name = "N")]
    replicas: Option<usize>,
    /// Room for webhooks in bytes, below the volume's size. Unset: as it is; 1 GiB for a new stream.
    #[arg(long, env = "TIDEGATE_STREAM_MAX_BYTES", value_name = "BYTES")]
    max_bytes: Option<i64>,
}

impl Migrate {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        self.store.open()?.migrate().await?;
        println!("postgres  schema is up to date");
        let js = jetstream(&self.nats).await?;
        let sizing = stream::Sizing { replicas: self.replicas, max_bytes: self.max_bytes };
        stream::ensure(&js, sizing).await.context("NATS")?;
        println!("nats      stream {} and its buckets are there", stream::STREAM);
        Ok(())
    }
}
