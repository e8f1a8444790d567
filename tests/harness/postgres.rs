//! A private Postgres, which keeps its port and data across restarts.
//!
//! Nothing is synced, because it need not survive a power failure: a killed process loses no write
//! that the kernel has. Postgres refuses to run as root, so root starts it as the user `nobody`.
//! Shared memory is in files below the data folder, which are removed with the run. SIGQUIT or the
//! reaper frees the one System V segment that Postgres needs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::eventually::try_eventually;
use crate::process::{Ending, Options, Process, process_exists, stat};
use crate::run_dir::{RunDir, copy_dir, make_dir};
use crate::{fetch, port};
use dev::postgres::{SETTINGS as LOOPBACK, create_cluster, unprivileged};

const READY: Duration = Duration::from_secs(20);
const START_ATTEMPTS_MAX: usize = 5;
const SETTINGS: [&str; 3] = ["fsync=off", "full_page_writes=off", "max_connections=300"];

/// Roles of the deployment.
const ROLES: &str = include_str!("../../deploy/postgres/roles.sql");
/// Role of the tests, which has the permissions of worker and operator.
const TESTS_ROLE: &str = "do $$ begin
    create role tidegate_tests login in role tidegate_worker, tidegate_operator;
exception when duplicate_object or unique_violation then null; end $$";

/// A private Postgres.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    data: PathBuf,
    /// Children of a killed postmaster. They end by themselves. A restart waits for that.
    orphans: Mutex<Vec<u32>>,
}

