//! A file for each family of commands. They do not import each other.

mod agents;
mod apply;
mod connections;
mod dead_letters;
mod deliveries;
mod doctor;
mod keygen;
mod keys;
mod ledger;
mod link_codes;
mod manifest;
mod migrate;
mod outbox;
mod partitions;
mod replay;
mod tail;
mod webhook;

/// Commands of `tidegate`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Bring Postgres's schema and NATS's stream and buckets to this release's. Safe to run again
    Migrate(migrate::Migrate),
    /// Make the keys of a new installation: key rings, and what NATS knows its users by.
    Keygen(keygen::Keygen),
    /// Bring about what a file declares: organizations, agents, connections.
    Apply(apply::Apply),
    /// Link claims.
    #[command(subcommand)]
    Claims(link_codes::Claims),
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

impl Command {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Migrate(verb) => verb.run().await,
            Command::Keygen(verb) => verb.run(),
            Command::Apply(verb) => verb.run().await,
            Command::Claims(verb) => verb.run().await,
            Command::Connections(verb) => verb.run().await,
            Command::Doctor(verb) => verb.run().await,
            Command::Manifest(verb) => verb.run(),
            Command::Keys(verb) => verb.run().await,
            Command::DeadLetters(verb) => verb.run().await,
            Command::Deliveries(verb) => verb.run().await,
            Command::Outbox(verb) => verb.run().await,
            Command::Webhook(verb) => verb.run().await,
            Command::Agents(verb) => verb.run().await,
            Command::Partitions(verb) => verb.run().await,
            Command::Ledger(verb) => verb.run().await,
            Command::Replay(verb) => verb.run().await,
            Command::Replays(verb) => verb.run().await,
            Command::Tail(verb) => verb.run().await,
        }
    }
}
