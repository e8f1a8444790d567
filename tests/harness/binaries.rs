//! In: the workspace. Out: the product's own programs, built as this one was.
//!
//! The tests run the real binaries, and cargo hands a test only those of its own package. So cargo is
//! asked, once per process, with the whole workspace selected: then it resolves the same features as
//! the build that made us and has nothing to compile twice.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, anyhow, ensure};

/// Set by cargo for what it runs; a build script that looks at one of these would run again.
const OF_THE_OUTER_CARGO: &[&str] = &[
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
    /// Takes webhooks in.
    pub ingest: PathBuf,
    /// Handles them.
    pub worker: PathBuf,
    /// The operator's command line.
    pub tidegate: PathBuf,
    /// Where they are.
    dir: PathBuf,
}

impl Binaries {
    /// Builds them, or takes those in `TIDEGATE_BIN_DIR`. Blocks; later calls give the first answer.
    ///
    /// # Errors
    /// What cargo said.
    pub fn get() -> anyhow::Result<&'static Self> {
        static ONCE: OnceLock<Result<Binaries, String>> = OnceLock::new();
        ONCE.get_or_init(|| Self::find().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    /// A worker of the tests' own.
    ///
    /// # Errors
    /// When it is not where the others are.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        ensure!(path.is_file(), "no {name} in {}", self.dir.display());
        Ok(path)
    }

    /// A program that an example of the product is.
    ///
    /// # Errors
    /// When it is not where the others are.
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

    /// Those that lie there.
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
            dir: dir.clone(),
        })
    }
}

/// The target directory that we came from, and the profile, as `cargo --profile` calls it.
pub(crate) fn target_and_profile() -> anyhow::Result<(PathBuf, String)> {
    let ourselves = std::env::current_exe().context("where this program is")?;
    let mut dir = ourselves.parent().context("a program is in a directory")?;
    if dir.ends_with("deps") {
        dir = dir.parent().context("deps is in the profile's directory")?;
    }
    let profile = dir.file_name().and_then(|name| name.to_str()).context("it has a name")?;
    let target = dir.parent().context("the profile's directory is in the target directory")?;
    let profile = if profile == "debug" { "dev" } else { profile };
    Ok((target.to_owned(), profile.to_owned()))
}

/// The directory in which cargo leaves a profile's programs.
pub(crate) fn programs(target: &Path, profile: &str) -> PathBuf {
    target.join(if profile == "dev" { "debug" } else { profile })
}

/// A cargo that knows nothing of the one that runs us.
pub(crate) fn cargo() -> Command {
    let cargo = option_env!("CARGO").filter(|cargo| Path::new(cargo).is_file());
    let mut command = Command::new(cargo.unwrap_or("cargo"));
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if OF_THE_OUTER_CARGO.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&key);
        }
    }
    command
}

/// Builds into the directory that we came from.
fn build() -> anyhow::Result<PathBuf> {
    let (target, profile) = target_and_profile()?;
    let mut command = cargo();
    command.args(["build", "--quiet", "--workspace", "--target-dir"]).arg(&target);
    command.args(["--profile", &profile]);
    command.args(["--bin", "ingest", "--bin", "worker", "--bin", "tidegate", "--bin", "panics"]);
    command.args(["--example", "own_handler"]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let output = command.output().context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the product does not build:\n{said}");
    Ok(programs(&target, &profile))
}
