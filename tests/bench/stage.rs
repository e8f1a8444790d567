//! The servers that the way in is measured on: one nats-server or three, an ingest, and the ceilings beside it.
//!
//! One server alone is synced every two minutes, as on a developer's machine: with a sync for every message its rate would be
//! the disk's, and everything measured equal to everything else. Three are synced always, as in production.

use crate::{
    client::Client,
    tenants::{Tenants, Way},
};
use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use futures_util::{TryStreamExt, stream};
use shared::{
    config,
    directory::{Entry, Known, SIGNING_SECRET_COLUMN, SealedSigningSecret, TeamEntry, team_key},
    secrets::{KeyRing, Place, Secret},
    stream::{DIRECTORY_BUCKET, STREAM, Sizing},
    types::Status,
};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tests::{
    binaries::Binaries, guard::RunDir, keys::User, nats::Nats, port, process::Process,
    until::try_until,
};

const SOON: Duration = Duration::from_secs(20);
/// Writes to a bucket at once.
const AT_ONCE: usize = 256;

/// NATS, with a stream and a directory.
pub struct Stage {
    /// The servers.
    pub nats: Vec<Nats>,
    /// JetStream on them.
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
    /// A client that keeps so many connections to it.
    pub fn client(&self, tenants: &Arc<Tenants>, way: Way, lines: usize) -> Client {
        Client::new(self.address, tenants, way, lines)
    }
}

impl Stage {
    /// One server, or a cluster of three.
    pub async fn start(replicas: usize) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("bench")?);
        let nats = match replicas {
            1 => vec![Nats::start_synced_seldom(&run, "nats").await?],
            several => Nats::cluster(&run, several).await?,
        };
        let urls: Vec<String> = nats.iter().map(Nats::url).collect();
        let client = nats[0].keys().options(User::Tests)?.connect(urls).await?;
        let js = config::jetstream(client.clone());
        let sizing = Sizing { replicas: Some(replicas), max_bytes: None };
        // A cluster that has just begun has no leader for a moment.
        let ensured = try_until("the stream is made", SOON, async || {
            shared::stream::ensure(&js, sizing).await.ok()
        });
        if ensured.await.is_err() {
            shared::stream::ensure(&js, sizing).await?;
        }
        Ok(Self { nats, js, client, ring: KeyRing::generate("k1")?, run })
    }

    /// Where all of the servers are.
    pub fn urls(&self) -> String {
        self.nats.iter().map(Nats::url).collect::<Vec<_>>().join(",")
    }

    /// Writes a directory of these tenants, as it would stand after each was projected.
    pub async fn provision(&self, tenants: &Tenants) -> anyhow::Result<()> {
        let bucket = self.js.get_key_value(DIRECTORY_BUCKET).await?;
        let ring: KeyRing = self.ring.parse()?;
        let mut entries = Vec::with_capacity(tenants.all().len() * 2);
        for (n, tenant) in tenants.all().iter().enumerate() {
            let id = tenant.id.to_string();
            let place = Place { owner: &id, column: SIGNING_SECRET_COLUMN };
            let sealed = ring.seal_secret(place, &Secret::new(tenant.secret.clone())?)?;
            let (app, team) = (format!("A{n:08}").parse()?, format!("T{n:08}").parse()?);
            let routed = TeamEntry { version: 1, connection: Some(tenant.id) };
            entries.push((team_key(&app, None, Some(&team)), serde_json::to_vec(&routed)?));
            let known = Entry::Known(Known {
                version: 1,
                status: Status::Active,
                app,
                enterprise: None,
                team: Some(team),
                preview_mode: false,
                signing_secrets: vec![SealedSigningSecret { sealed, until_ms: None }],
            });
            entries.push((id, serde_json::to_vec(&known)?));
        }
        stream::iter(entries.into_iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, async |(key, value)| {
                bucket.put(key, value.into()).await.map(drop)
            })
            .await
            .context("provisioning")
    }

    /// Starts an ingest; gives also how long it took to be ready.
    pub async fn ingest(&self, name: &str) -> anyhow::Result<(Server, Duration)> {
        let address = SocketAddr::from(([127, 0, 0, 1], port::free()?));
        let admin = SocketAddr::from(([127, 0, 0, 1], port::free()?));
        let envs = [
            ("TIDEGATE_NATS_URL", self.urls()),
            (
                "TIDEGATE_NATS_NKEY_FILE",
                self.nats[0].keys().file(User::Ingest).display().to_string(),
            ),
            ("TIDEGATE_SIGNING_SECRET_KEYRING", self.ring.clone()),
            ("TIDEGATE_LISTEN", address.to_string()),
            ("TIDEGATE_ADMIN_LISTEN", admin.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value));
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
            ensure!(began.elapsed() < SOON, "ingest is not ready: {}", process.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok((Server { process, address }, began.elapsed()))
    }

    /// Starts one of the ceilings: `bare`, `publish` or `enveloped`.
    pub async fn ceiling(&self, role: &str, secret: &str) -> anyhow::Result<Server> {
        let address = SocketAddr::from(([127, 0, 0, 1], port::free()?));
        let (listen, nats) = (address.to_string(), self.urls());
        let user = if role == "enveloped" { User::Ingest } else { User::Tests };
        let nkey = self.nats[0].keys().file(user).display().to_string();
        let args =
            [role, "--listen", &listen, "--secret", secret, "--nats", &nats, "--nkey-file", &nkey];
        let ourselves = std::env::current_exe()?;
        let process = Process::start(&self.run, role, &ourselves, &args, &[], None)?;
        try_until("a ceiling listens", SOON, async || {
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await
        .with_context(|| process.log())?;
        Ok(Server { process, address })
    }

    /// Forgets what was stored, so that no slice pays for another's.
    pub async fn clear(&self) -> anyhow::Result<()> {
        let stream = self.js.get_stream_no_info(STREAM).await?;
        stream.purge().await?;
        Ok(())
    }

    /// CPU time of all its nats-servers.
    pub fn nats_cpu(&self) -> Duration {
        self.nats.iter().map(|nats| crate::machine::cpu(nats.process().pid())).sum()
    }

    /// A client of its own, for awaited publishes without HTTP.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }
}
