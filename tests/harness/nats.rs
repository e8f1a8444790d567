//! A private nats-server with JetStream, which keeps its port and store across restarts.
//!
//! Every write is synced (`sync_interval: always`), so a confirmed message survives a kill: tests
//! of durability must not depend on the page cache. Permissions are those of the deployment; in
//! addition to its four users there is one for the tests. The benchmark uses the default sync
//! interval, because otherwise it would measure the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::eventually::try_eventually;
use crate::keys::{Keys, User};
use crate::process::Process;
use crate::run_dir::{RunDir, copy_dir, make_dir};
use crate::{fetch, port};
use anyhow::Context as _;
use dev::nats::{MAX_PAYLOAD, PERMISSIONS, greeting};

const READY: Duration = Duration::from_secs(15);
/// Maximum time in which a server of a cluster elects a leader and catches up.
const CAUGHT_UP: Duration = Duration::from_secs(40);
const START_ATTEMPTS_MAX: usize = 5;
/// Sync interval: every write.
const ALWAYS: &str = "always";

/// A private nats-server.
#[derive(Debug)]
pub struct Nats {
    keys: Arc<Keys>,
    process: Process,
    port: u16,
    monitor: u16,
    server_name: String,
    store: PathBuf,
}

impl Nats {
    /// Starts a server and waits until JetStream answers.
    ///
    /// # Errors
    /// If no nats-server is found, or it does not start.
    pub async fn start(run: &Arc<RunDir>, name: &str) -> anyhow::Result<Self> {
        Self::start_synced(run, name, ALWAYS).await
    }

    /// Starts a server that syncs every two minutes, the default of nats-server.
    ///
    /// # Errors
    /// If no nats-server is found, or it does not start.
    pub async fn start_synced_seldom(run: &Arc<RunDir>, name: &str) -> anyhow::Result<Self> {
        Self::start_synced(run, name, "2m").await
    }

