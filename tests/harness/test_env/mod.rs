//! Test environments: NATS, Postgres, ingests, workers, a simulated Slack and a sample agent.
//!
//! Every [`TestEnv`] has its own nats-server, database and processes, so tests can run concurrently
//! and kill processes.

mod queries;
mod operator;
mod processes;

use crate::{
    agent::Agent,
    binaries::Binaries,
    eventually::try_eventually,
    fake_time,
    keys::User,
    nats::Nats,
    netns::Namespace,
    postgres::Postgres,
    proxy::Proxy,
    run_dir::RunDir,
    slack::{Answer, Slack, webhook::Webhook},
    stream::StreamIndex,
};
use anyhow::{Context, ensure};
use shared::{
    runtime::config,
    secrets::KeyRing,
    store::{KeyRings, PlanMode, Store},
};
use sqlx::PgPool;
use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};
use tokio::sync::OnceCell;

pub use crate::provision::{App, actor, agent_id, new_agent, of_fixtures};
pub use crate::stream::Unfinished;
pub use processes::{Control, Ingest, Worker};
pub use queries::WebhookOutcome;

/// Maximum time for a process to start, on a machine that also runs builds.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Maximum time of operations that usually take less than a second.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Id of the shared app, which the fixtures name.
pub const SHARED_APP: &str = "A0001APP";
/// Lease TTL of workers.
pub const LEASE_TTL: Duration = Duration::from_secs(3);

/// Kind of process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An ingest, without Postgres and without token keys.
    Ingest,
    /// A worker.
    Worker,
    /// `tidegate`.
    Operator,
    /// `tidegate migrate`, which owns the schema.
    Owner,
    /// A control API.
    Control,
}

/// Links to NATS or Postgres of processes that are started from now on.
#[derive(Debug, Default)]
struct Links(Vec<(Role, Server, String)>);

/// Target of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// NATS.
    Nats,
    /// Postgres.
    Postgres,
}

/// Number of processes.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Ingest processes.
    pub ingests: usize,
    /// Worker processes.
    pub workers: usize,
    /// True for a separate Postgres, which may be killed; false for a database in the Postgres that
    /// the tests of this process share.
    pub own_postgres: bool,
}

/// One ingest and one worker.
pub const SMALL: Size = Size { ingests: 1, workers: 1, own_postgres: false };
/// Two ingests and two workers.
pub const PAIR: Size = Size { ingests: 2, workers: 2, own_postgres: false };

/// Settings of ingests with quotas that no load reaches, because most tests and benchmarks send all
/// webhooks for one tenant.
pub const UNLIMITED_QUOTAS: [(&str, &str); 4] = [
    ("TIDEGATE_QUOTA_WEBHOOKS_PER_SECOND", "1000000"),
    ("TIDEGATE_QUOTA_MAX_WEBHOOK_BURST", "1000000"),
    ("TIDEGATE_QUOTA_BYTES_PER_SECOND", "900MiB"),
    ("TIDEGATE_QUOTA_MAX_BYTE_BURST", "900MiB"),
];

/// A test environment.
pub struct TestEnv {
    /// Simulated Slack.
    pub slack: Slack,
    /// Sample agent.
    pub agent: Agent,
    /// NATS.
    pub nats: Nats,
    /// Other servers of the cluster, if there is one.
    pub replicas: Vec<Nats>,
    /// Postgres.
    pub postgres: Arc<Postgres>,
    /// Connections to the database as superuser, for queries of the tests.
    pub pool: PgPool,
    /// The product's interface to the database.
    pub store: Store,
    /// Signing secret of the shared app.
    pub shared_secret: String,
    /// Ingests.
    pub ingests: Vec<Ingest>,
    /// Workers.
    pub workers: Vec<Worker>,
    /// Control APIs.
    pub controls: Vec<Control>,
    client: async_nats::Client,
    pub(crate) index: StreamIndex,
    settings: Vec<(String, String)>,
    links: Links,
    namespace_prefix: Option<(PathBuf, Vec<String>)>,
    database: String,
    size: Size,
    // Last field, because the reaper waits until all fields above are dropped.
    pub(crate) run: Arc<RunDir>,
}

static SHARED_POSTGRES: OnceCell<(Arc<RunDir>, Arc<Postgres>)> = OnceCell::const_new();

impl TestEnv {
    /// Starts servers and processes, and waits until the processes are ready and own all
    /// partitions.
    pub async fn start(size: Size) -> anyhow::Result<Self> {
        let mut env = Self::without_processes(size).await?;
        env.start_processes().await?;
        Ok(env)
    }

    /// Starts the ingests and workers.
    pub async fn start_processes(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.size.ingests {
            self.start_ingest().await?;
        }
        for _ in 0..self.size.workers {
            self.start_worker().await?;
        }
        self.wait_until_balanced().await
    }

