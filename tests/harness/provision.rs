//! Organizations, agents and connections for a [`World`], so that there is somebody to send webhooks to.
//!
//! Two ways: as an operator does it, by `tidegate apply` and `tidegate link-codes create` ([`World::declare`]); and straight into
//! the store, with whatever a test wants to be otherwise ([`World::connect_as`]).

use crate::{
    slack::tokens::Installation,
    world::{SOON, World, unique},
};
use anyhow::Context;
use shared::{
    config,
    directory::Directory,
    partition::Partition,
    secrets::Secret,
    store::{NewAgent, NewClaim, NewConnection},
    types::{AgentId, AgentMode, ConnectionId, OrgId, Platform, Settings, Status, Surface},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Connection ids of which the one with the most partitions that are missing is taken.
const IDS_TRIED: usize = 200;
/// With so many channels a connection reaches all of its partitions.
const CHANNELS_TRIED: usize = 64;

/// A Slack app as both sides know it: its connection here, its secrets there.
#[derive(Debug, Clone)]
pub struct App {
    /// The connection.
    pub connection: ConnectionId,
    /// The organization it belongs to.
    pub org: OrgId,
    /// The signing secret.
    pub secret: String,
    /// The bot token.
    pub token: String,
    /// Slack's id of the app.
    pub app: String,
    /// Slack's id of the workspace.
    pub team: String,
    /// The bot's own user.
    pub bot_user: String,
}

impl World {
    /// A Slack app in a new organization, made as an operator makes one: declared in a file that is applied.
    pub fn declare(&self) -> anyhow::Result<App> {
        self.declare_as(|file| file)
    }

    /// The same, with the file changed as a test wants it.
    pub fn declare_as(&self, change: impl FnOnce(String) -> String) -> anyhow::Result<App> {
        let n = self.slack.unique();
        let (secret, token) = (format!("{:032x}", unique()?), format!("xoxb-{:032x}", unique()?));
        for (name, text) in [
            ("signing", secret.clone()),
            ("token", token.clone()),
            ("agent", format!("agent-secret-{:032x}", unique()?)),
        ] {
            self.write(&format!("org-{n}.{name}"), &text)?;
        }
        let url = self.agent.url();
        let agent = agent_id();
        let text = format!(
            r#"
[[organization]]
id = "org-{n}"
name = "Example"

[[agent]]
organization = "org-{n}"
id = "{agent}"
name = "Sample agent"
url = "{url}"
secret = "file:org-{n}.agent"

[[connection]]
organization = "org-{n}"
app = "A{n:08}"
team = "T{n:08}"
bot_user = "UBOT{n:08}"
signing_secret = "file:org-{n}.signing"
bot_token = "file:org-{n}.token"
"#
        );
        let file = self.write(&format!("org-{n}.toml"), &change(text))?;
        let file = file.to_str().context("a path in UTF-8")?;
        let printed = self.tidegate(&["apply", "--json", "-f", file])?;
        let summary = printed.lines().last().context("a summary")?;
        let summary: serde_json::Value = serde_json::from_str(summary)?;
        let connection = summary["connections"][0].as_str().context("a connection")?.parse()?;
        let app = App {
            connection,
            org: format!("org-{n}").parse()?,
            secret,
            token,
            app: format!("A{n:08}"),
            team: format!("T{n:08}"),
            bot_user: format!("UBOT{n:08}"),
        };
        self.slack.install(&app.token, Installation::new(&app.app, &app.team, &app.bot_user));
        Ok(app)
    }

    /// A code for this app's sample agent, minted as an operator mints one.
    pub fn mint_by_verb(&self, app: &App, surface: Surface) -> anyhow::Result<String> {
        let (org, agent, id) = (app.org.as_str(), agent_id(), app.connection.to_string());
        let args = ["link-codes", "create", "--org", org, "--agent", agent.as_str()];
        let on = ["--surfaces", surface.as_str(), "--connection", &id];
        Ok(self.tidegate(&[&args[..], &on[..]].concat())?.trim().to_owned())
    }

    /// A Slack app in a new organization, its connection active and in force on every ingest.
    pub async fn connect(&self) -> anyhow::Result<App> {
        let app = self.prepare(Status::Active).await?;
        self.project(&app).await?;
        Ok(app)
    }

    /// The same, with what a test wants to be otherwise.
    pub async fn connect_as(&self, change: impl FnOnce(&mut NewConnection)) -> anyhow::Result<App> {
        let app = self.prepare_as(change).await?;
        self.project(&app).await?;
        Ok(app)
    }

    /// Connections of one organization and its sample agent, with a channel of them in each partition: a connection alone has
    /// channels in few.
    pub async fn connect_everywhere(&self) -> anyhow::Result<Vec<(App, String)>> {
        let mut everywhere: Vec<(App, String)> = Vec::new();
        let mut left: BTreeSet<Partition> = Partition::all().collect();
        while !left.is_empty() {
            let mut best = (ConnectionId::random()?, BTreeMap::new());
            for _ in 0..IDS_TRIED {
                let id = ConnectionId::random()?;
                let channels = (0..CHANNELS_TRIED).map(|n| format!("C{n:08}"));
                let placed = channels.map(|channel| (Partition::of(id, Some(&channel)), channel));
                let new: BTreeMap<_, _> = placed.filter(|(p, _)| left.contains(p)).collect();
                if new.len() > best.1.len() {
                    best = (id, new);
                }
            }
            let org = everywhere.first().map(|(first, _)| first.org.clone());
            let mut app = self
                .connect_as(|new| {
                    new.id = best.0;
                    new.agent = Some(agent_id());
                    new.org = org.clone().unwrap_or_else(|| new.org.clone());
                })
                .await?;
            app.org = org.unwrap_or(app.org);
            for (partition, channel) in best.1 {
                left.remove(&partition);
                everywhere.push((app.clone(), channel));
            }
        }
        Ok(everywhere)
    }

    /// A connection in Postgres only: its directory entry is still to be written.
    pub async fn prepare(&self, status: Status) -> anyhow::Result<App> {
        self.prepare_as(|new| new.status = status).await
    }

    /// The same, with what a test wants to be otherwise.
    pub async fn prepare_as(&self, change: impl FnOnce(&mut NewConnection)) -> anyhow::Result<App> {
        let n = self.slack.unique();
        let mut app = App {
            connection: ConnectionId::random()?,
            org: format!("org-{n}").parse()?,
            secret: format!("{:032x}", unique()?),
            token: format!("xoxb-{:032x}", unique()?),
            app: format!("A{n:08}"),
            team: format!("T{n:08}"),
            bot_user: format!("UBOT{n:08}"),
        };
        self.store.ensure_organization(&app.org, "Example").await?;
        self.store
            .put_agent(&NewAgent {
                secret: Secret::new(format!("agent-secret-{:032x}", unique()?))?,
                ..new_agent(&app.org, agent_id(), self.agent.url())?
            })
            .await?;
        let mut new = NewConnection {
            id: app.connection,
            org: app.org.clone(),
            agent: None,
            app: app.app.parse()?,
            enterprise: None,
            team: Some(app.team.parse()?),
            preview_mode: false,
            status: Status::Active,
            signing_secret: Secret::new(app.secret.clone())?,
            bot_token: Some(Secret::new(app.token.clone())?),
            bot_user: Some(app.bot_user.clone()),
            settings: Settings::default(),
        };
        change(&mut new);
        (app.connection, app.app) = (new.id, new.app.to_string());
        app.secret = new.signing_secret.expose().to_owned();
        app.token = new.bot_token.as_ref().map_or(app.token, |token| token.expose().to_owned());
        app.team = new.team.as_ref().map_or_else(|| app.team.clone(), ToString::to_string);
        if let Some(token) = &new.bot_token {
            let mut there = Installation::new(&app.app, &app.team, &app.bot_user);
            there.enterprise = new.enterprise.as_ref().map(ToString::to_string);
            there.team = new.team.as_ref().map(ToString::to_string);
            self.slack.install(token.expose(), there);
        }
        self.store.create_connection(&new).await?;
        Ok(app)
    }

    /// Writes a connection's directory entry and waits until every ingest has it.
    pub async fn project(&self, app: &App) -> anyhow::Result<()> {
        let directory = Directory::open(&config::jetstream(self.client().clone())).await?;
        let entry = self.store.directory_entry(app.connection).await?.context("the connection")?;
        let revision = directory.project(app.connection, &entry).await?;
        Ok(directory.applied_everywhere(revision, SOON).await?)
    }

    /// A code that links a conversation of this app to its sample agent.
    pub async fn mint(&self, app: &App, surfaces: &[Surface]) -> anyhow::Result<String> {
        let claim = NewClaim {
            org: app.org.clone(),
            agent: agent_id(),
            platform: Platform::Slack,
            surfaces: surfaces.to_vec(),
            connection: Some(app.connection),
            ttl: Duration::from_secs(900),
            created_by: "test".into(),
        };
        Ok(self.store.mint_claim(&claim).await?.reveal())
    }
}

/// An agent with the settings of one of which nothing is said.
pub fn new_agent(org: &OrgId, id: AgentId, url: String) -> anyhow::Result<NewAgent> {
    Ok(NewAgent {
        org: org.clone(),
        name: "Sample agent".into(),
        mode: AgentMode::Reply,
        url,
        secret: Secret::new(format!("secret of {id} of {org}"))?,
        id,
        timeout: NewAgent::TIMEOUT,
        max_concurrent: NewAgent::MAX_CONCURRENT,
        retry_for: None,
        keep_for: NewAgent::KEEP_FOR,
    })
}

/// The sample agent's id, in every organization.
pub fn agent_id() -> AgentId {
    "sample".parse().expect("a plain word is an id")
}
