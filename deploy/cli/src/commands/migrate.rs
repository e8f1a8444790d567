//! `tidegate migrate`: migrates the schema in Postgres, and the stream and buckets in NATS.
//!
//! In production each part runs as its own job: the job with the role that owns the schema has no
//! NATS user, and the job with the NATS user that creates streams has no Postgres role. So
//! `migrate schema` and `migrate stream` require the settings of only one server.

use crate::{output, settings::NatsSettings};
use anyhow::Context;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser};
use shared::{runtime::config::PostgresConfig, store::Store, stream};

/// Arguments of `tidegate migrate`.
#[derive(Debug)]
pub enum Migrate {
    /// `tidegate migrate`: both parts.
    Both(Schema, Stream),
    /// `tidegate migrate schema`.
    Schema(Schema),
    /// `tidegate migrate stream`.
    Stream(Stream),
}

/// Migrate the schema in Postgres.
#[derive(Debug, Parser)]
#[command(name = "schema")]
pub struct Schema {
    #[command(flatten, next_help_heading = "Settings")]
    postgres: PostgresConfig,
}

/// Create or update the stream and the buckets in NATS.
#[derive(Debug, Parser)]
#[command(name = "stream")]
pub struct Stream {
    /// Replicas of the stream and the buckets: 3 in production. Default: unchanged, or 1 for a new
    /// stream.
    #[arg(long, env = "TIDEGATE_STREAM_REPLICAS", value_name = "N")]
    replicas: Option<usize>,
    /// Maximum size of the stream in bytes, below the size of the volume. Default: unchanged, or
    /// 1 GiB for a new stream.
    #[arg(long, env = "TIDEGATE_STREAM_MAX_BYTES", value_name = "BYTES")]
    max_bytes: Option<i64>,
    #[command(flatten)]
    nats: NatsSettings,
}

// Not derived: arguments that `migrate` requires are not required with a subcommand.
impl Args for Migrate {
    fn augment_args(command: clap::Command) -> clap::Command {
        let both = Schema::augment_args(Stream::augment_args(command));
        both.about("Migrate the schema in Postgres, and the stream and buckets in NATS")
            .long_about(
                "Migrate the schema in Postgres, and the stream and buckets in NATS, \
                 to this release. Safe to repeat.",
            )
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
            Some(("schema", schema)) => Schema::from_arg_matches(schema).map(Self::Schema),
            Some((_, stream)) => Stream::from_arg_matches(stream).map(Self::Stream),
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
    /// Runs the command.
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
        Ok(output::print_line("postgres  schema is up to date")?)
    }
}

impl Stream {
    async fn run(self) -> anyhow::Result<()> {
        let js = self.nats.jetstream().await?;
        let sizing = stream::StreamSize { replicas: self.replicas, max_bytes: self.max_bytes };
        stream::provision(&js, sizing)
            .await
            .with_context(|| format!("failed to migrate stream {} in NATS", stream::STREAM))?;
        let line = format!("nats      stream {} and its buckets are up to date", stream::STREAM);
        Ok(output::print_line(&line)?)
    }
}
