//! Processes of `tidegate dev`: ingest, worker, control, and runs of `tidegate` commands.

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
/// Interval between readiness checks.
const READY_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum time for a program to stop. Then it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Default settings for development. The environment overrides them.
const DEFAULTS: [(&str, &str); 4] = [
    // Agents on this machine.
    ("TIDEGATE_AGENT_ALLOWED_NETWORKS", "127.0.0.0/8,::1/128"),
    ("TIDEGATE_DRAIN_PERIOD", "0s"),
    ("TIDEGATE_SHUTDOWN_GRACE_PERIOD", "3s"),
    ("TIDEGATE_LOG_FILTER", "info"),
];

/// Running program: ingest, worker or control.
pub struct Program {
    pub name: &'static str,
    process: Process,
    admin: String,
}

impl Program {
    /// Starts a program with its settings, and its log in the folder of the state.
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
            settings.retain(|(existing, _)| *existing != name);
            settings.push((name, value));
        }
        let options = Options { log: Some(state.log(name)), ..Options::default() };
        let program = sibling_program(name)?;
        let args: &[&str] = &[];
        let process = Process::start_with(run, name, &program, args, &settings, options)?;
        Ok(Self { name, process, admin: format!("http://{admin}") })
    }

    /// Waits until `/readyz` succeeds. Returns an error after a minute, or if the program ends.
    pub async fn wait_until_ready(&self, http: &Client) -> anyhow::Result<()> {
        let (started, url) = (Instant::now(), format!("{}/readyz", self.admin));
        loop {
            let reason = match http.get(&url).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(_) => "/readyz does not respond".to_owned(),
            };
            let log = self.process.log_path().display();
            ensure!(self.process.is_running(), "{} ended; see its log {log}", self.name);
            ensure!(
                started.elapsed() < READY_TIMEOUT,
                "{} is not ready: {}; see its log {log}",
                self.name,
                reason.trim()
            );
            tokio::time::sleep(READY_INTERVAL).await;
        }
    }

    /// Waits until the program ends unexpectedly. Returns an error message with the end of its log.
    pub async fn ended(&self) -> String {
        while self.process.is_running() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let log = self.process.log_path().display();
        format!(
            "{} ended; the last lines of its log {log} are:\n{}",
            self.name,
            self.process.log_tail()
        )
    }

    /// Stops the program gracefully, or kills it after a timeout.
    pub async fn stop(self) {
        self.process.terminate();
        let _killed_when_dropped = self.process.wait(STOP_TIMEOUT).await;
    }
}

/// Returns the settings of Tidegate and OpenTelemetry from the environment, with the defaults for
/// development.
fn environment() -> Vec<(String, String)> {
    let is_setting = |name: &str| name.starts_with("TIDEGATE_") || name.starts_with("OTEL_");
    let mut settings: Vec<_> = env::vars().filter(|(name, _)| is_setting(name)).collect();
    for (name, value) in DEFAULTS {
        if env::var_os(name).is_none() {
            settings.push((name.to_owned(), value.to_owned()));
        }
    }
    settings
}

/// Returns the path of a program in the folder of this one.
fn sibling_program(name: &str) -> anyhow::Result<PathBuf> {
    let tidegate = env::current_exe().context("failed to find this program")?;
    let path = tidegate.with_file_name(name);
    ensure!(
        path.is_file(),
        "failed to find {}; put ingest, worker and control in the folder of tidegate, \
         or build them with cargo build --workspace",
        path.display()
    );
    Ok(path)
}

/// Runs a `tidegate` command with settings. Returns its standard output.
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
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("failed to run tidegate {shown}: {}", error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the address with a free port in place of port 0. Returns an error if the port is taken.
///
/// `flag` is the argument that the error names.
pub fn free_address(address: SocketAddr, flag: &str) -> anyhow::Result<SocketAddr> {
    if address.port() == 0 {
        return Ok(SocketAddr::new(address.ip(), port::free()?));
    }
    let bound = TcpListener::bind(address);
    bound.with_context(|| {
        format!("failed to listen on {address}; pass another address with {flag}")
    })?;
    Ok(address)
}
