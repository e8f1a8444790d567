//! `tidegate doctor`: what is wrong with a deployment, and what to do about each.
//!
//! In: the settings of everything, and maybe an app's manifest as Slack exports it. Out: findings; the exit code says whether
//! one of them is a problem. It looks and changes nothing.

mod app;
mod servers;

use crate::{
    app_manifest, output,
    settings::{NatsSettings, StoreSettings},
};
use anyhow::{Context, ensure};
use serde::Serialize;
use std::{fs, path::PathBuf};

/// Settings of `tidegate doctor`.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
    /// An app's manifest, exported from Slack as JSON, to be compared with what we need; asks for --base-url.
    #[arg(long, value_name = "FILE", requires = "base_url")]
    manifest: Option<PathBuf>,
    #[command(flatten)]
    reached: app_manifest::Reached,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Good,
    /// It works, and should be looked at.
    Warning,
    /// Something does not work, or will not.
    Problem,
}

/// Something found.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at: `nats`, `postgres`, …
    of: &'static str,
    /// What was found.
    what: String,
    /// What to do; empty where nothing is to be done.
    remedy: String,
}

impl Finding {
    fn good(of: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Good, of, what: what.into(), remedy: String::new() }
    }

    fn warning(of: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warning, of, what: what.into(), remedy: remedy.into() }
    }

    fn problem(of: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Problem, of, what: what.into(), remedy: remedy.into() }
    }
}

impl Doctor {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut findings = Vec::new();
        if let Some(file) = &self.manifest {
            let text = fs::read_to_string(file).with_context(|| {
                format!("{} can't be read: name it with --manifest", file.display())
            })?;
            findings.extend(app::examine(&text, &self.reached.command, &self.reached.url()?));
        }
        let store = self.store.open()?;
        let postgres = servers::postgres(&store, &mut findings).await;
        servers::nats(&self.nats.nats, postgres.then_some(&store), &mut findings).await;
        let problems = findings.iter().filter(|f| f.level == Level::Problem).count();
        self.print(&findings)?;
        ensure!(problems == 0, "problems: {problems}");
        Ok(())
    }

    fn print(&self, findings: &[Finding]) -> anyhow::Result<()> {
        if self.json {
            return findings.iter().try_for_each(output::json);
        }
        for Finding { level, of, what, remedy } in findings {
            let (word, colour) = match level {
                Level::Good => ("good", "32"),
                Level::Warning => ("warning", "33"),
                Level::Problem => ("problem", "31"),
            };
            let word = output::painted(colour, &format!("{word:<8}"));
            output::line(&format!("{word} {of:<9} {}", output::plain(what)))?;
            if !remedy.is_empty() {
                output::line(&format!("{:18} → {}", "", output::plain(remedy)))?;
            }
        }
        Ok(())
    }
}
