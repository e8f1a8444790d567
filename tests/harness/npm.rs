//! In: a pinned set of packages for JavaScript. Out: the directory that holds them, fetched if need be.
//!
//! npm reaches its registry through whatever mirror the machine is set up with; the lock file names every package's hash.
//! What is fetched is laid out in the run's directory and renamed into the cache when complete, as wheels are.

use crate::{
    fetch::on_path,
    guard::{RunDir, make_dir},
    process::Process,
};
use anyhow::{Context, ensure};
use std::{ffi::OsStr, fs, path::Path, path::PathBuf, sync::Arc, time::Duration};

const FETCH: Duration = Duration::from_secs(300);

/// Packages, as a `package.json` and its lock file have them.
pub(crate) struct Packages {
    name: &'static str,
    json: &'static str,
    lock: &'static str,
    /// A file by which they are known to be whole.
    proof: &'static str,
}

pub(crate) const BOLT: Packages = Packages {
    name: "bolt-js-5.1.0",
    json: include_str!("bolt/package.json"),
    lock: include_str!("bolt/package-lock.json"),
    proof: "@slack/bolt/package.json",
};

impl Packages {
    /// Their directory, from the cache or fetched.
    pub(crate) async fn dir(
        &self,
        path: &OsStr,
        cache: &Path,
        run: &Arc<RunDir>,
    ) -> anyhow::Result<PathBuf> {
        let modules = cache.join(self.name).join("node_modules");
        if !modules.join(self.proof).is_file() {
            self.fetch(path, run, &cache.join(self.name)).await?;
        }
        Ok(modules)
    }

    async fn fetch(&self, path: &OsStr, run: &Arc<RunDir>, to: &Path) -> anyhow::Result<()> {
        let npm = on_path(path, "npm").context("no npm to fetch it")?;
        let work = run.path().join(format!("fetch-{}", self.name));
        make_dir(&work)?;
        fs::write(work.join("package.json"), self.json)?;
        fs::write(work.join("package-lock.json"), self.lock)?;
        let args = ["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"];
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).chain([work.as_os_str()]).collect();
        // All of our environment: mirrors, proxies, certificates.
        let envs: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let process =
            Process::start(run, &format!("fetch-{}", self.name), &npm, &args, &envs, None)?;
        let status = process.wait(FETCH).await?;
        ensure!(status.success(), "fetching it failed (npm: {})", process.log_tail());
        ensure!(work.join("node_modules").join(self.proof).is_file(), "npm fetched something else");
        make_dir(to.parent().context("the cache has a directory")?)?;
        match fs::rename(&work, to) {
            Err(_) if to.is_dir() => Ok(()), // another run was faster
            renamed => renamed.with_context(|| format!("cannot write {}", to.display())),
        }
    }
}
