//! `tidegate migrate`: the schema in Postgres; the stream and the buckets in NATS.
//!
//! In production each half runs as a job of its own: the role that owns the schema has nothing to say in NATS, and the key that
//! makes streams none in Postgres. Hence the verb alone does both, and `migrate schema` and `migrate stream` ask for the
//! settings of one.

use crate::settings::NatsSettings;
use anyhow::Context;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser};
use shared::{config::Postgres, store::Store, stream};

/// What is to be migrated.
#[derive(Debug)]
pub enum Migrate {
    /// Both.
    Both(Schema, Stream),
    /// Postgres.
    Schema(Schema),
    /// NATS.
    Stream(Stream),
}

/// Only Postgres's schema.
#[derive(Debug, Parser)]
#[command(name = "schema")]
pub struct Schema {
    #[command(flatten)]
    postgres: Postgres,
}

/// Only the stream and the buckets in NATS.
#[derive(Debug, Parser)]
#[command(name = "stream")]
pub struct Stream {
    #[command(flatten)]
    nats: NatsSettings,
    /// Copies of everything in NATS: 3 in production. Unset: as it is; 1 for a new stream.
    #[arg(long, env = "TIDEGATE_STREAM_REPLICAS", value_name = "N")]
    replicas: Option<usize>,
    /// Room for webhooks in bytes, below the volume's size. Unset: as it is; 1 GiB for a new stream.
    #[arg(long, env = "TIDEGATE_STREAM_MAX_BYTES", value_name = "BYTES")]
    max_bytes: Option<i64>,
}

// By hand, because what the verb requires is not required of the verbs below it.
impl Args for Migrate {
    fn augment_args(command: clap::Command) -> clap::Command {
        let both = Stream::augment_args(Schema::augment_args(command));
        both.about("Bring Postgres's schema and NATS's stream and buckets to this release's. Safe to run again")
            .subcommand_negates_reqs(true)
            .subcommands([Schema::command(), Stream::command()])
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Migrate {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand() {
            Some(("schema", verb)) => Schema::from_arg_matches(verb).map(Self::Schema),
            Some((_, verb)) => Stream::from_arg_matches(verb).map(Self::Stream),
            None => Ok(Self::Both(
                Schema::from_arg_matches(matches)?,
                Stream::from_arg_matches(matches)?,
            )),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Migrate {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Migrate::Both(schema, stream) => {
                schema.run().await?;
                stream.run().await
            }
            Migrate::Schema(schema) => schema.run().await,
            Migrate::Stream(stream) => stream.run().await,
        }
    }
}

impl Schema {
    async fn run(self) -> anyhow::Result<()> {
        Store::migrate(&self.postgres).await?;
        println!("postgres  schema is up to date");
        Ok(())
    }
}

impl Stream {
    async fn run(self) -> anyhow::Result<()> {
        let js = self.nats.jetstream().await?;
        let sizing = stream::Sizing { replicas: self.replicas, max_bytes: self.max_bytes };
        stream::ensure(&js, sizing).await.context("NATS")?;
        println!("nats      stream {} and its buckets are there", stream::STREAM);
        Ok(())
    }
}