    /// Starts the servers and migrates them, without ingests and workers.
    pub async fn without_processes(size: Size) -> anyhow::Result<Self> {
        Self::servers(size, 1).await
    }

    /// Starts an environment with a cluster of nats-servers. The stream has a replica on each.
    pub async fn on_cluster(size: Size, servers: usize) -> anyhow::Result<Self> {
        let mut env = Self::servers(size, servers).await?;
        env.start_processes().await?;
        Ok(env)
    }

    /// Starts one server of each kind without ingests and workers. NATS syncs at its default
    /// interval, for benchmarks.
    pub async fn with_rare_sync(size: Size) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("env")?);
        let nats = Nats::start_synced_seldom(&run, "nats").await?;
        Self::start_on(run, vec![nats], size).await
    }

    async fn servers(size: Size, servers: usize) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("env")?);
        let servers = match servers {
            1 => vec![Nats::start(&run, "nats").await?],
            several => Nats::cluster(&run, several).await?,
        };
        Self::start_on(run, servers, size).await
    }

    async fn start_on(
        run: Arc<RunDir>,
        mut servers: Vec<Nats>,
        size: Size,
    ) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // fails after the first call
        tokio::task::spawn_blocking(Binaries::get).await??; // before timeouts start
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
        let database = format!("env_{:032x}", unique()?);
        let superuser = postgres.create_database(&database).await?;
        postgres.grant_roles(&database).await?;
        let (slack, agent) = (Slack::start().await?, Agent::start().await?);
        let (signing, tokens) = (KeyRing::generate("k1")?, KeyRing::generate("k1")?);
        let shared_secret = format!("{:032x}", unique()?);
        let settings = [
            ("TIDEGATE_SIGNING_SECRET_KEYRING", signing.clone()),
            ("TIDEGATE_TOKEN_KEYRING", tokens.clone()),
            ("TIDEGATE_SLACK_API_URL", slack.api()),
            ("TIDEGATE_RESPONSE_URL_ORIGINS", slack.response_origin()),
            ("TIDEGATE_SHARED_SIGNING_SECRETS", format!("{SHARED_APP}:{shared_secret}")),
            ("TIDEGATE_LEASE_TTL", format!("{}ms", LEASE_TTL.as_millis())),
            ("TIDEGATE_SLACK_CHANNEL_MIN_INTERVAL", "0s".into()),
            ("TIDEGATE_AGENT_ALLOWED_NETWORKS", "127.0.0.0/8".into()),
            ("TIDEGATE_HANDLER_MAX_PER_USER", "1000000".into()),
            ("TIDEGATE_DRAIN_PERIOD", "200ms".into()),
            ("TIDEGATE_SHUTDOWN_GRACE_PERIOD", "8s".into()),
            ("TIDEGATE_LOG_FILTER", "info".into()),
        ];
        let quotas = UNLIMITED_QUOTAS.map(|(name, value)| (name, value.to_owned()));
        let settings: Vec<_> = settings
            .into_iter()
            .chain(quotas)
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let rings = KeyRings { signing: signing.parse()?, tokens: tokens.parse()? };
        let url = postgres.url_as("tidegate_tests", &database);
        let store = Store::new(
            &config::PostgresConfig { url, ca_file: None, max_connections: 4 },
            rings,
            PlanMode::Once,
        )?;
        let pool = PgPool::connect(&superuser).await?;
        let urls: Vec<_> = servers.iter().map(Nats::url).chain([nats.url()]).collect();
        let client = nats.keys().options(User::Tests)?.connect(urls).await?;
        let (ingests, workers, controls) = (Vec::new(), Vec::new(), Vec::new());
        let env = Self {
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
            controls,
            client,
            index: StreamIndex::default(),
            settings,
            links: Links::default(),
            namespace_prefix: None,
            database,
            size,
            run,
        };
        env.migrate(replicas)?;
        env.postgres.grant_roles(&env.database).await?;
        Ok(env)
    }

    fn migrate(&self, replicas: usize) -> anyhow::Result<()> {
        let migrate = Command::new(&Binaries::get()?.tidegate)
            .args(["migrate", "--replicas", &replicas.to_string()])
            .envs(self.settings_of(Role::Owner))
            .output()?;
        let errors = String::from_utf8_lossy(&migrate.stderr);
        ensure!(migrate.status.success(), "tidegate migrate failed: {errors}");
        Ok(())
    }

    /// Returns the settings of a process, including its servers and credentials. Ingest gets no
    /// Postgres URL and no token keyring.
    fn settings_of(&self, role: Role) -> Vec<(String, String)> {
        let (user, postgres) = match role {
            Role::Ingest => (User::Ingest, None),
            Role::Worker => (User::Worker, Some("tidegate_worker")),
            Role::Operator => (User::Operator, Some("tidegate_operator")),
            Role::Owner => (User::Operator, Some("tidegate_owner")),
            Role::Control => (User::Control, Some("tidegate_control")),
        };
        let servers = std::iter::once(&self.nats).chain(&self.replicas);
        let nats = match self.link(role, Server::Nats) {
            Some(address) => format!("nats://{address}"),
            None => servers.map(Nats::url).collect::<Vec<_>>().join(","),
        };
        let seed = self.nats.keys().file(user).display().to_string();
        let mut own = vec![("TIDEGATE_NATS_URL", nats), ("TIDEGATE_NATS_NKEY_FILE", seed)];
        if let Some(name) = postgres {
            let mut url = self.postgres.url_as(name, &self.database);
            if let Some(address) = self.link(role, Server::Postgres) {
                url = url.replace(&format!("127.0.0.1:{}", self.postgres.port()), address);
            }
            own.push(("TIDEGATE_POSTGRES_URL", url));
        }
        let mut settings = self.settings.clone();
        settings.retain(|(name, _)| match role {
            Role::Ingest => !name.contains("TOKEN"),
            Role::Worker | Role::Operator | Role::Owner | Role::Control => true,
        });
        // Settings of a test take precedence.
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        let own: Vec<_> =
            own.filter(|(name, _)| !settings.iter().any(|(there, _)| there == name)).collect();
        settings.extend(own);
        settings
    }

    fn link(&self, role: Role, server: Server) -> Option<&str> {
        let links = self.links.0.iter().rev();
        links.filter(|link| (link.0, link.1) == (role, server)).map(|link| link.2.as_str()).next()
    }

    /// Opens a link to a server, for processes of a role that are started from now on.
    pub async fn link_through_proxy(
        &mut self,
        role: Role,
        server: Server,
    ) -> anyhow::Result<Proxy> {
        self.link_through_proxy_at("127.0.0.1", role, server).await
    }

    /// Opens a link as [`TestEnv::link_through_proxy`], at another address of this machine.
    pub async fn link_through_proxy_at(
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

    /// Makes processes that are started from now on connect directly.
    pub fn remove_links(&mut self) {
        self.links.0.clear();
    }

    /// Runs workers that are started from now on in a network namespace, or in none.
    pub fn enter_namespace(&mut self, namespace: Option<&Namespace>) {
        self.namespace_prefix = namespace.map(Namespace::prefix);
    }

    /// Waits until the running workers own all partitions, in equal shares.
    pub async fn wait_until_balanced(&self) -> anyhow::Result<()> {
        let running = self.workers.iter().filter(|worker| worker.process.is_running()).count();
        if running == 0 {
            return Ok(());
        }
        let share = 64_usize.div_ceil(running) as i64;
        let balanced = async || {
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
        let result =
            try_eventually("all partitions are owned, in equal shares", READY_WITHIN, balanced)
                .await;
        result.with_context(|| self.logs())
    }

    /// Sends a webhook to the route of the shared app.
    pub async fn send_shared(&self, webhook: &Webhook) -> anyhow::Result<Answer> {
        let ingest = &self.ingests[self.slack.unique() as usize % self.ingests.len()];
        self.slack.send(&ingest.path("/slack/events"), &self.shared_secret, webhook).await
    }

    /// Changes a setting for processes that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(there, _)| there != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Removes a setting of a test, so that the default applies.
    pub fn unset(&mut self, name: &str) {
        self.settings.retain(|(there, _)| there != name);
    }

    /// Shifts the clocks of processes that are started from now on, by a time like `+1h` or `-4m`.
    /// Returns false without libfaketime.
    pub fn set_clock(&mut self, off: &str) -> bool {
        let settings = fake_time::settings(off);
        for (name, value) in settings.iter().flatten() {
            self.set(name, value);
        }
        settings.is_some()
    }

    /// Sends a webhook to the route of an app.
    pub async fn send(&self, app: &App, webhook: &Webhook) -> anyhow::Result<Answer> {
        let ingest = &self.ingests[self.slack.unique() as usize % self.ingests.len()];
        self.slack.send(&ingest.url(app), &app.secret, webhook).await
    }

    /// Returns a setting for processes that are started from now on.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(there, _)| there == name).map(|(_, value)| value.as_str())
    }

    /// Creates a folder in the folder of the run.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.run.path().join(name);
        std::fs::create_dir(&path)
            .with_context(|| format!("failed to create {}", path.display()))?;
        Ok(path)
    }

    /// Reads a file in the folder of the run.
    pub fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = self.run.path().join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Writes a file in the folder of the run.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.run.path().join(name);
        std::fs::write(&path, text)
            .with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }

    /// Returns the NATS client, which has all permissions.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// Returns the number of processes.
    pub fn size(&self) -> Size {
        self.size
    }
}

pub(crate) fn unique() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("failed to get random bytes")?;
    Ok(u128::from_be_bytes(bytes))
}
