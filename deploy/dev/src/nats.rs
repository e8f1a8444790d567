//! Single nats-server on loopback with the users of a deployment.
//!
//! JetStream syncs every write, as a deployment without replicas requires. The permissions are
//! those of `deploy/nats/permissions.conf`.

use crate::{
    eventually::try_eventually,
    port,
    process::{Options, Process},
    run_dir::{RunDir, make_dir},
};
use anyhow::{Context as _, bail};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpStream;

/// Permissions of a deployment's NATS users.
pub const PERMISSIONS: &str = include_str!("../../nats/permissions.conf");
/// Maximum bytes of a message: a body of 1 MiB and its headers.
pub const MAX_PAYLOAD: u32 = 1_114_112;
/// Maximum time until the server is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum start attempts. Another process may take the port between its choice and the start.
const START_ATTEMPTS_MAX: usize = 5;

/// Running nats-server.
#[derive(Debug)]
pub struct Nats {
    process: Process,
    port: u16,
}

/// Folder, log and users of a nats-server.
#[derive(Debug)]
pub struct Place<'a> {
    /// Folder for the configuration and the store.
    pub dir: &'a Path,
    /// Log file.
    pub log: PathBuf,
    /// Public keys of the users, by the variables that the permissions name.
    pub users: &'a [(String, String)],
}

impl Nats {
    /// Starts a server and waits until JetStream is ready.
    ///
    /// # Errors
    /// If the server does not start.
    pub async fn start(
        run: &Arc<RunDir>,
        program: &Path,
        place: &Place<'_>,
    ) -> anyhow::Result<Self> {
        let mut attempts = 1;
        loop {
            let nats = Self::launch(run, program, place)?;
            let ready = async || {
                if !nats.process.is_running() {
                    return Some(false);
                }
                let greeting = greeting(nats.port).await?;
                let is_ours = greeting.contains(&format!(r#""server_name":"{}""#, nats.name()));
                (is_ours && greeting.contains(r#""jetstream":true"#)).then_some(true)
            };
            match try_eventually("nats-server is ready", READY_TIMEOUT, ready).await {
                Ok(true) => return Ok(nats),
                Ok(false) if attempts < START_ATTEMPTS_MAX => attempts += 1,
                _ => bail!("failed to start nats-server: {}", nats.process.log_tail()),
            }
        }
    }

    fn launch(run: &Arc<RunDir>, program: &Path, place: &Place<'_>) -> anyhow::Result<Self> {
        let port = port::free()?;
        let store = place.dir.join("jetstream");
        make_dir(&store)?;
        let config = place.dir.join("nats.conf");
        let text = format!(
            "server_name: \"{}\"\nlisten: \"127.0.0.1:{port}\"\nmax_payload: {MAX_PAYLOAD}\n\
             jetstream {{\n  store_dir: \"{}\"\n  sync_interval: always\n}}\n\
             include permissions.conf\n",
            name(port),
            store.display()
        );
        fs::write(&config, text)
            .with_context(|| format!("failed to write {}", config.display()))?;
        fs::write(config.with_file_name("permissions.conf"), PERMISSIONS)?;
        let args = ["-c".as_ref(), config.as_os_str()];
        let options = Options { log: Some(place.log.clone()), ..Options::default() };
        let process = Process::start_with(run, "nats", program, &args, place.users, options)?;
        Ok(Self { process, port })
    }

    fn name(&self) -> String {
        name(self.port)
    }

    /// Returns the URL `nats://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns the process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// Returns the name of a server, which distinguishes it from another server that took its port.
fn name(port: u16) -> String {
    format!("dev-{}-{port}", std::process::id())
}

/// Returns the first line that a NATS server on a port sends: `INFO` and JSON.
pub async fn greeting(port: u16) -> Option<String> {
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
