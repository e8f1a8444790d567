//! `tidegate connections`: lists, disables, enables and deletes connections, and rotates secrets.
//!
//! A command returns when every ingest has applied its change.

mod token_rotation;

use crate::{
    directory, output,
    settings::{NatsSettings, StoreSettings},
};
use anyhow::{bail, ensure};
use serde::Serialize;
use shared::{
    config,
    secrets::Secret,
    store::{ConnectionSummary, HistoryEntry, Store},
    types::{ConnectionId, EnterpriseId, Status, TeamId},
};
use std::time::Duration;
use token_rotation::EnableTokenRotation;

const LIST: &str = "tidegate connections list";

const COLUMNS: [output::Column; 7] = [
    ("id", false),
    ("organization", false),
    ("app", false),
    ("installation", false),
    ("status", false),
    ("bindings", true),
    ("reason", false),
];

/// Commands of `tidegate connections`.
#[derive(Debug, clap::Subcommand)]
pub enum Connections {
    /// List connections.
    List(List),
    /// Show a connection, without its secrets.
    Show(Show),
    /// Disable a connection: ingest answers its webhooks with 404.
    Disable(Change),
    /// Enable a connection.
    Enable(Change),
    /// Replace the signing secret of a connection. The previous one stays valid for a while.
    RotateSigningSecret(RotateSigningSecret),
    /// Let workers refresh the bot token of a connection before it expires.
    EnableTokenRotation(EnableTokenRotation),
    /// Pause calls to Slack for a connection. Messages wait and do not expire.
    PauseSending(Sending),
    /// Resume calls to Slack for a connection.
    ResumeSending(Sending),
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
    /// New signing secret, as file:<path>, or as text that other users of this machine can see.
    #[arg(
        long,
        env = "TIDEGATE_NEW_SIGNING_SECRET",
        value_parser = config::secret,
        hide_env_values = true
    )]
    secret: Secret,
    /// Time for which the previous secret stays valid.
    #[arg(long, default_value = "24h", value_parser = config::duration)]
    overlap: Duration,
    #[command(flatten)]
    change: Change,
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
            Connections::Disable(change) => change.set(Status::Stopped).await,
            Connections::Enable(change) => change.set(Status::Active).await,
            Connections::RotateSigningSecret(rotate) => rotate.run().await,
            Connections::EnableTokenRotation(enable) => enable.run().await,
            Connections::PauseSending(sending) => sending.set_paused(true).await,
            Connections::ResumeSending(sending) => sending.set_paused(false).await,
            Connections::Delete(delete) => delete.run().await,
        }
    }
}

impl Change {
    async fn set(&self, status: Status) -> anyhow::Result<()> {
        let (id, store) = (self.connection, self.store.open()?);
        let current = find(&store, id).await?.status;
        ensure!(
            !(status == Status::Active && current == Status::Revoked),
            "failed to enable connection {id}: its tokens are revoked; \
             install the app again and declare its new bot_token with tidegate apply"
        );
        store.set_connection_status(id, status).await?;
        self.publish(&store).await?;
        Ok(output::line(&format!("connection {id} is {status} on every ingest"))?)
    }

    async fn publish(&self, store: &Store) -> anyhow::Result<()> {
        directory::publish(store, &self.nats.jetstream().await?, &[self.connection]).await
    }
}

impl RotateSigningSecret {
    async fn run(self) -> anyhow::Result<()> {
        let (id, store) = (self.change.connection, self.change.store.open()?);
        let rotated = store.rotate_signing_secret(id, &self.secret, self.overlap).await;
        output::found(rotated, LIST)?;
        self.change.publish(&store).await?;
        Ok(output::line(&format!("signing secret of connection {id} rotated on every ingest"))?)
    }
}

