//! `tidegate connections`: looked at, switched off and on, given a new secret, deleted. In force on every ingest when a
//! verb returns.

use crate::{
    directory::{announce, bury},
    output,
    settings::{NatsSettings, StoreSettings},
};
use anyhow::{Context, bail, ensure};
use serde::Serialize;
use shared::{
    config,
    secrets::Secret,
    store::{ConnectionSummary, HistoryEntry, Store, StoreError},
    types::{ConnectionId, EnterpriseId, Status, TeamId},
};
use std::time::Duration;
use token_rotation::Rotation;

mod token_rotation;

const COLUMNS: [output::Column; 7] = [
    ("id", false),
    ("organization", false),
    ("app", false),
    ("installation", false),
    ("status", false),
    ("links", true),
    ("why", false),
];

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Connections {
    /// All of them.
    List(List),
    /// All about one of them; never its secrets.
    Show(Show),
    /// Switch a connection off: its webhooks are answered 404.
    Stop(Switch),
    /// Switch a connection on.
    Start(Switch),
    /// Give a connection a new signing secret; the one before stays good for a while.
    Rotate(Rotate),
    /// A connection's bot token rotates: workers keep it fresh from now on.
    Rotation(Rotation),
    /// Pause sending: nothing goes to Slack for a connection, and what waits does not age.
    PauseSending(Sending),
    /// Resume sending.
    ResumeSending(Sending),
    /// Delete a connection and everything that is kept for it, in Postgres, the directory and the stream.
    Delete(Delete),
}

