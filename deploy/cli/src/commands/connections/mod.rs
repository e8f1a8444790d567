//! `tidegate connections`: lists, imports, changes and deletes connections, and rotates secrets.
//!
//! Commands that change the directory return when every ingest has applied the change.

mod backlog;
mod import;
mod move_to;
mod token_rotation;

use crate::{
    output,
    settings::{self, NatsSettings, SigningKeyring, StoreSettings},
};
use anyhow::{Context, bail};
use import::Import;
use move_to::Move;
use serde::Serialize;
use shared::{
    domain::{ConnectionId, EnterpriseId, TeamId},
    operations::OperationError,
    runtime::config,
    secrets::Secret,
    store::{BindingChange, ConnectionSummary, HistoryEntry, Store},
};
use std::time::Duration;
use token_rotation::EnableTokenRotation;

const LIST: &str = "tidegate connections list";
/// Maximum number of binding changes that `show` prints.
const BINDING_CHANGES_SHOWN: i64 = 20;

const COLUMNS: [output::Column; 8] = [
    ("id", false),
    ("organization", false),
    ("app", false),
    ("installation", false),
    ("status", false),
    ("bindings", true),
    ("backlog", false),
    ("reason", false),
];

/// Commands of `tidegate connections`.
#[derive(Debug, clap::Subcommand)]
pub enum Connections {
    /// List connections.
    List(List),
    /// Show a connection, without its secrets.
    Show(Show),
    /// Create connections from the installations of a Bolt app. Continues an interrupted import.
    Import(Box<Import>),
    /// Disable a connection. Ingest answers its webhooks with 404.
    Disable(Change),
    /// Enable a connection.
    Enable(Change),
    /// Replace the signing secret of a connection. The previous secret stays valid for --overlap.
    RotateSigningSecret(RotateSigningSecret),
    /// Let workers refresh the bot token of a connection before it expires.
    EnableTokenRotation(EnableTokenRotation),
    /// Pause calls to Slack for a connection. Messages wait and do not expire.
    PauseSending(Sending),
    /// Resume calls to Slack for a connection.
    ResumeSending(Sending),
    /// Move a connection to another organization. Its bindings stay.
    Move(Move),
    /// Delete a connection and its data in Postgres, the directory and the stream.
    Delete(Delete),
}

/// Arguments of `tidegate connections list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Print JSON, one connection per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate connections show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Connection id.
    connection: ConnectionId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of commands that change the directory entry of a connection.
#[derive(Debug, clap::Args)]
pub struct Change {
    /// Connection id.
    connection: ConnectionId,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
}

