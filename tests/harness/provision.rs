//! Organizations, agents and connections of a [`TestEnv`].
//!
//! [`TestEnv::declare`] uses `tidegate apply`, as an operator does. [`TestEnv::connect_as`] writes
//! to the store, with any settings.

use crate::{
    slack::tokens::Installation,
    test_env::{SHARED_APP, TIMEOUT, TestEnv, unique},
};
use anyhow::Context;
use shared::{
    directory::Directory,
    domain::{
        Actor, AgentId, AgentMode, ConnectionId, ConnectionSettings, ConnectionStatus, OrgId,
        Platform, Surface,
    },
    runtime::config,
    secrets::Secret,
    store::{NewAgent, NewConnection, NewLinkCode},
    stream::Partition,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Number of random connection ids of which the one that covers the most missing partitions is
/// used.
const IDS_TRIED: usize = 200;
/// Number of channels that are enough to reach all partitions of a connection.
const CHANNELS_TRIED: usize = 64;

/// A Slack app: its connection in Tidegate and its secrets in Slack.
#[derive(Debug, Clone)]
pub struct App {
    /// Id of the connection.
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

impl TestEnv {
    /// Declares a Slack app in a new organization with `tidegate apply`.
    pub fn declare(&self) -> anyhow::Result<App> {
        self.declare_as(|file| file)
    }

    /// Declares a Slack app, with a changed file.
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

    /// Creates a link code for the app's sample agent, with the command line.
    pub fn create_link_code_by_cli(&self, app: &App, surface: Surface) -> anyhow::Result<String> {
        let (org, agent, id) = (app.org.as_str(), agent_id(), app.connection.to_string());
        let args = ["link-codes", "create", "--org", org, "--agent", agent.as_str()];
        let on = ["--surfaces", surface.as_str(), "--connection", &id];
        Ok(self.tidegate(&[&args[..], &on[..]].concat())?.trim().to_owned())
    }

    /// Creates an active connection in a new organization and waits until every ingest has it.
    pub async fn connect(&self) -> anyhow::Result<App> {
        let app = self.prepare(ConnectionStatus::Active).await?;
        self.write_directory_entry(&app).await?;
        Ok(app)
    }

    /// Creates a connection with changed settings.
    pub async fn connect_as(&self, change: impl FnOnce(&mut NewConnection)) -> anyhow::Result<App> {
        let app = self.prepare_as(change).await?;
        self.write_directory_entry(&app).await?;
        Ok(app)
    }

    /// Creates a connection of the app, workspace and Grid organization that the fixtures name.
    pub async fn connect_for_fixtures(&self) -> anyhow::Result<App> {
        self.connect_as(of_fixtures).await
    }

    /// Creates connections of one organization with its sample agent. Returns a channel in each
    /// partition, with its connection: one connection has channels in few partitions only.
    pub async fn connect_all_partitions(&self) -> anyhow::Result<Vec<(App, String)>> {
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

    /// Creates a connection in Postgres, without a directory entry.
    pub async fn prepare(&self, status: ConnectionStatus) -> anyhow::Result<App> {
        self.prepare_as(|new| new.status = status).await
    }

    /// Creates a connection in Postgres with changed settings.
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
            status: ConnectionStatus::Active,
            signing_secret: Secret::new(app.secret.clone())?,
            bot_token: Some(Secret::new(app.token.clone())?),
            bot_user: Some(app.bot_user.clone()),
            settings: ConnectionSettings::default(),
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

    /// Writes the directory entry of a connection and waits until every ingest has it.
    pub async fn write_directory_entry(&self, app: &App) -> anyhow::Result<()> {
        let directory = Directory::open(&config::jetstream(self.client().clone())).await?;
        let entry = self.store.directory_entry(app.connection).await?.context("the connection")?;
        let revision = directory.project(app.connection, &entry).await?;
        Ok(directory.wait_until_applied(revision, TIMEOUT).await?)
    }

    /// Creates a link code for the app's sample agent.
    pub async fn create_link_code(
        &self,
        app: &App,
        surfaces: &[Surface],
    ) -> anyhow::Result<String> {
        let claim = NewLinkCode {
            org: app.org.clone(),
            agent: agent_id(),
            platform: Platform::Slack,
            surfaces: surfaces.to_vec(),
            connection: Some(app.connection),
            ttl: Duration::from_secs(900),
        };
        Ok(self.store.create_link_code(&actor(), &claim).await?.reveal())
    }
}

/// Limit of one person's messages to an agent. Practically unlimited, because the messages of tests
/// come from few people.
const UNLIMITED: u32 = 1_000_000;

/// Returns the author of changes that tests make in the store.
pub fn actor() -> Actor {
    Actor::Operator("test".parse().expect("a name"))
}

/// Returns an agent with default settings, except for an unlimited `max_per_user`.
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
        max_per_user: UNLIMITED,
        retry_for: None,
        keep_for: NewAgent::KEEP_FOR,
        signs_as_slack: false,
        headers: Default::default(),
        policies: Default::default(),
    })
}

/// Returns the id of the sample agent in every organization.
pub fn agent_id() -> AgentId {
    "sample".parse().expect("a valid agent id")
}

/// Sets the app, workspace and Grid organization of a connection to those that the fixtures name.
pub fn of_fixtures(new: &mut NewConnection) {
    new.app = SHARED_APP.parse().expect("an id");
    (new.team, new.enterprise) = ("T0001TEAM".parse().ok(), "E0001ORG".parse().ok());
}