/// Settings of `tidegate connections list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate connections show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The connection's id.
    connection: ConnectionId,
    #[command(flatten)]
    store: StoreSettings,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate connections stop` and `start`.
#[derive(Debug, clap::Args)]
pub struct Switch {
    /// The connection's id.
    connection: ConnectionId,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
}

/// Settings of `tidegate connections pause-sending` and `resume-sending`.
#[derive(Debug, clap::Args)]
pub struct Sending {
    /// The connection's id.
    connection: ConnectionId,
    #[command(flatten)]
    store: StoreSettings,
    /// Print JSON.
    #[arg(long)]
    json: bool,
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

/// Settings of `tidegate connections delete`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    #[command(flatten)]
    switch: Switch,
    /// Do it; without this it is only said what would go.
    #[arg(long)]
    yes: bool,
}

impl Connections {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Connections::List(list) => list.run().await,
            Connections::Show(show) => show.run().await,
            Connections::Stop(switch) => switch.set(Status::Stopped).await,
            Connections::Start(switch) => switch.set(Status::Active).await,
            Connections::Rotation(rotation) => rotation.run().await,
            Connections::Rotate(rotate) => {
                let (id, store) = (rotate.switch.connection, rotate.switch.store.open()?);
                store.rotate_signing_secret(id, &rotate.secret, rotate.overlap).await?;
                rotate.switch.announce(&store).await?;
                Ok(output::line(&format!("{id} has a new signing secret, on every ingest"))?)
            }
            Connections::PauseSending(sending) => sending.switch(true).await,
            Connections::ResumeSending(sending) => sending.switch(false).await,
            Connections::Delete(delete) => delete.run().await,
        }
    }
}

impl Switch {
    async fn set(&self, status: Status) -> anyhow::Result<()> {
        let (id, store) = (self.connection, self.store.open()?);
        let now = find(&store, id).await?.status;
        ensure!(
            !(status == Status::Active && now == Status::Revoked),
            "{id} is revoked: its tokens are no good any more. Install the app again and give tidegate apply the new bot_token"
        );
        store.set_connection_status(id, status).await?;
        self.announce(&store).await?;
        Ok(output::line(&format!("{id} is {status}, on every ingest"))?)
    }

    async fn announce(&self, store: &Store) -> anyhow::Result<()> {
        announce(store, &self.nats.jetstream().await?, &[self.connection]).await
    }
}

impl Sending {
    async fn switch(self, pause: bool) -> anyhow::Result<()> {
        let (id, store) = (self.connection, self.store.open()?);
        let changed = match pause {
            true => store.pause_sending(id).await,
            false => store.resume_sending(id).await,
        };
        let changed = match changed {
            Err(StoreError::Missing(what)) => {
                return output::nothing_matched(format!(
                    "there is no {what}; tidegate connections list shows them"
                ));
            }
            changed => changed?,
        };
        if self.json {
            return output::json(&serde_json::json!({ "paused": pause, "changed": changed }));
        }
        let state = if pause { "paused" } else { "resumed" };
        let already = if changed { "" } else { " already" };
        Ok(output::line(&format!("{id}: sending is {state}{already}"))?)
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let Switch { connection: id, store, nats } = self.switch;
        let store = store.open()?;
        let found = find(&store, id).await?;
        if !self.yes {
            let (app, links) = (&found.app, found.bindings);
            bail!(
                "would delete {id} (app {app}, {}, links: {links}) with all that it sent. Say --yes to do it",
                installation(&found)
            );
        }
        let js = nats.jetstream().await?;
        // Nothing more is taken before anything goes.
        store.set_connection_status(id, Status::Stopped).await?;
        announce(&store, &js, &[id]).await?;
        let gone = store.delete_connection(id).await?;
        let purged = bury(&store, &js, id).await?;
        let rest = [
            ("links", gone.bindings),
            ("link codes", gone.link_codes),
            ("messages to Slack", gone.outbox),
            ("deliveries", gone.deliveries),
            ("dead letters", gone.dead_letters),
        ];
        for (what, count) in rest {
            output::line(&format!("{what}: {count}"))?;
        }
        output::line(&format!("webhooks in the stream: {purged}"))?;
        Ok(output::line(&format!("{id} is gone, on every ingest"))?)
    }
}

async fn find(store: &Store, id: ConnectionId) -> anyhow::Result<ConnectionSummary> {
    let mut found = store.connection_summaries(Some(id)).await?;
    found.pop().with_context(|| format!("there is no connection {id}"))
}

/// What it is installed in, in words.
fn installation(connection: &ConnectionSummary) -> String {
    let enterprise = connection.enterprise.as_ref().map(EnterpriseId::as_str);
    let ids = [enterprise, connection.team.as_ref().map(TeamId::as_str)];
    let mut words: Vec<&str> = ids.into_iter().flatten().collect();
    if connection.preview_mode {
        words.push("preview");
    }
    words.join(" ")
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let connections = self.store.open()?.connection_summaries(None).await?;
        if self.json {
            return connections.iter().try_for_each(output::json);
        }
        let rows: Vec<_> = connections
            .iter()
            .map(|connection| {
                vec![
                    connection.id.to_string(),
                    connection.organization.to_string(),
                    connection.app.to_string(),
                    installation(connection),
                    connection.status.to_string(),
                    connection.bindings.to_string(),
                    output::or_dash(Some(&connection.reason)),
                ]
            })
            .collect();
        Ok(output::table(&COLUMNS, &rows)?)
    }
}

#[derive(Serialize)]
struct Shown<'a> {
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
            return output::json(&Shown { connection: &connection, history: &history });
        }
        let surfaces: Vec<&str> =
            connection.settings.surfaces.iter().map(|surface| surface.as_str()).collect();
        let facts = [
            ("id", connection.id.to_string()),
            ("organization", connection.organization.to_string()),
            ("agent", output::or_dash(connection.agent.as_ref().map(|agent| agent.as_str()))),
            ("app", connection.app.to_string()),
            ("installation", installation(&connection)),
            ("status", connection.status.to_string()),
            ("why", output::or_dash(Some(&connection.reason))),
            ("bot user", output::or_dash(connection.bot_user.as_deref())),
            ("bot token", if connection.has_bot_token { "set" } else { "-" }.into()),
            ("surfaces", surfaces.join(",")),
            ("welcome", connection.settings.welcome.to_string()),
            ("answer bots", connection.settings.answer_bots.to_string()),
            ("links", connection.bindings.to_string()),
            ("sending paused", output::or_dash(connection.sending_paused_at.as_deref())),
            ("installed at", output::or_dash(connection.installed_at.as_deref())),
            ("version", connection.version.to_string()),
            ("webhooks", format!("<base>/api/v1/webhooks/{}", connection.id)),
        ];
        output::facts(&facts)?;
        for HistoryEntry { at, status, reason } in &history {
            let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            let at = output::or_dash(at.as_deref());
            output::facts(&[("was", output::plain(&format!("{at} {status}{why}")))])?;
        }
        Ok(())
    }
}
