//! A whole Tidegate: NATS, Postgres, ingests, workers, a fake Slack, an agent; started, provisioned, watched.
//!
//! In: how many of each. Out: a [`World`], in which a test states facts. Every world has a NATS and a database of its
//! own, so tests run at once and may kill what they like.

mod look;
mod operator;
mod pods;

use crate::{
    agent::Agent,
    binaries::Binaries,
    guard::RunDir,
    keys::User,
    nats::Nats,
    netns::Namespace,
    postgres::Postgres,
    proxy::Proxy,
    slack::{Answer, Slack, webhook::Webhook},
    stream::StreamIndex,
    until::try_until,
};
use anyhow::{Context, ensure};
use shared::{
    config,
    secrets::KeyRing,
    store::{Plans, Rings, Store},
};
use sqlx::PgPool;
use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};
use tokio::sync::OnceCell;

pub use crate::provision::{App, agent_id, new_agent};
pub use crate::stream::Unfinished;
pub use look::Handled;
pub use pods::{Ingest, Worker};

/// Longest any part may take to come up, on a machine that builds at the same time.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longest anything may take that should be quick.
pub const SOON: Duration = Duration::from_secs(30);
/// A lease this long keeps tests of failover short.
pub const LEASE_TTL: Duration = Duration::from_secs(3);

/// A sort of process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An ingest: it knows no Postgres, and no key to tokens.
    Ingest,
    /// A worker.
    Worker,
    /// `tidegate`.
    Operator,
    /// `tidegate migrate`: it owns the schema.
    Owner,
}

/// Links that processes started from now on go through, to NATS or to Postgres.
#[derive(Debug, Default)]
struct Links(Vec<(Role, Server, String)>);

/// What a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// NATS.
    Nats,
    /// Postgres.
    Postgres,
}

/// How many of each.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Ingest processes.
    pub ingests: usize,
    /// Worker processes.
    pub workers: usize,
    /// A Postgres of its own, to be killed; else a database in the one that all tests share.
    pub own_postgres: bool,
}

/// One of each.
pub const SMALL: Size = Size { ingests: 1, workers: 1, own_postgres: false };
/// Two of each.
pub const PAIR: Size = Size { ingests: 2, workers: 2, own_postgres: false };

/// A Tidegate.
pub struct World {
    /// The fake Slack.
    pub slack: Slack,
    /// An agent, to which connections may be linked.
    pub agent: Agent,
    /// NATS.
    pub nats: Nats,
    /// The other servers of its cluster, if it is one.
    pub replicas: Vec<Nats>,
    /// Postgres.
    pub postgres: Arc<Postgres>,
    /// The database, for questions no product code asks.
    pub pool: PgPool,
    /// The database, as the product sees it.
    pub store: Store,
    /// The shared app's signing secret.
    pub shared_secret: String,
    /// Ingests.
    pub ingests: Vec<Ingest>,
    /// Workers.
    pub workers: Vec<Worker>,
    client: async_nats::Client,
    pub(crate) index: StreamIndex,
    settings: Vec<(String, String)>,
    links: Links,
    within: Option<(PathBuf, Vec<String>)>,
    database: String,
    size: Size,
    // Last: the guardian waits until all of the above is gone.
    run: Arc<RunDir>,
}

static SHARED_POSTGRES: OnceCell<(Arc<RunDir>, Arc<Postgres>)> = OnceCell::const_new();

impl World {
    /// Starts everything and waits until it works.
    pub async fn start(size: Size) -> anyhow::Result<Self> {
        let mut world = Self::without_processes(size).await?;
        world.start_processes().await?;
        Ok(world)
    }

    /// As many ingests and workers as the world's size says.
    pub async fn start_processes(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.size.ingests {
            self.start_ingest().await?;
        }
        for _ in 0..self.size.workers {
            self.start_worker().await?;
        }
        self.settled().await
    }

    /// The servers, migrated; no ingest or worker yet.
    pub async fn without_processes(size: Size) -> anyhow::Result<Self> {
        Self::servers(size, 1).await
    }

    /// The same, with so many nats-servers in a cluster, and every webhook on each of them.
    pub async fn on_cluster(size: Size, servers: usize) -> anyhow::Result<Self> {
        let mut world = Self::servers(size, servers).await?;
        world.start_processes().await?;
        Ok(world)
    }

