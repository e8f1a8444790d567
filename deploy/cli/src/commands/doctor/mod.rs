//! `tidegate doctor`: finds problems of a deployment and of a Slack app, and prints remedies.
//!
//! Changes nothing without `--fix`. Calls Slack with the tokens of connections. Exits 1 if a
//! finding is a problem.

mod app;
mod clock;
mod directory;
mod edge;
mod nats;
mod postgres;
mod processes;
mod settings;
mod slack;

use crate::{
    app_manifest::AppSettings,
    output,
    settings::{NatsSettings, StoreSettings},
};
use anyhow::{Context, ensure};
use serde::Serialize;
use shared::{runtime::telemetry::ErrorChain, store::StoreError};
use std::{fs, path::PathBuf, time::Duration};

/// Maximum time for a response of NATS or Postgres.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);

/// Arguments of `tidegate doctor`.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Manifest of a Slack app to check, exported from Slack as JSON. Requires --base-url.
    #[arg(long, value_name = "FILE", requires = "base_url")]
    manifest: Option<PathBuf>,
    #[command(flatten)]
    app: AppSettings,
    /// Send a request to --base-url, and check that it reaches ingest as it was sent.
    #[arg(long, requires = "base_url")]
    probe: bool,
    /// Rewrite entries of the directory that are older than Postgres.
    #[arg(long)]
    fix: bool,
    /// Print JSON, one finding per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
    #[command(flatten)]
    slack: settings::SlackSettings,
}

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// No problem found.
    Good,
    /// Works, but needs attention.
    Warning,
    /// Does not work, or will stop working.
    Problem,
}

/// Result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    /// Checked component, for example `nats` or `postgres`.
    component: &'static str,
    summary: String,
    /// Remedy. Empty if the level is `Good`.
    remedy: String,
}

impl Finding {
    fn good(component: &'static str, summary: impl Into<String>) -> Self {
        Self { level: Level::Good, component, summary: summary.into(), remedy: String::new() }
    }

    fn warning(
        component: &'static str,
        summary: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (summary, remedy) = (summary.into(), remedy.into());
        Self { level: Level::Warning, component, summary, remedy }
    }

    fn problem(
        component: &'static str,
        summary: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Problem, ..Self::warning(component, summary, remedy) }
    }

    /// Returns the problem that no connection could be checked.
    fn unread_connections(error: &StoreError) -> Self {
        let summary = format!("failed to read the connections: {}", ErrorChain(error));
        Self::problem("postgres", summary, "check TIDEGATE_POSTGRES_URL, and run doctor again")
    }

    fn render(&self) -> String {
        let Finding { level, component, summary, remedy } = self;
        let (word, color) = match level {
            Level::Good => ("good", "32"),
            Level::Warning => ("warning", "33"),
            Level::Problem => ("problem", "31"),
        };
        let word = output::colorize(color, &format!("{word:<8}"));
        let summary = format!("{word} {component:<9} {}", output::sanitize(summary));
        if remedy.is_empty() {
            return summary;
        }
        format!("{summary}\n{:18} → {}", "", output::sanitize(remedy))
    }
}

impl Doctor {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut findings = Vec::new();
        if let Some(file) = &self.manifest {
            let text = fs::read_to_string(file)
                .with_context(|| format!("failed to read {}; check --manifest", file.display()))?;
            findings.extend(app::check(
                &text,
                &self.app.slash_command,
                &self.app.url()?,
                &self.app.features,
            ));
        }
        if self.probe {
            edge::check(&self.app.url()?, &mut findings).await?;
        }
        let store = self.store.open_with(self.slack.rings())?;
        let has_schema = postgres::check(&store, &mut findings).await;
        nats::check(&self.nats.nats, has_schema.then_some(&store), self.fix, &mut findings).await;
        if has_schema {
            postgres::check_keyrings(&store, &mut findings).await;
            slack::check(&self.slack, &store, &mut findings).await;
        }
        let problems = findings.iter().filter(|f| f.level == Level::Problem).count();
        for finding in &findings {
            if self.json {
                output::print_json(finding)?;
            } else {
                output::print_line(&finding.render())?;
            }
        }
        ensure!(problems == 0, "problems: {problems}");
        Ok(())
    }
}

#[cfg(test)]
fn render(findings: &[Finding]) -> String {
    findings.iter().map(Finding::render).collect::<Vec<_>>().join("\n")
}

/// Returns a store whose Postgres refuses connections.
#[cfg(test)]
fn unreachable_store() -> shared::store::Store {
    let url = "postgres://u@127.0.0.1:1/d".to_owned();
    let settings =
        shared::runtime::config::PostgresConfig { url, ca_file: None, max_connections: 1 };
    shared::store::Store::new(&settings, Default::default(), shared::store::PlanMode::PerCall)
        .expect("a store")
}