impl Sending {
    async fn set_paused(self, pause: bool) -> anyhow::Result<()> {
        let (id, store) = (self.connection, self.store.open()?);
        let changed =
            if pause { store.pause_sending(id).await } else { store.resume_sending(id).await };
        let changed = output::found(changed, LIST)?;
        output::paused(&format!("sending of connection {id}"), pause, changed, self.json)
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let Change { connection: id, store, nats } = self.change;
        let store = store.open()?;
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
        // Ingests stop to accept webhooks before anything is deleted.
        store.set_connection_status(id, Status::Stopped).await?;
        directory::publish(&store, &js, &[id]).await?;
        let deleted = store.delete_connection(id).await?;
        let purged = directory::publish_deletion(&store, &js, id).await?;
        output::line(&format!("bindings: {}", deleted.bindings))?;
        output::line(&format!("link codes: {}", deleted.link_codes))?;
        output::line(&format!("messages to Slack: {}", deleted.outbox))?;
        output::line(&format!("deliveries: {}", deleted.deliveries))?;
        output::line(&format!("dead letters: {}", deleted.dead_letters))?;
        output::line(&format!("webhooks in the stream: {purged}"))?;
        Ok(output::line(&format!("connection {id} deleted on every ingest"))?)
    }
}

async fn find(store: &Store, id: ConnectionId) -> anyhow::Result<ConnectionSummary> {
    match store.connection_summaries(Some(id)).await?.pop() {
        Some(found) => Ok(found),
        None => output::not_found(format!("connection {id} not found; list them with {LIST}")),
    }
}

/// Returns the ids that the app is installed in.
fn installation(connection: &ConnectionSummary) -> String {
    let enterprise = connection.enterprise.as_ref().map(EnterpriseId::as_str);
    let team = connection.team.as_ref().map(TeamId::as_str);
    let preview = connection.preview_mode.then_some("preview");
    [enterprise, team, preview].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let connections = self.store.open()?.connection_summaries(None).await?;
        output::list(&connections, self.json, &COLUMNS, row)
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
        output::or_dash(Some(&connection.reason)),
    ]
}

#[derive(Serialize)]
struct Details<'a> {
    #[serde(flatten)]
    connection: &'a ConnectionSummary,
    history: &'a [HistoryEntry],
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let connection = find(&store, self.connection).await?;
        let history = store.connection_history(self.connection).await?;
        if self.json {
            return output::json(&Details { connection: &connection, history: &history });
        }
        Ok(output::line(&render(&connection, &history))?)
    }
}

fn render(connection: &ConnectionSummary, history: &[HistoryEntry]) -> String {
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
        ("bot token", if connection.has_bot_token { "set" } else { "-" }.into()),
        ("surfaces", surfaces.join(",")),
        ("welcome", connection.settings.welcome.to_string()),
        ("answer bots", connection.settings.answer_bots.to_string()),
        ("bindings", connection.bindings.to_string()),
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
    output::facts(&facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::types::Settings;

    #[test]
    fn renders_connections() {
        let connection = |status, preview_mode: bool| ConnectionSummary {
            id: format!("{:032x}", 7).parse().expect("an id"),
            organization: "acme".parse().expect("an id"),
            agent: Some("helper".parse().expect("an id")),
            app: "A0123456".parse().expect("an id"),
            enterprise: None,
            team: (!preview_mode).then(|| "T0123456".parse().expect("an id")),
            preview_mode,
            status,
            reason: if status == Status::Error { "invalid_auth" } else { "" }.into(),
            bot_user: Some("U0123456".into()),
            has_bot_token: true,
            settings: Settings::default(),
            bindings: 4,
            sending_paused_at: None,
            installed_at: Some("2026-01-31T12:00:00Z".into()),
            updated_at: None,
            version: 9,
        };
        let failed = connection(Status::Error, false);
        let history = [HistoryEntry {
            at: Some("2026-01-31T12:00:00Z".into()),
            status: Status::Error,
            reason: "invalid_auth".into(),
        }];
        insta::assert_snapshot!(render(&failed, &history), @r"
        id              00000000000000000000000000000007
        organization    acme
        agent           helper
        app             A0123456
        installation    T0123456
        status          error
        reason          invalid_auth
        bot user        U0123456
        bot token       set
        surfaces        dm,channel
        welcome         true
        answer bots     false
        bindings        4
        sending paused  -
        installed at    2026-01-31T12:00:00Z
        version         9
        webhooks        <base>/api/v1/webhooks/00000000000000000000000000000007
        history         2026-01-31T12:00:00Z error: invalid_auth
        ");
        let connections = [failed, connection(Status::Active, true)];
        insta::assert_snapshot!(output::table(&COLUMNS, &connections, row), @r"
        id                                organization  app       installation  status  bindings  reason
        00000000000000000000000000000007  acme          A0123456  T0123456      error          4  invalid_auth
        00000000000000000000000000000007  acme          A0123456  preview       active         4  -
        ");
    }
}