    async fn start_synced(run: &Arc<RunDir>, name: &str, sync: &str) -> anyhow::Result<Self> {
        let program = fetch::nats_server(run).await?;
        let keys = Arc::new(Keys::generate(&run.path().join(format!("{name}-keys")))?);
        let mut tries = 1;
        loop {
            let nats = Self::launch(run, name, &program, &keys, sync, None)?;
            match nats.wait_until_ready().await {
                Ok(()) => return Ok(nats),
                // Another process took a port after it was chosen.
                Err(_) if tries < START_ATTEMPTS_MAX && !nats.process.is_running() => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts several servers as a cluster. Waits until each answers and JetStream has a leader.
    ///
    /// # Errors
    /// If a server does not start, or the cluster has no leader.
    pub async fn cluster(run: &Arc<RunDir>, count: usize) -> anyhow::Result<Vec<Self>> {
        let program = fetch::nats_server(run).await?;
        let keys = Arc::new(Keys::generate(&run.path().join("nats-keys"))?);
        let routes = (0..count).map(|_| port::free()).collect::<anyhow::Result<Vec<_>>>()?;
        let mut all = Vec::new();
        for n in 0..count {
            let route = (routes[n], routes.as_slice());
            all.push(Self::launch(
                run,
                &format!("nats-{}", n + 1),
                &program,
                &keys,
                ALWAYS,
                Some(route),
            )?);
        }
        for nats in &all {
            nats.wait_until_ready().await?;
        }
        for nats in &all {
            nats.wait_until_healthy().await?;
        }
        Ok(all)
    }

    fn launch(
        run: &Arc<RunDir>,
        name: &str,
        program: &Path,
        keys: &Arc<Keys>,
        sync: &str,
        cluster: Option<(u16, &[u16])>,
    ) -> anyhow::Result<Self> {
        let (port, monitor) = (port::free()?, port::free()?);
        let store = run.path().join(name).join("jetstream");
        make_dir(&store)?;
        let run_name = run.path().file_name().unwrap_or_default().to_string_lossy();
        let server_name = format!("{run_name}-{name}-{port}");
        let config = run.path().join(name).join("nats.conf");
        let mut text = format!(
            r#"server_name: "{server_name}"
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor}"
max_payload: {MAX_PAYLOAD}
lame_duck_duration: "30s"
lame_duck_grace_period: "2s"
jetstream {{
  store_dir: "{}"
  sync_interval: {sync}
}}
include permissions.conf
# Replaces `authorization` of permissions.conf: adds the user of the tests.
authorization {{
  users = [
    {{ nkey: $TIDEGATE_INGEST_NKEY, permissions: $ingest_permissions }}
    {{ nkey: $TIDEGATE_WORKER_NKEY, permissions: $worker_permissions }}
    {{ nkey: $TIDEGATE_OPERATOR_NKEY, permissions: $operator_permissions }}
    {{ nkey: $TIDEGATE_CONTROL_NKEY, permissions: $control_permissions }}
    {{ nkey: {} }}
  ]
}}
"#,
            store.display(),
            keys.public(User::Tests),
        );
        if let Some((own, all)) = cluster {
            let routes: Vec<_> =
                all.iter().map(|port| format!(r#""nats://127.0.0.1:{port}""#)).collect();
            text += &format!(
                "cluster {{\n  name: tidegate\n  listen: \"127.0.0.1:{own}\"\n  routes: [{}]\n}}\n",
                routes.join(", ")
            );
        }
        fs::write(&config, text)
            .with_context(|| format!("failed to write {}", config.display()))?;
        fs::write(config.with_file_name("permissions.conf"), PERMISSIONS)?;
        let args = ["-c".as_ref(), config.as_os_str()];
        let users = [
            ("INGEST", User::Ingest),
            ("WORKER", User::Worker),
            ("OPERATOR", User::Operator),
            ("CONTROL", User::Control),
        ];
        let envs = users
            .map(|(name, user)| (format!("TIDEGATE_{name}_NKEY"), keys.public(user).to_owned()));
        let process = Process::start(run, name, program, &args, &envs, None)?;
        Ok(Self { keys: Arc::clone(keys), process, port, monitor, server_name, store })
    }

    /// Returns the keys of the users.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the name of the server in its cluster.
    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Connects as a user.
    ///
    /// # Errors
    /// If the server does not answer or rejects the user.
    pub async fn connect(&self, user: User) -> anyhow::Result<async_nats::Client> {
        Ok(self.keys.options(user)?.connect(self.url()).await?)
    }

    /// Returns `nats://127.0.0.1:…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns `http://127.0.0.1:…`, the URL of `/healthz` and `/jsz`.
    #[must_use]
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor)
    }

    /// Returns the folder of JetStream.
    #[must_use]
    pub fn store_dir(&self) -> &Path {
        &self.store
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Restarts the server, after a kill if it still runs, with the same port and store. Waits
    /// until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.process.restart()?;
        self.wait_until_ready().await
    }

    /// Copies the store. Stops the server for that time.
    ///
    /// # Errors
    /// If the store can't be copied, or the server does not become ready.
    pub async fn save(&self) -> anyhow::Result<()> {
        self.kill();
        copy_dir(&self.store, &self.store.with_file_name("saved")).await?;
        self.restart().await
    }

    /// Restores the copy of the store.
    ///
    /// # Errors
    /// If there is no copy, or the server does not become ready.
    pub async fn restore(&self) -> anyhow::Result<()> {
        self.kill();
        copy_dir(&self.store.with_file_name("saved"), &self.store).await?;
        self.restart().await
    }

    /// Sends SIGSTOP: connections stay open without answers.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// Sends SIGCONT.
    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// Sends SIGUSR2: the server moves its clients and leaderships to others, and ends.
    pub fn lame_duck(&self) {
        self.process.signal(rustix::process::Signal::USR2);
    }

    /// Waits until the server is healthy; in a cluster, until it has caught up.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn wait_until_healthy(&self) -> anyhow::Result<()> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // fails after the first call
        let healthy = async || {
            let answer = reqwest::get(format!("{}/healthz", self.monitor_url())).await.ok()?;
            answer.status().is_success().then_some(())
        };
        let what = format!("{} is healthy", self.server_name);
        try_eventually(&what, CAUGHT_UP, healthy).await.with_context(|| self.process.log_tail())
    }

    /// Returns the process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits until the server with the expected name answers: another server may have taken the
    /// port.
    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let ready =
            try_eventually("nats-server answers with JetStream enabled", READY, async || {
                if !self.process.is_running() {
                    return Some(false);
                }
                let greeting = greeting(self.port).await?;
                let is_expected =
                    greeting.contains(&format!(r#""server_name":"{}""#, self.server_name));
                (is_expected && greeting.contains(r#""jetstream":true"#)).then_some(true)
            })
            .await;
        match ready {
            Ok(true) => Ok(()),
            _ => anyhow::bail!("nats-server did not start: {}", self.process.log_tail()),
        }
    }
}
