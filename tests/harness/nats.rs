//! In: a run. Out: a private nats-server with JetStream that keeps its port and store over restarts.
//!
//! Every write is synced (`sync_interval: always`), so what was acknowledged is there after a kill:
//! the tests of durability must not depend on the page cache.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpStream;

use crate::guard::{RunDir, make_dir};
use crate::process::Process;
use crate::until::try_until;
use crate::{fetch, port};

const READY: Duration = Duration::from_secs(15);
const FIRST_TRIES: usize = 5;
/// A Slack body of 1 MiB and its envelope.
const MAX_PAYLOAD: u32 = 1_114_112;

/// A private nats-server.
#[derive(Debug)]
pub struct Nats {
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
        let program = fetch::nats_server(run).await?;
        let mut tries = 1;
        loop {
            let nats = Self::launch(run, name, &program)?;
            match nats.ready().await {
                Ok(()) => return Ok(nats),
                // Somebody else took a port between our look and its bind.
                Err(_) if tries < FIRST_TRIES && !nats.process.is_running() => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn launch(run: &Arc<RunDir>, name: &str, program: &Path) -> anyhow::Result<Self> {
        let (port, monitor) = (port::free()?, port::free()?);
        let store = run.path().join(name).join("jetstream");
        make_dir(&store)?;
        let run_name = run.path().file_name().unwrap_or_default().to_string_lossy();
        let server_name = format!("{run_name}-{name}-{port}");
        let config = run.path().join(name).join("nats.conf");
        let text = format!(
            r#"server_name: "{server_name}"
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor}"
max_payload: {MAX_PAYLOAD}
jetstream {{
  store_dir: "{}"
  sync_interval: always
}}
"#,
            store.display()
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let args = ["-c".as_ref(), config.as_os_str()];
        let process = Process::start(run, name, program, &args, &[], None)?;
        Ok(Self { process, port, monitor, server_name, store })
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

    /// SIGSTOP: connections stay open and nothing is answered.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process.thaw();
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
