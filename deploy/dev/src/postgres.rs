//! A Postgres on loopback.
//!
//! Postgres refuses root, so root starts it as the user nobody, who owns the data. Shared memory is
//! inside the data folder.

use crate::{
    eventually::try_eventually,
    port,
    process::{Ending, Options, Process},
    run_dir::{RunDir, is_root, make_dir},
};
use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// User and group for Postgres if this process is root.
const NOBODY: u32 = 65_534;
/// Maximum time of a start, with a recovery.
const READY: Duration = Duration::from_secs(30);
/// Maximum time of `initdb`.
const INITDB_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time of a stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of starts: another process may take a port after it was chosen.
const START_ATTEMPTS_MAX: usize = 5;
/// Settings of every Postgres on loopback.
pub const SETTINGS: [&str; 4] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "log_min_messages=warning",
    "dynamic_shared_memory_type=mmap",
];

/// A running Postgres whose superuser has a password.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    password: String,
}

/// Returns the user that runs Postgres, if it is not this process's.
#[must_use]
pub fn unprivileged() -> Option<u32> {
    is_root().then_some(NOBODY)
}

/// Creates a database cluster with the superuser `postgres`. Without a password every user of the
/// machine may connect as anyone.
///
/// # Errors
/// If `initdb` fails.
pub async fn create_cluster(
    run: &Arc<RunDir>,
    name: &str,
    bin: &Path,
    data: &Path,
    password: Option<&str>,
) -> anyhow::Result<()> {
    make_dir(data)?;
    let mut args = vec!["-D".as_ref(), data.as_os_str()];
    let settings = "--no-locale -U postgres -E UTF8 -A";
    args.extend(settings.split(' ').map(OsStr::new));
    let file = data.with_extension("password");
    match password {
        None => args.extend(["trust", "--no-sync"].map(OsStr::new)),
        Some(password) => {
            fs::write(&file, password)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
            args.extend(["scram-sha-256".as_ref(), "--pwfile".as_ref(), file.as_os_str()]);
        }
    }
    if let Some(uid) = unprivileged() {
        chown(data, Some(uid), Some(uid)).context("cannot change owner")?;
        if password.is_some() {
            chown(&file, Some(uid), Some(uid)).context("cannot change owner")?;
        }
    }
    let log = format!("{name}-initdb");
    let initdb = Process::start(run, &log, &bin.join("initdb"), &args, &[], unprivileged())?;
    let status = initdb.wait(INITDB_TIMEOUT).await?;
    if password.is_some() {
        fs::remove_file(&file)?;
    }
    ensure!(status.success(), "initdb failed: {}", initdb.log_tail());
    Ok(())
}

impl Postgres {
    /// Starts a Postgres and waits until it answers. Creates its cluster if there is none.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(
        run: &Arc<RunDir>,
        bin: &Path,
        data: &Path,
        log: &Path,
        password: &str,
    ) -> anyhow::Result<Self> {
        if !data.join("PG_VERSION").is_file() {
            // What an interrupted start left is incomplete.
            let _none_yet = fs::remove_dir_all(data);
            let fresh = data.with_extension("new");
            let _none_yet = fs::remove_dir_all(&fresh);
            create_cluster(run, "postgres", bin, &fresh, Some(password)).await?;
            fs::rename(&fresh, data).context("cannot move the new cluster")?;
        }
        // The process runs as another user, who may write to no folder of this one.
        fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut attempts = 1;
        loop {
            let postgres = Self::launch(run, bin, data, log, password)?;
            let answered = async || {
                if !postgres.process.is_running() {
                    return Some(false);
                }
                postgres.execute("postgres", "select 1").await.ok()?;
                // Another Postgres may have taken the port and answered.
                Some(postgres.process.is_running())
            };
            match try_eventually("Postgres answers", READY, answered).await {
                Ok(true) => return Ok(postgres),
                Ok(false) if attempts < START_ATTEMPTS_MAX => attempts += 1,
                _ => bail!("Postgres did not start: {}", postgres.process.log_tail()),
            }
        }
    }

    fn launch(
        run: &Arc<RunDir>,
        bin: &Path,
        data: &Path,
        log: &Path,
        password: &str,
    ) -> anyhow::Result<Self> {
        let port = port::free()?;
        let number = port.to_string();
        let mut args = vec!["-D".as_ref(), data.as_os_str(), "-p".as_ref(), number.as_ref()];
        for setting in SETTINGS {
            args.extend(["-c", setting].map(OsStr::new));
        }
        let options =
            Options { uid: unprivileged(), ending: Ending::Quit, log: Some(PathBuf::from(log)) };
        let program = bin.join("postgres");
        let process = Process::start_with(run, "postgres", &program, &args, &[], options)?;
        Ok(Self { process, port, password: password.to_owned() })
    }

    /// Executes a script as the superuser.
    ///
    /// # Errors
    /// Errors of Postgres.
    pub async fn execute(&self, database: &str, script: &str) -> anyhow::Result<()> {
        let url = self.url("postgres", &self.password, database);
        let mut connection = PgConnection::connect(&url).await?;
        connection.execute(AssertSqlSafe(script)).await?;
        Ok(connection.close().await?)
    }

    /// Creates a database unless it exists.
    ///
    /// # Errors
    /// Errors of Postgres.
    pub async fn ensure_database(&self, name: &str) -> anyhow::Result<()> {
        match self.execute("postgres", &format!("create database \"{name}\"")).await {
            Err(error) if !format!("{error:#}").contains("already exists") => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns `postgres://…/<database>` for a role. Passwords have letters and digits.
    #[must_use]
    pub fn url(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgres://{role}:{password}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Stops Postgres so that the next start has nothing to recover.
    pub async fn stop(&self) {
        self.process.signal(Signal::INT);
        let _killed_when_dropped = self.process.wait(STOP_TIMEOUT).await;
    }
}
