//! Single Postgres on loopback.
//!
//! Postgres does not run as root, so root starts it as user 65534, who owns the data. Dynamic
//! shared memory is in files in the data folder.

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
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// User and group for Postgres if this process is root.
const NOBODY: u32 = 65_534;
/// Maximum time until Postgres is ready, including recovery.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time for `initdb`.
const INITDB_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time for a clean stop. Then Postgres is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum start attempts. Another process may take the port between its choice and the start.
const START_ATTEMPTS_MAX: usize = 5;
/// Settings of each Postgres on loopback.
pub const SETTINGS: [&str; 4] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "log_min_messages=warning",
    "dynamic_shared_memory_type=mmap",
];

/// Running Postgres whose superuser has a password.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    password: String,
}

/// File with the password of the superuser, removed when dropped.
struct PasswordFile(PathBuf);

impl Drop for PasswordFile {
    fn drop(&mut self) {
        let _not_written = fs::remove_file(&self.0);
    }
}

/// Returns the user id that runs Postgres, or `None` if it is the user of this process.
#[must_use]
pub fn unprivileged() -> Option<u32> {
    is_root().then_some(NOBODY)
}

/// Creates a database cluster with the superuser `postgres`.
///
/// Without a password, every user of the machine can connect as any role, and `initdb` does not
/// sync its files.
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
    let file = PasswordFile(data.with_extension("password"));
    match password {
        None => args.extend(["trust", "--no-sync"].map(OsStr::new)),
        Some(password) => {
            let _none_yet = fs::remove_file(&file.0);
            let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file.0);
            opened?.write_all(password.as_bytes())?;
            args.extend(["scram-sha-256".as_ref(), "--pwfile".as_ref(), file.0.as_os_str()]);
        }
    }
    if let Some(uid) = unprivileged() {
        chown(data, Some(uid), Some(uid))
            .context("failed to change the owner of a file for Postgres")?;
        if password.is_some() {
            chown(&file.0, Some(uid), Some(uid))
                .context("failed to change the owner of a file for Postgres")?;
        }
    }
    let log = format!("{name}-initdb");
    let initdb = Process::start(run, &log, &bin.join("initdb"), &args, &[], unprivileged())?;
    let status = initdb.wait(INITDB_TIMEOUT).await?;
    ensure!(status.success(), "initdb failed: {}", initdb.log_tail());
    Ok(())
}

impl Postgres {
    /// Starts Postgres and waits until it is ready. Creates its cluster if `data` has none.
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
            // Removes the incomplete cluster of an interrupted start.
            let _none_yet = fs::remove_dir_all(data);
            let fresh = data.with_extension("new");
            let _none_yet = fs::remove_dir_all(&fresh);
            create_cluster(run, "postgres", bin, &fresh, Some(password)).await?;
            fs::rename(&fresh, data).context("failed to move the new cluster")?;
        }
        // Postgres may run as another user, who cannot create the log in this user's folder.
        OpenOptions::new().create(true).append(true).open(log)?;
        let mut attempts = 1;
        loop {
            let postgres = Self::launch(run, bin, data, log, password)?;
            let ready = async || {
                if !postgres.process.is_running() {
                    return Some(false);
                }
                postgres.execute("postgres", "select 1").await.ok()?;
                // The response may be from another Postgres that took the port.
                Some(postgres.process.is_running())
            };
            match try_eventually("Postgres is ready", READY_TIMEOUT, ready).await {
                Ok(true) => return Ok(postgres),
                Ok(false) if attempts < START_ATTEMPTS_MAX => attempts += 1,
                _ => bail!("failed to start Postgres: {}", postgres.process.log_tail()),
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

    /// Executes an SQL script as the superuser.
    ///
    /// # Errors
    /// If Postgres returns an error.
    pub async fn execute(&self, database: &str, script: &str) -> anyhow::Result<()> {
        let url = self.url("postgres", &self.password, database);
        let mut connection = PgConnection::connect(&url).await?;
        connection.execute(AssertSqlSafe(script)).await?;
        Ok(connection.close().await?)
    }

    /// Creates a database unless it exists.
    ///
    /// # Errors
    /// If Postgres returns an error.
    pub async fn ensure_database(&self, name: &str) -> anyhow::Result<()> {
        match self.execute("postgres", &format!("create database \"{name}\"")).await {
            Err(error) if !format!("{error:#}").contains("already exists") => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the URL of a database for a role. The password may only have letters and digits.
    #[must_use]
    pub fn url(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgres://{role}:{password}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Stops Postgres cleanly, so that the next start needs no recovery.
    pub async fn stop(&self) {
        self.process.signal(Signal::INT);
        let _killed_when_dropped = self.process.wait(STOP_TIMEOUT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// Only the owner can read the password, and no file is left if `initdb` does not end.
    #[tokio::test]
    async fn removes_password_file() {
        let run = Arc::new(RunDir::new("initdb").expect("a folder"));
        let (bin, data) = (run.path().join("bin"), run.path().join("data"));
        make_dir(&bin).expect("a folder");
        let initdb = bin.join("initdb");
        fs::write(&initdb, "#!/bin/sh\nsleep 60\n").expect("written");
        fs::set_permissions(&initdb, fs::Permissions::from_mode(0o755)).expect("executable");
        let file = data.with_extension("password");
        let created = create_cluster(&run, "postgres", &bin, &data, Some("hunter2"));
        let mode = try_eventually("the password is written", READY_TIMEOUT, async || {
            Some(fs::metadata(&file).ok()?.permissions().mode() & 0o777)
        });
        tokio::select! {
            ended = created => panic!("{ended:?}"),
            mode = mode => assert_eq!(mode.expect("a file"), 0o600),
        }
        assert!(!file.exists());
    }
}
