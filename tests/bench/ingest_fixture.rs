//! Servers for measurements of ingest: one or three nats-servers, an ingest, and its baselines.
//!
//! One server is synced every two minutes, as on a developer's machine: with a sync per message the
//! disk would limit the rate, and all measurements would be equal. Three servers sync every write,
//! as in production.

use crate::{
    client::Client,
    tenants::{Tenants, Way},
};
use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use shared::{
    runtime::config,
    secrets::KeyRing,
    stream::{STREAM, StreamSize},
};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tests::{
    binaries::Binaries,
    directory::{self, NewEntry},
    eventually::try_eventually,
    keys::User,
    nats::Nats,
    port,
    process::Process,
    run_dir::RunDir,
    test_env::UNLIMITED_QUOTAS,
};

const TIMEOUT: Duration = Duration::from_secs(20);

/// NATS with a stream and a directory.
pub struct IngestFixture {
    /// The servers.
    pub nats: Vec<Nats>,
    /// JetStream on the servers.
    pub js: jetstream::Context,
    client: async_nats::Client,
    ring: String,
    run: Arc<RunDir>,
}

/// A process with an address.
pub struct Server {
    /// The process.
    pub process: Process,
    address: SocketAddr,
}

impl Server {
    /// Returns the address of its HTTP listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a client with a number of keep-alive connections.
    pub fn client(&self, tenants: &Arc<Tenants>, way: Way, lines: usize) -> Client {
        Client::new(self.address, tenants, way, lines)
    }
}

impl IngestFixture {
    /// Starts one server or a cluster of three.
    pub async fn start(replicas: usize) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("bench")?);
        let nats = match replicas {
            1 => vec![Nats::start_synced_seldom(&run, "nats").await?],
            several => Nats::cluster(&run, several).await?,
        };
        let urls: Vec<String> = nats.iter().map(Nats::url).collect();
        let client = nats[0].keys().options(User::Tests)?.connect(urls).await?;
        let js = config::jetstream(client.clone());
        let sizing = StreamSize { replicas: Some(replicas), max_bytes: None };
        // A new cluster has no leader at first.
        let ensured = try_eventually("the stream is created", TIMEOUT, async || {
            shared::stream::provision(&js, sizing).await.ok()
        });
        if ensured.await.is_err() {
            shared::stream::provision(&js, sizing).await?;
        }
        Ok(Self { nats, js, client, ring: KeyRing::generate("k1")?, run })
    }

    /// Returns the URLs of all servers.
    pub fn urls(&self) -> String {
        self.nats.iter().map(Nats::url).collect::<Vec<_>>().join(",")
    }

    /// Writes directory entries of the tenants.
    pub async fn provision(&self, tenants: &Tenants) -> anyhow::Result<()> {
        let entries = tenants.all().iter().map(|tenant| NewEntry {
            id: tenant.id,
            app: &tenant.app,
            team: &tenant.team,
            secret: &tenant.secret,
        });
        directory::write(&self.js, &self.ring.parse()?, entries).await
    }

    /// Starts an ingest without quotas. Also returns its time to readiness.
    pub async fn ingest(&self, name: &str) -> anyhow::Result<(Server, Duration)> {
        self.ingest_with(name, &UNLIMITED_QUOTAS).await
    }

    /// Starts an ingest with settings besides those of its servers. Also returns its time to
    /// readiness.
    pub async fn ingest_with(
        &self,
        name: &str,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<(Server, Duration)> {
        let address = SocketAddr::from(([127, 0, 0, 1], port::free()?));
        let admin = SocketAddr::from(([127, 0, 0, 1], port::free()?));
        let envs = [
            ("TIDEGATE_NATS_URL", self.urls()),
            (
                "TIDEGATE_NATS_NKEY_FILE",
                self.nats[0].keys().file(User::Ingest).display().to_string(),
            ),
            ("TIDEGATE_SIGNING_SECRET_KEYRING", self.ring.clone()),
            ("TIDEGATE_HTTP_LISTEN", address.to_string()),
            ("TIDEGATE_ADMIN_LISTEN", admin.to_string()),
        ]
        .into_iter()
        .chain(settings.iter().map(|(key, value)| (*key, (*value).to_owned())))
        .map(|(key, value)| (key.to_owned(), value));
        let envs: Vec<_> = envs.collect();
        let program = &Binaries::get()?.ingest;
        let began = Instant::now();
        let process = Process::start(&self.run, name, program, &[] as &[&str], &envs, None)?;
        let ready = format!("http://{admin}/readyz");
        let http = reqwest::Client::new();
        loop {
            let answer = http.get(&ready).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                break;
            }
            ensure!(began.elapsed() < TIMEOUT, "ingest did not become ready: {}", process.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok((Server { process, address }, began.elapsed()))
    }

    /// Starts a baseline: `bare`, `publish` or `enveloped`.
    pub async fn baseline(&self, role: &str, secret: &str) -> anyhow::Result<Server> {
        let address = SocketAddr::from(([127, 0, 0, 1], port::free()?));
        let (listen, nats) = (address.to_string(), self.urls());
        let user = if role == "enveloped" { User::Ingest } else { User::Tests };
        let nkey = self.nats[0].keys().file(user).display().to_string();
        let args =
            [role, "--listen", &listen, "--secret", secret, "--nats", &nats, "--nkey-file", &nkey];
        let this = std::env::current_exe()?;
        let process = Process::start(&self.run, role, &this, &args, &[], None)?;
        try_eventually("the baseline listens", TIMEOUT, async || {
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await
        .with_context(|| process.log())?;
        Ok(Server { process, address })
    }

    /// Purges the stream, so that a slice does not affect the next one.
    pub async fn clear(&self) -> anyhow::Result<()> {
        let stream = self.js.get_stream_no_info(STREAM).await?;
        stream.purge().await?;
        Ok(())
    }

    /// Returns the CPU time of all nats-servers.
    pub fn nats_cpu(&self) -> Duration {
        self.nats.iter().map(|nats| crate::machine::cpu(nats.process().pid())).sum()
    }

    /// Returns the NATS client, for publishes without HTTP.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }
}