    /// One of each server, NATS synced seldom, as the benchmark wants it; no ingest or worker yet.
    pub async fn synced_seldom(size: Size) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("world")?);
        let nats = Nats::start_synced_seldom(&run, "nats").await?;
        Self::over(run, vec![nats], size).await
    }

    async fn servers(size: Size, servers: usize) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("world")?);
        let servers = match servers {
            1 => vec![Nats::start(&run, "nats").await?],
            several => Nats::cluster(&run, several).await?,
        };
        Self::over(run, servers, size).await
    }

    async fn over(run: Arc<RunDir>, mut servers: Vec<Nats>, size: Size) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // again for every test
        tokio::task::spawn_blocking(Binaries::get).await??; // built while nothing waits for it
        let (replicas, nats) = (servers.len(), servers.remove(0));
        let postgres = if size.own_postgres {
            Arc::new(Postgres::start(&run, "postgres").await?)
        } else {
            let start = async {
                let run = Arc::new(RunDir::new("postgres")?);
                let postgres = Arc::new(Postgres::start(&run, "postgres").await?);
                anyhow::Ok((run, postgres))
            };
            Arc::clone(&SHARED_POSTGRES.get_or_try_init(|| start).await?.1)
        };
        let database = format!("world_{:032x}", unique()?);
        let superuser = postgres.create_database(&database).await?;
        postgres.grant_roles(&database).await?;
        let (slack, agent) = (Slack::start().await?, Agent::start().await?);
        let (signing, tokens) = (KeyRing::generate("k1")?, KeyRing::generate("k1")?);
        let shared_secret = format!("{:032x}", unique()?);
        let settings = [
            ("TIDEGATE_SIGNING_SECRET_KEYRING", signing.clone()),
            ("TIDEGATE_TOKEN_KEYS", tokens.clone()),
            ("TIDEGATE_SLACK_API", slack.api()),
            ("TIDEGATE_RESPONSE_URL_ORIGINS", slack.response_origin()),
            ("TIDEGATE_SHARED_SIGNING_SECRETS", shared_secret.clone()),
            ("TIDEGATE_LEASE_TTL", format!("{}ms", LEASE_TTL.as_millis())),
            ("TIDEGATE_CHANNEL_PACE", "0s".into()),
            ("TIDEGATE_AGENT_NETWORKS", "127.0.0.0/8".into()),
            ("TIDEGATE_DRAIN_DELAY", "200ms".into()),
            ("TIDEGATE_GRACE", "8s".into()),
            ("TIDEGATE_LOG", "info".into()),
        ];
        let settings: Vec<_> =
            settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let rings = Rings { signing: signing.parse()?, tokens: tokens.parse()? };
        let url = postgres.url_as("tidegate_tests", &database);
        let store = Store::new(&config::Postgres { url, connections: 4 }, rings, Plans::Once)?;
        let pool = PgPool::connect(&superuser).await?;
        let urls: Vec<_> = servers.iter().map(Nats::url).chain([nats.url()]).collect();
        let client = nats.keys().options(User::Tests)?.connect(urls).await?;
        let (ingests, workers) = (Vec::new(), Vec::new());
        let world = Self {
            slack,
            agent,
            nats,
            replicas: servers,
            postgres,
            pool,
            store,
            shared_secret,
            ingests,
            workers,
            client,
            index: StreamIndex::default(),
            settings,
            links: Links::default(),
            within: None,
            database,
            size,
            run,
        };
        world.migrate(replicas)?;
        world.postgres.grant_roles(&world.database).await?;
        Ok(world)
    }

    fn migrate(&self, replicas: usize) -> anyhow::Result<()> {
        let migrate = Command::new(&Binaries::get()?.tidegate)
            .args(["migrate", "--replicas", &replicas.to_string()])
            .envs(self.settings_of(Role::Owner))
            .output()?;
        let said = String::from_utf8_lossy(&migrate.stderr);
        ensure!(migrate.status.success(), "tidegate migrate: {said}");
        Ok(())
    }

    /// What a process is told: where its servers are, and who it is to them. Ingest is not even told where Postgres is.
    fn settings_of(&self, role: Role) -> Vec<(String, String)> {
        let (user, postgres) = match role {
            Role::Ingest => (User::Ingest, None),
            Role::Worker => (User::Worker, Some("tidegate_worker")),
            Role::Operator => (User::Operator, Some("tidegate_operator")),
            Role::Owner => (User::Operator, Some("tidegate_owner")),
        };
        let servers = std::iter::once(&self.nats).chain(&self.replicas);
        let nats = match self.link(role, Server::Nats) {
            Some(address) => format!("nats://{address}"),
            None => servers.map(Nats::url).collect::<Vec<_>>().join(","),
        };
        let seed = self.nats.keys().file(user).display().to_string();
        let mut ours = vec![("TIDEGATE_NATS_URL", nats), ("TIDEGATE_NATS_NKEY_FILE", seed)];
        if let Some(name) = postgres {
            let mut url = self.postgres.url_as(name, &self.database);
            if let Some(address) = self.link(role, Server::Postgres) {
                url = url.replace(&format!("127.0.0.1:{}", self.postgres.port()), address);
            }
            ours.push(("TIDEGATE_POSTGRES_URL", url));
        }
        let mut settings = self.settings.clone();
        settings.retain(|(name, _)| role != Role::Ingest || !name.contains("TOKEN"));
        // What a test set itself stays.
        let ours = ours.into_iter().map(|(name, value)| (name.to_owned(), value));
        let ours: Vec<_> =
            ours.filter(|(name, _)| !settings.iter().any(|(there, _)| there == name)).collect();
        settings.extend(ours);
        settings
    }

    fn link(&self, role: Role, server: Server) -> Option<&str> {
        let links = self.links.0.iter().rev();
        links.filter(|link| (link.0, link.1) == (role, server)).map(|link| link.2.as_str()).next()
    }

    /// Processes of this role that are started from now on reach this server by the link that comes back.
    pub async fn through_link(&mut self, role: Role, server: Server) -> anyhow::Result<Proxy> {
        self.through_link_at("127.0.0.1", role, server).await
    }

    /// The same, by a link that begins at another address of this machine.
    pub async fn through_link_at(
        &mut self,
        address: &str,
        role: Role,
        server: Server,
    ) -> anyhow::Result<Proxy> {
        let target = match server {
            Server::Nats => self.nats.port(),
            Server::Postgres => self.postgres.port(),
        };
        let link = Proxy::at(address, target).await?;
        self.links.0.push((role, server, format!("{address}:{}", link.port())));
        Ok(link)
    }

    /// Processes that are started from now on reach their servers without a link again.
    pub fn without_links(&mut self) {
        self.links.0.clear();
    }

    /// Processes that are started from now on run in this namespace, or in ours again.
    pub fn within(&mut self, namespace: Option<&Namespace>) {
        self.within = namespace.map(Namespace::prefix);
    }

    /// Waits until every partition is owned, evenly, by the workers that run.
    pub async fn settled(&self) -> anyhow::Result<()> {
        let running = self.workers.iter().filter(|worker| worker.process.is_running()).count();
        if running == 0 {
            return Ok(());
        }
        let share = 64_usize.div_ceil(running) as i64;
        let settled = async || {
            let shares: Vec<i64> = sqlx::query_scalar(
                "select count(*) from partition_leases join partition_cursors using (partition)
                  where lease_until > now() group by owner order by 1",
            )
            .fetch_all(&self.pool)
            .await
            .ok()?;
            let all = shares.iter().sum::<i64>() == 64 && shares.len() == running;
            (all && shares.iter().all(|held| *held <= share)).then_some(())
        };
        let settled = try_until("every partition is owned, evenly", READY_WITHIN, settled).await;
        settled.with_context(|| self.logs())
    }

    /// Sends a webhook to the shared app's route, at some ingest.
    pub async fn send_shared(&self, webhook: &Webhook) -> anyhow::Result<Answer> {
        let ingest = &self.ingests[self.slack.unique() as usize % self.ingests.len()];
        self.slack.send(&ingest.path("/slack/events"), &self.shared_secret, webhook).await
    }

    /// Changes a setting for the processes that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(there, _)| there != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Sends a webhook to an app's own route, at some ingest.
    pub async fn send(&self, app: &App, webhook: &Webhook) -> anyhow::Result<Answer> {
        let ingest = &self.ingests[self.slack.unique() as usize % self.ingests.len()];
        self.slack.send(&ingest.url(app), &app.secret, webhook).await
    }

    /// What a setting says for the processes that are started from now on.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(there, _)| there == name).map(|(_, value)| value.as_str())
    }

    /// A new folder in this world's own.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.run.path().join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Reads a file of this world's own folder.
    pub fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = self.run.path().join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Writes a file into this world's own folder.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.run.path().join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// NATS, for what a test wants to do with it.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// How many of each there are.
    pub fn size(&self) -> Size {
        self.size
    }
}

pub(crate) fn unique() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("randomness")?;
    Ok(u128::from_be_bytes(bytes))
}
