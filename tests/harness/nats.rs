//! In: a run. Out: a private nats-server with JetStream that keeps its port and store over restarts.
//!
//! Every write is synced (`sync_interval: always`), so what was acknowledged is there after a kill:
//! the tests of durability must not depend on the page cache. Who may do what is the deployment's own file; besides its three
//! users there is one for the tests, who may do everything. Three of them make a cluster. The benchmark alone has one that is
//! synced as seldom as nats-server does by itself: else it would measure the disk.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpStream;

use crate::guard::{RunDir, copy_dir, make_dir};
use crate::keys::{Keys, User};
use crate::process::Process;
use crate::until::try_until;
use crate::{fetch, port};

const READY: Duration = Duration::from_secs(15);
/// A server of a cluster elects, and catches up with what it missed.
const CAUGHT_UP: Duration = Duration::from_secs(40);
const FIRST_TRIES: usize = 5;
/// A Slack body of 1 MiB and its envelope.
const MAX_PAYLOAD: u32 = 1_114_112;

/// How often it syncs: with every write.
const ALWAYS: &str = "always";

/// Who may do what, as it is deployed.
const PERMISSIONS: &str = include_str!("../../deploy/nats/permissions.conf");

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
    /// Starts one and waits until JetStream answers.
    ///
    /// # Errors
    /// When no nats-server can be had, or it does not start.
    pub async fn start(run: &Arc<RunDir>, name: &str) -> anyhow::Result<Self> {
        Self::start_synced(run, name, ALWAYS).await
    }

    /// The same, synced every two minutes, as nats-server does when nobody says otherwise.
    ///
    /// # Errors
    /// When no nats-server can be had, or it does not start.
    pub async fn start_synced_seldom(run: &Arc<RunDir>, name: &str) -> anyhow::Result<Self> {
        Self::start_synced(run, name, "2m").await
    }

    async fn start_synced(run: &Arc<RunDir>, name: &str, sync: &str) -> anyhow::Result<Self> {
        let program = fetch::nats_server(run).await?;
        let keys = Arc::new(Keys::generate(&run.path().join(format!("{name}-keys")))?);
        let mut tries = 1;
        loop {
            let nats = Self::launch(run, name, &program, &keys, sync, None)?;
            match nats.ready().await {
                Ok(()) => return Ok(nats),
                // Somebody else took a port between our look and its bind.
                Err(_) if tries < FIRST_TRIES && !nats.process.is_running() => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts several that are one cluster, and waits until each answers and JetStream has a leader.
    ///
    /// # Errors
    /// When one does not start, or they don't find each other.
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
            nats.ready().await?;
        }
        for nats in &all {
            nats.healthy().await?;
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
# In place of the one in there: one user more.
authorization {{
  users = [
    {{ nkey: $TIDEGATE_INGEST_NKEY, permissions: $ingest_permissions }}
    {{ nkey: $TIDEGATE_WORKER_NKEY, permissions: $worker_permissions }}
    {{ nkey: $TIDEGATE_OPERATOR_NKEY, permissions: $operator_permissions }}
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
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        fs::write(config.with_file_name("permissions.conf"), PERMISSIONS)?;
        let args = ["-c".as_ref(), config.as_os_str()];
        let users =
            [("INGEST", User::Ingest), ("WORKER", User::Worker), ("OPERATOR", User::Operator)];
        let envs = users
            .map(|(name, user)| (format!("TIDEGATE_{name}_NKEY"), keys.public(user).to_owned()));
        let process = Process::start(run, name, program, &args, &envs, None)?;
        Ok(Self { keys: Arc::clone(keys), process, port, monitor, server_name, store })
    }

    /// Who may connect.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its name among the servers of a cluster.
    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Connects as one of its users.
    ///
    /// # Errors
    /// When it is away or does not know the user.
    pub async fn connect(&self, user: User) -> anyhow::Result<async_nats::Client> {
        Ok(self.keys.options(user)?.connect(self.url()).await?)
    }

    /// `nats://127.0.0.1:…`
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `http://127.0.0.1:…`, where `/healthz` and `/jsz` answer.
    #[must_use]
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor)
    }

    /// Where JetStream stores.
    #[must_use]
    pub fn store_dir(&self) -> &Path {
        &self.store
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Starts it again (after a kill, if it still runs) on the same port and store; waits until ready.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.process.restart()?;
        self.ready().await
    }

    /// Keeps a copy of its store as it is now, by stopping for a moment.
    ///
    /// # Errors
    /// When it can't be copied, or the server does not come back.
    pub async fn save(&self) -> anyhow::Result<()> {
        self.kill();
        copy_dir(&self.store, &self.store.with_file_name("saved")).await?;
        self.restart().await
    }

    /// Goes back to the copy.
    ///
    /// # Errors
    /// When there is none, or the server does not come back.
    pub async fn restore(&self) -> anyhow::Result<()> {
        self.kill();
        copy_dir(&self.store.with_file_name("saved"), &self.store).await?;
        self.restart().await
    }

    /// SIGSTOP: connections stay open and nothing is answered.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// SIGUSR2: it hands its clients and leaderships over, and ends.
    pub fn lame_duck(&self) {
        self.process.signal(rustix::process::Signal::USR2);
    }

    /// Waits until it says that it is healthy: of a cluster, that it has caught up.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn healthy(&self) -> anyhow::Result<()> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // again for every server
        let healthy = async || {
            let answer = reqwest::get(format!("{}/healthz", self.monitor_url())).await.ok()?;
            answer.status().is_success().then_some(())
        };
        let what = format!("{} is healthy", self.server_name);
        try_until(&what, CAUGHT_UP, healthy).await.with_context(|| self.process.log_tail())
    }

    /// The process behind it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The greeting must carry our name: on a port that somebody else took, another server may answer.
    async fn ready(&self) -> anyhow::Result<()> {
        let ready = try_until("nats-server greets with JetStream", READY, async || {
            if !self.process.is_running() {
                return Some(false);
            }
            let greeting = greeting(self.port).await?;
            let ours = greeting.contains(&format!(r#""server_name":"{}""#, self.server_name));
            (ours && greeting.contains(r#""jetstream":true"#)).then_some(true)
        })
        .await;
        match ready {
            Ok(true) => Ok(()),
            _ => anyhow::bail!("nats-server did not start: {}", self.process.log_tail()),
        }
    }
}

/// The first line that a server on `port` sends.
async fn greeting(port: u16) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect(address).await.ok()?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        stream.readable().await.ok()?;
        let mut bytes = [0; 4096];
        match stream.try_read(&mut bytes) {
            Ok(0) => return None,
            Ok(count) => line.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    String::from_utf8(line).ok()
}
