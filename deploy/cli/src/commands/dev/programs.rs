//! Processes of `tidegate dev`: ingest, worker and control, and calls of `tidegate` itself.

use super::state::State;
use anyhow::{Context, bail, ensure};
use dev::{
    port,
    process::{Options, Process},
    run_dir::RunDir,
};
use reqwest::Client;
use std::{
    env,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

/// Maximum time until a program is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval of looks at a program that is not ready.
const READY_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum time of a program's end.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Settings of development, which the environment overrides.
const DEFAULTS: [(&str, &str); 4] = [
    // An agent on this machine.
    ("TIDEGATE_AGENT_ALLOWED_NETWORKS", "127.0.0.0/8,::1/128"),
    ("TIDEGATE_DRAIN_PERIOD", "0s"),
    ("TIDEGATE_SHUTDOWN_GRACE_PERIOD", "3s"),
    ("TIDEGATE_LOG_FILTER", "info"),
];

/// A program that serves.
pub struct Program {
    pub name: &'static str,
    process: Process,
    admin: String,
}

impl Program {
    /// Starts a program with its settings.
    pub fn start(
        run: &Arc<RunDir>,
        state: &State,
        name: &'static str,
        nats_url: &str,
        listen: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let admin = format!("127.0.0.1:{}", port::free()?);
        let mut settings = environment();
        let own = state.settings(name, nats_url).into_iter();
        let own = own.chain([("TIDEGATE_ADMIN_LISTEN".to_owned(), admin.clone())]);
        let listen = listen.map(|listen| ("TIDEGATE_HTTP_LISTEN".to_owned(), listen.to_string()));
        for (name, value) in own.chain(listen) {
            settings.retain(|(there, _)| *there != name);
            settings.push((name, value));
        }
        let options = Options { log: Some(state.log(name)), ..Options::default() };
        let program = beside(name)?;
        let none: &[&str] = &[];
        let process = Process::start_with(run, name, &program, none, &settings, options)?;
        Ok(Self { name, process, admin: format!("http://{admin}") })
    }

    /// Waits until the program is ready.
    pub async fn wait_until_ready(&self, http: &Client) -> anyhow::Result<()> {
        let (started, url) = (Instant::now(), format!("{}/readyz", self.admin));
        loop {
            let why = match http.get(&url).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(_) => "it does not answer".to_owned(),
            };
            let log = self.process.log_path().display();
            ensure!(self.process.is_running(), "{} ended; its log is {log}", self.name);
            ensure!(
                started.elapsed() < READY_TIMEOUT,
                "{} is not ready: {}; its log is {log}",
                self.name,
                why.trim()
            );
            tokio::time::sleep(READY_INTERVAL).await;
        }
    }

    /// Waits until the program ends by itself. Returns an error message.
    pub async fn ended(&self) -> String {
        while self.process.is_running() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let log = self.process.log_path().display();
        format!(
            "{} ended; its log is {log}, and ends with:\n{}",
            self.name,
            self.process.log_tail()
        )
    }

    /// Ends the program with what it has begun.
    pub async fn stop(self) {
        self.process.terminate();
        let _killed_when_dropped = self.process.wait(STOP_TIMEOUT).await;
    }
}

/// Returns settings of the environment for programs: those of Tidegate and of OpenTelemetry, and the
/// defaults of development.
fn environment() -> Vec<(String, String)> {
    let ours = |name: &str| name.starts_with("TIDEGATE_") || name.starts_with("OTEL_");
    let mut settings: Vec<_> = env::vars().filter(|(name, _)| ours(name)).collect();
    for (name, value) in DEFAULTS {
        if env::var_os(name).is_none() {
            settings.push((name.to_owned(), value.to_owned()));
        }
    }
    settings
}

/// Returns the path of a program beside this one.
fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let ourselves = env::current_exe().context("failed to find this program")?;
    let path = ourselves.with_file_name(name);
    ensure!(
        path.is_file(),
        "failed to find {}; put ingest, worker and control beside tidegate, \
         or build them with cargo build --workspace",
        path.display()
    );
    Ok(path)
}

/// Runs `tidegate` with settings. Returns its output.
pub async fn run_tidegate(
    args: &[&str],
    settings: Vec<(String, String)>,
) -> anyhow::Result<String> {
    let shown = args.join(" ");
    let mut command = Command::new(env::current_exe().context("failed to find this program")?);
    command.args(args).envs(settings);
    let output = tokio::task::spawn_blocking(move || command.output()).await?;
    let output = output.with_context(|| format!("failed to run tidegate {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("failed to run tidegate {shown}: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns an address that is free, with a port of its own for port 0.
pub fn free_address(address: SocketAddr, flag: &str) -> anyhow::Result<SocketAddr> {
    if address.port() == 0 {
        return Ok(SocketAddr::new(address.ip(), port::free()?));
    }
    let bound = TcpListener::bind(address);
    bound.with_context(|| format!("failed to listen on {address}; name another with {flag}"))?;
    Ok(address)
}
