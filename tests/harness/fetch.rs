//! Finds or fetches the packages that the tests need: Slack's SDK and Bolt, Schemathesis, Standard
//! Webhooks.
//!
//! Versions are pinned, so that results are the same on every machine. [`dev::finder`] finds the
//! servers.

use crate::npm::{self, BOLT, Packages};
use crate::run_dir::RunDir;
use anyhow::{Context as _, anyhow};
use dev::python_wheel::{BuiltFor, Proof, PythonWheel};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;

pub use dev::{
    finder::{Finder, nats_server, postgres_bin},
    programs::on_path,
};

const NODE_NEEDED: (u32, u32) = (20, 0);

const SLACK_SDK: PythonWheel = PythonWheel {
    requirements: include_str!("servers/slack_sdk.txt"),
    dir: "",
    proof: Proof::Exists("slack_sdk/__init__.py"),
    built_for: BuiltFor::Fixed,
};

const SLACK_BOLT: PythonWheel = PythonWheel {
    requirements: include_str!("servers/slack_bolt.txt"),
    dir: "",
    proof: Proof::Exists("slack_bolt/__init__.py"),
    built_for: BuiltFor::Fixed,
};

const STANDARD_WEBHOOKS: PythonWheel = PythonWheel {
    requirements: include_str!("servers/standardwebhooks.txt"),
    dir: "",
    proof: Proof::Exists("standardwebhooks/__init__.py"),
    built_for: BuiltFor::Fixed,
};

const SCHEMATHESIS: PythonWheel = PythonWheel {
    requirements: include_str!("servers/schemathesis.txt"),
    dir: "",
    proof: Proof::Exists("schemathesis/cli/__init__.py"),
    built_for: BuiltFor::Own,
};

/// Results of the search, which runs once per process. The lock also prevents that concurrent tests
/// fetch twice.
static FOUND_SLACK_SDK: Mutex<Option<Result<PythonPackages, String>>> = Mutex::const_new(None);
static FOUND_SLACK_BOLT: Mutex<Option<Result<PythonPackages, String>>> = Mutex::const_new(None);
static FOUND_BOLT_JS: Mutex<Option<Result<(PathBuf, PathBuf), String>>> = Mutex::const_new(None);

/// Returns Slack's SDK for Python, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn slack_sdk(run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
    let mut sought = FOUND_SLACK_SDK.lock().await;
    if sought.is_none() {
        let found = slack_wheel(&Finder::here()?, &SLACK_SDK, "slack_sdk", run).await;
        *sought = Some(found.map_err(|error| format!("{error:#}")));
    }
    sought.clone().context("the search has a result")?.map_err(|error| anyhow!(error))
}

/// Returns Bolt for Python, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn slack_bolt(run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
    let mut sought = FOUND_SLACK_BOLT.lock().await;
    if sought.is_none() {
        let found = slack_wheel(&Finder::here()?, &SLACK_BOLT, "slack_bolt", run).await;
        *sought = Some(found.map_err(|error| format!("{error:#}")));
    }
    sought.clone().context("the search has a result")?.map_err(|error| anyhow!(error))
}

/// Returns Schemathesis, which tests an API against its description, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn schemathesis(run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
    slack_wheel(&Finder::here()?, &SCHEMATHESIS, "schemathesis", run).await
}

/// Returns the path of Node and the folder of Bolt for JavaScript, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn bolt_js(run: &Arc<RunDir>) -> anyhow::Result<(PathBuf, PathBuf)> {
    let mut sought = FOUND_BOLT_JS.lock().await;
    if sought.is_none() {
        let found = node_packages(&Finder::here()?, &BOLT, run).await;
        *sought = Some(found.map_err(|error| format!("{error:#}")));
    }
    sought.clone().context("the search has a result")?.map_err(|error| anyhow!(error))
}

/// Returns the library of Standard Webhooks for Python, fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn standard_webhooks_python(run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
    slack_wheel(&Finder::here()?, &STANDARD_WEBHOOKS, "standardwebhooks", run).await
}

/// Returns the path of Node and the folder of the library of Standard Webhooks for JavaScript,
/// fetched if necessary.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn standard_webhooks_js(run: &Arc<RunDir>) -> anyhow::Result<(PathBuf, PathBuf)> {
    node_packages(&Finder::here()?, &npm::STANDARD_WEBHOOKS, run).await
}

/// A Python with Slack's SDK, Bolt or another package.
#[derive(Debug, Clone)]
pub struct PythonPackages {
    /// Path of Python.
    pub python: PathBuf,
    /// Folder from which it imports the packages.
    pub packages: PathBuf,
}

/// Returns Slack's SDK and its Python from the places of a finder.
///
/// # Errors
/// One line that names what is missing and the remedy.
pub async fn find_slack_sdk(finder: &Finder, run: &Arc<RunDir>) -> anyhow::Result<PythonPackages> {
    slack_wheel(finder, &SLACK_SDK, "slack_sdk", run).await
}

/// Returns the paths of Node and of a folder with packages.
pub(crate) async fn node_packages(
    finder: &Finder,
    packages: &Packages,
    run: &Arc<RunDir>,
) -> anyhow::Result<(PathBuf, PathBuf)> {
    let remedy = if cfg!(target_os = "macos") {
        "brew install node"
    } else {
        "apt-get install -y nodejs npm (Node ≥ 20)"
    };
    let node = on_path(&finder.path, "node");
    let node = node.filter(|node| dev::programs::is_new_enough(node, NODE_NEEDED));
    let node = node.with_context(|| format!("no Node ≥ 20 found to run {packages}: {remedy}"))?;
    let modules = packages
        .dir(&finder.path, &finder.cache, run)
        .await
        .map_err(|why| anyhow!("failed to find or fetch {packages}: {why:#}; {remedy}"))?;
    Ok((node, modules))
}

async fn slack_wheel(
    finder: &Finder,
    wheel: &PythonWheel,
    name: &str,
    run: &Arc<RunDir>,
) -> anyhow::Result<PythonPackages> {
    let remedy = if cfg!(target_os = "macos") {
        "brew install python"
    } else {
        "apt-get install -y python3-pip"
    };
    let python = on_path(&finder.path, "python3")
        .with_context(|| format!("no python3 found to run {name}: {remedy}"))?;
    let packages = wheel
        .dir(&finder.path, &finder.cache, run)
        .await
        .map_err(|why| anyhow!("failed to find or fetch {name}: {why}; {remedy}"))?;
    Ok(PythonPackages { python, packages })
}