impl Postgres {
    /// Creates a database cluster, starts it and waits until it answers.
    ///
    /// # Errors
    /// If no Postgres is found, or it does not start.
    pub async fn start(run: &Arc<RunDir>, name: &str) -> anyhow::Result<Self> {
        let bin = fetch::postgres_bin(run).await?;
        let data = make_cluster(run, name, &bin).await?;
        let mut tries = 1;
        loop {
            let postgres = Self::launch(run, name, &bin, &data)?;
            match postgres.wait_until_ready().await {
                Ok(()) => return Ok(postgres),
                // Another process took the port after it was chosen.
                Err(_) if tries < START_ATTEMPTS_MAX && !postgres.process.is_running() => {
                    tries += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn launch(run: &Arc<RunDir>, name: &str, bin: &Path, data: &Path) -> anyhow::Result<Self> {
        let port = port::free()?;
        let (number, program) = (port.to_string(), bin.join("postgres"));
        let mut args = vec!["-D".as_ref(), data.as_os_str(), "-p".as_ref(), number.as_ref()];
        for setting in LOOPBACK.iter().chain(&SETTINGS) {
            args.extend(["-c", setting].map(OsStr::new));
        }
        let options = Options { uid: unprivileged(), ending: Ending::Quit, log: None };
        let process = Process::start_with(run, name, &program, &args, &[], options)?;
        Ok(Self { process, port, data: data.to_owned(), orphans: Mutex::default() })
    }

    /// Returns the URL of a database for the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Creates an empty database and returns its URL. `name` has lower-case letters, digits and
    /// underscores.
    ///
    /// # Errors
    /// If the name is invalid or exists.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ensure!(
            !name.is_empty() && name.chars().all(plain),
            "invalid database name {name:?}; use lower-case letters, digits and underscores"
        );
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        connection
            .execute(AssertSqlSafe(format!(r#"CREATE DATABASE "{name}""#)))
            .await
            .with_context(|| format!("failed to create database {name}"))?;
        connection.close().await?;
        Ok(self.url(name))
    }

    /// Returns the URL of a database for a role.
    #[must_use]
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Grants the permissions in a database with the deployment's script, and those of the tests'
    /// role.
    ///
    /// # Errors
    /// Errors of Postgres.
    pub async fn grant_roles(&self, database: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.url(database)).await?;
        for script in [ROLES, TESTS_ROLE] {
            let ran = connection.execute(AssertSqlSafe(script)).await;
            ran.context("failed to run deploy/postgres/roles.sql")?;
        }
        Ok(connection.close().await?)
    }

    /// Sends SIGKILL to the postmaster. Its backends end by themselves.
    pub fn kill(&self) {
        let children = self.backends();
        self.process.kill();
        // A frozen backend does not notice the end of its parent.
        signal_each(&children, Signal::CONT);
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner).extend(children);
    }

    /// Restarts Postgres, after a kill if it still runs, with the same port and data. Waits until
    /// it has recovered.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await?;
        self.process.restart()?;
        self.wait_until_ready().await
    }

    /// Copies all data. Stops Postgres for that time.
    ///
    /// # Errors
    /// If the data can't be copied, or Postgres does not answer.
    pub async fn save(&self) -> anyhow::Result<()> {
        self.stop().await?;
        copy_dir(&self.data, &self.data.with_extension("saved")).await?;
        self.restart().await
    }

    /// Restores the copy.
    ///
    /// # Errors
    /// If there is no copy, or Postgres does not answer.
    pub async fn restore(&self) -> anyhow::Result<()> {
        self.stop().await?;
        copy_dir(&self.data.with_extension("saved"), &self.data).await?;
        self.restart().await
    }

    /// Kills Postgres, if it runs, and waits until none of its processes writes.
    async fn stop(&self) -> anyhow::Result<()> {
        if self.process.is_running() {
            self.kill();
        }
        try_eventually("the backends of the killed Postgres end", READY, async || {
            let mut orphans = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
            orphans.retain(|pid| process_exists(*pid));
            orphans.is_empty().then_some(())
        })
        .await
    }

    /// Sends SIGSTOP to the postmaster and its backends: connections stay open without answers.
    pub fn freeze(&self) {
        self.process.freeze();
        signal_each(&self.backends(), Signal::STOP);
    }

    /// Sends SIGCONT.
    pub fn thaw(&self) {
        signal_each(&self.backends(), Signal::CONT);
        self.process.thaw();
    }

    /// Returns the process of the postmaster.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    fn backends(&self) -> Vec<u32> {
        // The process id of a reaped postmaster may belong to another process.
        if self.process.is_running() { children(self.process.pid()) } else { Vec::new() }
    }

    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let url = self.url("postgres");
        let ready = try_eventually("Postgres answers", READY, async || {
            if !self.process.is_running() {
                return Some(false);
            }
            let mut connection = PgConnection::connect(&url).await.ok()?;
            connection.execute("SELECT 1").await.ok()?;
            let _ = connection.close().await;
            // Another Postgres may have taken the port and answered.
            self.process.is_running().then_some(true)
        })
        .await;
        match ready {
            Ok(true) => Ok(()),
            _ => anyhow::bail!("Postgres did not start: {}", self.process.log_tail()),
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.thaw();
        self.process.signal(Signal::QUIT);
        // Postgres waits up to 5 s for its backends; usually they end within milliseconds.
        for _ in 0..700 {
            if !self.process.is_running() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn make_cluster(run: &Arc<RunDir>, name: &str, bin: &Path) -> anyhow::Result<PathBuf> {
    let data = run.path().join(name).join("data");
    make_dir(&run.path().join(name))?;
    create_cluster(run, name, bin, &data, None).await?;
    Ok(data)
}

fn signal_each(pids: &[u32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
        let _already_ended = kill_process(pid, signal);
    }
}

/// Returns the children of a process, from /proc or from `ps`.
fn children(parent: u32) -> Vec<u32> {
    let ids: Vec<(i32, i32)> = match fs::read_dir("/proc") {
        Ok(entries) => entries
            .filter_map(|entry| {
                let id = entry.ok()?.file_name().to_str()?.parse().ok()?;
                Some((id, stat(id)?.1))
            })
            .collect(),
        Err(_) => {
            let listed = std::process::Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
            let text = listed.map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&text)
                .lines()
                .filter_map(|line| {
                    let mut numbers = line.split_whitespace().map(str::parse);
                    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
                })
                .collect()
        }
    };
    let of_parent = ids.into_iter().filter(|(_, of)| u32::try_from(*of) == Ok(parent));
    of_parent.filter_map(|(id, _)| u32::try_from(id).ok()).collect()
}
