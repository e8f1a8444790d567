//! Paths of the product's programs, built with the profile of the tests.
//!
//! The tests run the real programs, but cargo builds only those of a test's own package. So each
//! test process calls cargo once for the whole workspace: this resolves the same features as the
//! build of the tests, and compiles nothing twice.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, anyhow, ensure};

/// Variables that cargo sets for the programs it runs. A build script that depends on one would run
/// again.
const OUTER_CARGO_VARIABLES: &[&str] = &[
    "CARGO_BIN_",
    "CARGO_CRATE_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PRIMARY_",
    "CARGO_TARGET_TMPDIR",
    "OUT_DIR",
];

/// The product's programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// Receives webhooks.
    pub ingest: PathBuf,
    /// Handles webhooks.
    pub worker: PathBuf,
    /// Command line of operators.
    pub tidegate: PathBuf,
    /// Control API.
    pub control: PathBuf,
    /// Folder of the programs.
    dir: PathBuf,
}

impl Binaries {
    /// Builds the programs, or finds those in `TIDEGATE_BIN_DIR`. Blocks. Later calls return the
    /// first result.
    ///
    /// # Errors
    /// The output of cargo.
    pub fn get() -> anyhow::Result<&'static Self> {
        static ONCE: OnceLock<Result<Binaries, String>> = OnceLock::new();
        ONCE.get_or_init(|| Self::find().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    /// Returns the path of a program that only the tests use.
    ///
    /// # Errors
    /// If it is not in the folder of the programs.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        ensure!(path.is_file(), "no {name} in {}", self.dir.display());
        Ok(path)
    }

    /// Returns the path of an example of the product.
    ///
    /// # Errors
    /// If it is not in the folder of the examples.
    pub fn example(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join("examples").join(name);
        ensure!(path.is_file(), "no examples/{name} in {}", self.dir.display());
        Ok(path)
    }

    fn find() -> anyhow::Result<Self> {
        let dir = match std::env::var_os("TIDEGATE_BIN_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir).canonicalize().context("TIDEGATE_BIN_DIR")?,
            None => build()?,
        };
        Self::in_dir(dir)
    }

    /// Returns the programs in a folder.
    pub(crate) fn in_dir(dir: PathBuf) -> anyhow::Result<Self> {
        let program = |name: &str| {
            let path = dir.join(name);
            ensure!(path.is_file(), "no {name} in {}", dir.display());
            Ok(path)
        };
        Ok(Self {
            ingest: program("ingest")?,
            worker: program("worker")?,
            tidegate: program("tidegate")?,
            // Not checked: earlier builds, which are compared with this one, have none.
            control: dir.join("control"),
            dir: dir.clone(),
        })
    }
}

/// Returns the target folder of the running program and its profile, as `cargo --profile` names it.
pub(crate) fn target_and_profile() -> anyhow::Result<(PathBuf, String)> {
    let this = std::env::current_exe().context("failed to find the path of this program")?;
    let mut dir = this.parent().context("this program has no folder")?;
    if dir.ends_with("deps") {
        dir = dir.parent().context("deps has no parent folder")?;
    }
    let profile = dir
        .file_name()
        .and_then(|name| name.to_str())
        .context("the profile's folder has no name")?;
    let target = dir.parent().context("the profile's folder has no parent folder")?;
    let profile = if profile == "debug" { "dev" } else { profile };
    Ok((target.to_owned(), profile.to_owned()))
}

/// Returns the folder in which cargo puts the programs of a profile.
pub(crate) fn programs(target: &Path, profile: &str) -> PathBuf {
    target.join(if profile == "dev" { "debug" } else { profile })
}

/// Returns a cargo command without the variables of the outer cargo.
pub(crate) fn cargo() -> Command {
    let cargo = option_env!("CARGO").filter(|cargo| Path::new(cargo).is_file());
    let mut command = Command::new(cargo.unwrap_or("cargo"));
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if OUTER_CARGO_VARIABLES.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&key);
        }
    }
    command
}

/// Builds into the target folder of the running program.
fn build() -> anyhow::Result<PathBuf> {
    let (target, profile) = target_and_profile()?;
    let mut command = cargo();
    command.args(["build", "--quiet", "--workspace", "--target-dir"]).arg(&target);
    command.args(["--profile", &profile]);
    for program in ["ingest", "worker", "tidegate", "control", "panics"] {
        command.args(["--bin", program]);
    }
    command.args(["--example", "own_handler"]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let output = command.output().context("failed to run cargo")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "failed to build the product:\n{errors}");
    Ok(programs(&target, &profile))
}