/// Arguments of `tidegate connections pause-sending` and `resume-sending`.
#[derive(Debug, clap::Args)]
pub struct Sending {
    /// Connection id.
    connection: ConnectionId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate connections rotate-signing-secret`.
#[derive(Debug, clap::Args)]
pub struct RotateSigningSecret {
    /// New signing secret, as file:<path>, env:<name>, or - for standard input.
    #[arg(long, value_parser = settings::secret)]
    secret: Secret,
    /// Time for which the previous secret stays valid. A worker removes it within a minute after
    /// that.
    #[arg(long, default_value = "24h", value_parser = config::parse_duration)]
    overlap: Duration,
    #[command(flatten)]
    change: Change,
    #[command(flatten)]
    keyring: SigningKeyring,
}

/// Arguments of `tidegate connections delete`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// Delete the connection. Without this flag only print what would be deleted.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    change: Change,
}

impl Connections {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Connections::List(list) => list.run().await,
            Connections::Show(show) => show.run().await,
            Connections::Import(import) => import.run().await,
            Connections::Disable(change) => change.set_enabled(false).await,
            Connections::Enable(change) => change.set_enabled(true).await,
            Connections::RotateSigningSecret(rotate) => rotate.run().await,
            Connections::EnableTokenRotation(enable) => enable.run().await,
            Connections::PauseSending(sending) => sending.set_paused(true).await,
            Connections::ResumeSending(sending) => sending.set_paused(false).await,
            Connections::Move(moving) => moving.run().await,
            Connections::Delete(delete) => delete.run().await,
        }
    }
}

impl Change {
    async fn set_enabled(&self, enabled: bool) -> anyhow::Result<()> {
        // The change is stored in Postgres even if NATS is unavailable.
        let (id, js) = (self.connection, self.nats.lazy_jetstream().await?);
        let operations = self.store.operations(&self.store.open()?)?;
        let set = operations.set_connection_enabled(&js, id, enabled).await;
        if let Err(OperationError::Directory(_)) = set {
            let state = if enabled { "enabled" } else { "disabled" };
            return Err(set.expect_err("matched")).with_context(|| {
                format!(
                    "connection {id} is {state} in Postgres, but not on every ingest: \
                     failed to reach NATS at {}; a worker repeats the change when NATS is \
                     available",
                    self.nats.nats.servers()
                )
            });
        }
        let status = output::require_found(set, LIST)?;
        Ok(output::print_line(&format!("connection {id} is {status} on every ingest"))?)
    }
}

impl RotateSigningSecret {
    async fn run(self) -> anyhow::Result<()> {
        let Change { connection: id, store, nats } = self.change;
        let operations = store.operations(&store.open_with(self.keyring.rings())?)?;
        let js = nats.jetstream().await?;
        let rotated = operations.rotate_signing_secret(&js, id, &self.secret, self.overlap).await;
        output::require_found(rotated, LIST)?;
        Ok(output::print_line(&format!(
            "signing secret of connection {id} rotated on every ingest"
        ))?)
    }
}

impl Sending {
    async fn set_paused(self, pause: bool) -> anyhow::Result<()> {
        let (id, operations) = (self.connection, self.store.operations(&self.store.open()?)?);
        let changed = output::require_found(operations.set_sending_paused(id, pause).await, LIST)?;
        output::print_paused(&format!("sending of connection {id}"), pause, changed, self.json)
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let Change { connection: id, store: settings, nats } = self.change;
        let store = settings.open()?;
        let found = find(&store, id).await?;
        if !self.yes {
            bail!(
                "would delete connection {id} (app {}, {}, bindings: {}) with its data; \
                 pass --yes to do it",
                found.app,
                installation(&found),
                found.bindings
            );
        }
        let js = nats.jetstream().await?;
        let (deleted, purged) = settings.operations(&store)?.delete_connection(&js, id).await?;
        output::print_line(&format!("bindings: {}", deleted.bindings))?;
        output::print_line(&format!("link codes: {}", deleted.link_codes))?;
        output::print_line(&format!("messages to Slack: {}", deleted.outbox))?;
        output::print_line(&format!("deliveries: {}", deleted.deliveries))?;
        output::print_line(&format!("dead letters: {}", deleted.dead_letters))?;
        output::print_line(&format!("webhooks in the stream: {purged}"))?;
        Ok(output::print_line(&format!("connection {id} deleted on every ingest"))?)
    }
}

async fn find(store: &Store, id: ConnectionId) -> anyhow::Result<ConnectionSummary> {
    match store.connection_summaries(Some(id)).await?.pop() {
        Some(found) => Ok(found),
        None => output::not_found(format!("connection {id} not found; list them with {LIST}")),
    }
}

/// Returns the ids of the enterprise and workspace of a connection.
fn installation(connection: &ConnectionSummary) -> String {
    let enterprise = connection.enterprise.as_ref().map(EnterpriseId::as_str);
    let team = connection.team.as_ref().map(TeamId::as_str);
    let preview = connection.preview_mode.then_some("preview");
    [enterprise, team, preview].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let connections = self.store.open()?.connection_summaries(None).await?;
        if connections.is_empty() {
            return output::not_found("no connections found; declare them with tidegate apply");
        }
        output::print_list(&connections, self.json, &COLUMNS, row)
    }
}

fn row(connection: &ConnectionSummary) -> Vec<String> {
    vec![
        connection.id.to_string(),
        connection.organization.to_string(),
        connection.app.to_string(),
        installation(connection),
        connection.status.to_string(),
        connection.bindings.to_string(),
        backlog::state(connection.backlog.as_ref()).into(),
        output::or_dash(Some(&connection.reason)),
    ]
}

#[derive(Serialize)]
struct Details<'a> {
    #[serde(flatten)]
    connection: &'a ConnectionSummary,
    history: &'a [HistoryEntry],
    binding_history: &'a [BindingChange],
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let connection = find(&store, self.connection).await?;
        let history = store.connection_history(self.connection).await?;
        let changes = store.binding_history(self.connection, BINDING_CHANGES_SHOWN).await?;
        if self.json {
            let (history, binding_history) = (&history[..], &changes[..]);
            return output::print_json(&Details {
                connection: &connection,
                history,
                binding_history,
            });
        }
        Ok(output::print_line(&render(&connection, &history, &changes))?)
    }
}

fn render(
    connection: &ConnectionSummary,
    history: &[HistoryEntry],
    changes: &[BindingChange],
) -> String {
    let surfaces: Vec<&str> =
        connection.settings.surfaces.iter().map(|surface| surface.as_str()).collect();
    let mut facts = vec![
        ("id", connection.id.to_string()),
        ("organization", connection.organization.to_string()),
        ("agent", output::or_dash(connection.agent.as_ref().map(|agent| agent.as_str()))),
        ("app", connection.app.to_string()),
        ("installation", installation(connection)),
        ("status", connection.status.to_string()),
        ("reason", output::or_dash(Some(&connection.reason))),
        ("bot user", output::or_dash(connection.bot_user.as_deref())),
        ("installed by", output::or_dash(connection.installed_by.as_deref())),
        ("scopes", output::or_dash(Some(&connection.scopes.join(" ")))),
        ("bot token", if connection.has_bot_token { "set" } else { "-" }.into()),
        ("surfaces", surfaces.join(",")),
        ("welcome", connection.settings.welcome.to_string()),
        ("answer bots", connection.settings.answer_bots.to_string()),
        ("broadcasts", connection.settings.broadcasts.to_string()),
        ("foreign apps", connection.settings.foreign_apps.to_string()),
        ("link by", connection.settings.link_by.to_string()),
        ("bindings", connection.bindings.to_string()),
        ("backlog", backlog::describe(connection.backlog.as_ref())),
        ("sending paused", output::or_dash(connection.sending_paused_at.as_deref())),
        ("installed at", output::or_dash(connection.installed_at.as_deref())),
        ("version", connection.version.to_string()),
        ("webhooks", format!("<base>/api/v1/webhooks/{}", connection.id)),
    ];
    for HistoryEntry { at, status, reason } in history {
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let at = output::or_dash(at.as_deref());
        facts.push(("history", output::sanitize(&format!("{at} {status}{reason}"))));
    }
    for BindingChange { at, channel, org, agent, by } in changes {
        let (at, by) = (output::or_dash(at.as_deref()), output::or_dash(Some(by)));
        let what = match org.as_ref().zip(agent.as_ref()) {
            Some((org, agent)) => format!("linked to {org}/{agent}"),
            None => "unlinked".into(),
        };
        facts.push(("binding", output::sanitize(&format!("{at} {channel} {what} by {by}"))));
    }
    output::render_facts(&facts)
}

#[cfg(test)]
mod tests;
