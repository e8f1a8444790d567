//! `tidegate`: the operator's command line.
//!
//! Each verb is a file. A verb that changes a connection commits to Postgres, writes the directory, and returns when
//! every ingest has applied it: what it says is in force when it says so.

use clap::{Parser, Subcommand};
use shared::{
    config::{self, Nats, Postgres},
    secrets::KeyRing,
    store::{Plans, Rings, Store},
};
use std::process::ExitCode;

mod agents;
mod announce;
mod apply;
mod claims;
mod connections;
mod dead_letters;
mod deliveries;
mod doctor;
mod keygen;
mod keys;
mod ledger;
mod manifest;
mod migrate;
mod outbox;
mod partitions;
mod print;
mod replay;
mod rotation;
mod tail;
mod webhook;

/// Exit codes, for people and scripts.
const EXIT_CODES: &str =
    "Exit codes: 0 done; 1 failed, or not confirmed with --yes; 3 nothing matched; 64 wrong usage.";

/// Operates Tidegate: migrate, provision, look, repair.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring Postgres's schema and NATS's stream and buckets to this release's. Safe to run again
    Migrate(migrate::Migrate),
    /// Make the keys of a new installation: key rings, and what NATS knows its users by.
    Keygen(keygen::Keygen),
    /// Bring about what a file declares: organizations, agents, connections.
    Apply(apply::Apply),
    /// Link claims.
    #[command(subcommand)]
    Claims(claims::Claims),
    /// Connections.
    #[command(subcommand)]
    Connections(connections::Connections),
    /// Look for what is wrong with this deployment, or with a Slack app's manifest. Fails when something is.
    Doctor(Box<doctor::Doctor>),
    /// Print the manifest of a Slack app for this deployment.
    Manifest(manifest::Manifest),
    /// Under which keys secrets rest.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Manage webhooks and deliveries that were given up on.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLetters),
    /// Manage what waits for agents.
    #[command(subcommand)]
    Deliveries(deliveries::Deliveries),
    /// Manage messages to Slack.
    #[command(subcommand)]
    Outbox(outbox::Outbox),
    /// Look up a webhook.
    #[command(subcommand)]
    Webhook(webhook::Webhook),
    /// Look at, pause and resume agents.
    #[command(subcommand)]
    Agents(agents::Agents),
    /// List partitions with their owners, and how far each is.
    Partitions(partitions::Partitions),
    /// Check that no webhook was lost.
    #[command(subcommand)]
    Ledger(ledger::Ledger),
    /// Decide a range of a connection's webhooks again. Only shows what would happen, unless told to apply.
    Replay(replay::Replay),
    /// List and cancel replays.
    #[command(subcommand)]
    Replays(replay::Replays),
    /// Print webhooks as they are stored, never their bodies, until Ctrl-C.
    Tail(tail::Tail),
}

/// Where Postgres is, and the keys to what rests in it.
#[derive(Debug, clap::Args)]
struct StoreSettings {
    /// Where Postgres is.
    #[command(flatten)]
    postgres: Postgres,
    /// Key ring that opens signing secrets, as k2:<base64>,k1:<base64> or file:<path>.
    #[arg(long, env = "TIDEGATE_SIGNING_SECRET_KEYRING", value_name = "RING", value_parser = config::key_ring, hide_env_values = true)]
    signing_secret_keyring: KeyRing,
    /// Key ring that opens tokens and agents' secrets, in the same form.
    #[arg(long, env = "TIDEGATE_TOKEN_KEYS", value_name = "RING", value_parser = config::key_ring, hide_env_values = true)]
    token_keys: KeyRing,
}

impl StoreSettings {
    fn open(&self) -> anyhow::Result<Store> {
        let rings =
            Rings { signing: self.signing_secret_keyring.clone(), tokens: self.token_keys.clone() };
        Ok(Store::new(&self.postgres, rings, Plans::PerCall)?)
    }
}

async fn jetstream(nats: &Nats) -> anyhow::Result<async_nats::jetstream::Context> {
    Ok(config::jetstream(nats.connect("operator").await?))
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = match config::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let done = match cli.verb {
        Verb::Migrate(verb) => verb.run().await,
        Verb::Keygen(verb) => verb.run(),
        Verb::Apply(verb) => verb.run().await,
        Verb::Claims(verb) => verb.run().await,
        Verb::Connections(verb) => verb.run().await,
        Verb::Doctor(verb) => verb.run().await,
        Verb::Manifest(verb) => verb.run(),
        Verb::Keys(verb) => verb.run().await,
        Verb::DeadLetters(verb) => verb.run().await,
        Verb::Deliveries(verb) => verb.run().await,
        Verb::Outbox(verb) => verb.run().await,
        Verb::Webhook(verb) => verb.run().await,
        Verb::Agents(verb) => verb.run().await,
        Verb::Partitions(verb) => verb.run().await,
        Verb::Ledger(verb) => verb.run().await,
        Verb::Replay(verb) => verb.run().await,
        Verb::Replays(verb) => verb.run().await,
        Verb::Tail(verb) => verb.run().await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read what we print has enough.
        Err(error) if print::nobody_reads(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            if error.is::<print::NothingMatched>() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}
