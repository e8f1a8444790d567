//! A real browser: Chromium, driven by Playwright from the npm registry.

use crate::{
    fetch::{Finder, node_packages, on_path},
    npm::BROWSER,
    process::Process,
    run_dir::RunDir,
};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::{fs, path::PathBuf, sync::Arc, time::Duration};

/// Maximum time of a script, including the start of the browser on a busy machine.
const SCRIPT_WITHIN: Duration = Duration::from_secs(120);
/// Names under which Chromium is installed.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Permission of pages to run scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scripts {
    /// Scripts run if the Content-Security-Policy of the page allows them.
    On,
    /// The browser runs no scripts.
    Off,
}

/// Opens an install link, clicks "Add to Slack", then the button on Slack's page. Returns the
/// contents of the pages.
///
/// # Errors
/// One line that names what is missing and the remedy, or the element that the browser did not
/// find.
pub async fn install(link: &str, button: &str, scripts: Scripts) -> anyhow::Result<Value> {
    let settings = [("LINK", link), ("BUTTON", button)];
    run_script("install.js", include_str!("install.js"), &settings, scripts).await
}

/// Operates the console: finds a webhook by its reference, reveals and redrives it, stops a
/// connection; then with a narrow screen in dark mode, and as a person of another organization.
/// Returns the contents of the pages.
///
/// # Errors
/// The errors of [`install`].
pub async fn console(
    base: &str,
    key: &str,
    foreign: &str,
    reference: &str,
    scripts: Scripts,
) -> anyhow::Result<Value> {
    let settings = [("BASE", base), ("KEY", key), ("FOREIGN", foreign), ("REFERENCE", reference)];
    run_script("console.js", include_str!("console.js"), &settings, scripts).await
}

/// Runs a Playwright script. Returns the line of JSON that it prints.
async fn run_script(
    name: &str,
    script: &str,
    settings: &[(&str, &str)],
    scripts: Scripts,
) -> anyhow::Result<Value> {
    let run = Arc::new(RunDir::new("browser")?);
    let finder = Finder::here()?;
    let remedy = "apt-get install -y chromium";
    let program = PROGRAMS.iter().find_map(|name| on_path(&finder.path, name));
    let program = program.with_context(|| format!("no Chromium found: {remedy}"))?;
    let (node, modules): (PathBuf, PathBuf) = node_packages(&finder, &BROWSER, &run).await?;
    let file = run.path().join(name);
    fs::write(&file, script)?;
    let own = [
        ("NODE_PATH", modules.display().to_string()),
        ("CHROMIUM", program.display().to_string()),
        ("HOME", run.path().display().to_string()),
        ("SCRIPTS", if scripts == Scripts::On { "on" } else { "off" }.to_owned()),
    ];
    let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
    let settings: Vec<(String, String)> =
        settings.chain(own).map(|(name, value)| (name.to_owned(), value)).collect();
    let process = Process::start(&run, "browser", &node, &[file], &settings, None)?;
    let status = process.wait(SCRIPT_WITHIN).await?;
    let log = process.log();
    ensure!(status.success(), "the browser failed: {log}");
    let line = log.lines().find(|line| line.starts_with('{')).context("no line of JSON")?;
    Ok(serde_json::from_str(line)?)
}
