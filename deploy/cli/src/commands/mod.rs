//! Commands of `tidegate`, one module per top-level command. They do not import each other.

mod agents;
mod api_keys;
mod apply;
mod apps;
mod audit_log;
mod connections;
mod dead_letters;
mod deliveries;
mod dev;
mod doctor;
mod erase;
mod export;
mod init;
mod keygen;
mod keys;
mod ledger;
mod link_codes;
mod listen;
mod manifest;
mod migrate;
mod outbox;
mod partitions;
mod replay;
mod status;
mod tail;
mod trigger;
mod webhook;

/// Commands of `tidegate`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Migrate(migrate::Migrate),
    /// Create a Slack app and a connection: manifest, secrets, declaration.
    Init(Box<init::Init>),
    /// Generate the keys of a new installation: keyrings, and nkeys of the NATS users.
    Keygen(keygen::Keygen),
    /// Create, change and delete organizations, agents, apps and connections as declared in a file.
    Apply(apply::Apply),
    /// List and show apps.
    #[command(subcommand)]
    Apps(apps::Apps),
    /// Create, list and revoke link codes.
    #[command(subcommand)]
    LinkCodes(link_codes::LinkCodes),
    /// List, disable, enable and delete connections, and rotate their secrets.
    #[command(subcommand)]
    Connections(connections::Connections),
    /// Run a complete deployment on this machine, without containers and without root.
    Dev(Box<dev::Dev>),
    /// Check this deployment, or the manifest of a Slack app. Exits 1 if there is a problem.
    Doctor(Box<doctor::Doctor>),
    /// Print the manifest of a Slack app for this deployment.
    Manifest(manifest::Manifest),
    /// Count encrypted values by key, and re-encrypt them with the newest key.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// List, show, redrive and delete dead letters.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLetters),
    /// List, show, retry, skip and cancel deliveries.
    #[command(subcommand)]
    Deliveries(deliveries::Deliveries),
    /// Manage messages to Slack.
    #[command(subcommand)]
    Outbox(outbox::Outbox),
    /// Look up a webhook.
    #[command(subcommand)]
    Webhook(webhook::Webhook),
    /// List, show, test, pause and resume agents.
    #[command(subcommand)]
    Agents(agents::Agents),
    /// Create, list and revoke keys of the control API.
    #[command(subcommand)]
    ApiKeys(api_keys::ApiKeys),
    /// List audited changes by people and programs, newest first.
    AuditLog(audit_log::AuditLog),
    /// Print an organization as JSON lines: settings, bindings, usage, changes. No secrets.
    Export(export::Export),
    /// Erase a person or an organization from Postgres and the stream.
    #[command(subcommand)]
    Erase(erase::Erase),
    /// List partitions with their owners, cursors and lag.
    Partitions(partitions::Partitions),
    /// Check that no webhook was lost.
    #[command(subcommand)]
    Ledger(ledger::Ledger),
    /// Process a range of a connection's webhooks again. Changes nothing without --apply.
    Replay(replay::Replay),
    /// List and cancel replays.
    #[command(subcommand)]
    Replays(replay::Replays),
    /// Show the state of this deployment on one screen. Exits 1 if something needs attention.
    Status(status::Status),
    /// Send a signed webhook as documented by Slack to your own deployment.
    Trigger(Box<trigger::Trigger>),
    /// Print new webhooks as they are stored, without their bodies, until Ctrl-C.
    Tail(tail::Tail),
    /// Mirror the webhooks of a connection to an app on this machine, in order. Responses are
    /// printed, not sent to Slack.
    Listen(listen::Listen),
}

impl Command {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Migrate(command) => command.run().await,
            Command::Keygen(command) => command.run(),
            Command::Apply(command) => command.run().await,
            Command::Apps(command) => command.run().await,
            Command::LinkCodes(command) => command.run().await,
            Command::Connections(command) => command.run().await,
            Command::Init(command) => command.run().await,
            Command::Dev(command) => command.run().await,
            Command::Doctor(command) => command.run().await,
            Command::Manifest(command) => command.run(),
            Command::Keys(command) => command.run().await,
            Command::DeadLetters(command) => command.run().await,
            Command::Deliveries(command) => command.run().await,
            Command::Outbox(command) => command.run().await,
            Command::Webhook(command) => command.run().await,
            Command::Agents(command) => command.run().await,
            Command::ApiKeys(command) => command.run().await,
            Command::AuditLog(command) => command.run().await,
            Command::Export(command) => command.run().await,
            Command::Erase(command) => command.run().await,
            Command::Partitions(command) => command.run().await,
            Command::Ledger(command) => command.run().await,
            Command::Replay(command) => command.run().await,
            Command::Replays(command) => command.run().await,
            Command::Status(command) => command.run().await,
            Command::Trigger(command) => command.run().await,
            Command::Tail(command) => command.run().await,
            Command::Listen(command) => command.run().await,
        }
    }
}
