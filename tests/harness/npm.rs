//! Pinned JavaScript packages, fetched if necessary.
//!
//! npm uses the registry or mirror that the machine is configured for. The lock file has the hash
//! of every package. Packages are fetched into the folder of the run and moved into the cache when
//! complete, as wheels are.

use crate::{
    fetch::on_path,
    process::Process,
    run_dir::{RunDir, make_dir},
};
use anyhow::{Context, ensure};
use std::{ffi::OsStr, fmt, fs, path::Path, path::PathBuf, sync::Arc, time::Duration};

const FETCH: Duration = Duration::from_secs(300);

/// Packages with their `package.json` and lock file.
pub(crate) struct Packages {
    name: &'static str,
    json: &'static str,
    lock: &'static str,
    /// File that exists when the packages are complete.
    proof: &'static str,
}

pub(crate) const BOLT: Packages = Packages {
    name: "bolt-js-5.1.0",
    json: include_str!("bolt/package.json"),
    lock: include_str!("bolt/package-lock.json"),
    proof: "@slack/bolt/package.json",
};

pub(crate) const STANDARD_WEBHOOKS: Packages = Packages {
    name: "standardwebhooks-js-1.1.1",
    json: include_str!("samples/package.json"),
    lock: include_str!("samples/package-lock.json"),
    proof: "standardwebhooks/package.json",
};

pub(crate) const BROWSER: Packages = Packages {
    name: "playwright-core-1.56.1",
    json: include_str!("browser/package.json"),
    lock: include_str!("browser/package-lock.json"),
    proof: "playwright-core/package.json",
};

impl fmt::Display for Packages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.proof.trim_end_matches("/package.json"))
    }
}

impl Packages {
    /// Returns the folder of the packages, from the cache or fetched.
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
        let npm = on_path(path, "npm").context("npm is not installed")?;
        let work = run.path().join(format!("fetch-{}", self.name));
        make_dir(&work)?;
        fs::write(work.join("package.json"), self.json)?;
        fs::write(work.join("package-lock.json"), self.lock)?;
        let args = ["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"];
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).chain([work.as_os_str()]).collect();
        // npm gets all variables of this process: mirrors, proxies, certificates.
        let envs: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let process =
            Process::start(run, &format!("fetch-{}", self.name), &npm, &args, &envs, None)?;
        let status = process.wait(FETCH).await?;
        ensure!(status.success(), "npm failed to fetch the packages: {}", process.log_tail());
        ensure!(
            work.join("node_modules").join(self.proof).is_file(),
            "npm fetched packages without {}",
            self.proof
        );
        make_dir(to.parent().context("the cache folder has no parent")?)?;
        match fs::rename(&work, to) {
            Err(_) if to.is_dir() => Ok(()), // a concurrent run fetched the packages first
            renamed => renamed.with_context(|| format!("failed to write {}", to.display())),
        }
    }
}
