//! `tidegate apply`: applies the organizations, agents, members and connections of a [`file`].
//!
//! Prints a plan as a diff, and returns when every ingest has applied it. The plan is one
//! transaction: after an error nothing is applied. A second run changes nothing. Rows that the file
//! does not declare stay, except with `--prune`.

mod file;
mod schema;

use crate::{
    directory, output,
    settings::{NatsSettings, StoreSettings},
};
use anyhow::{Context, bail};
use shared::store::{Action, Plan};
use std::{fs, path::PathBuf};

/// Arguments of `tidegate apply`.
#[derive(Debug, clap::Args)]
pub struct Apply {
    /// File that declares organizations, agents, members and connections.
    #[arg(short, long, value_name = "FILE", default_value = "tidegate.toml")]
    file: PathBuf,
    /// Only print what would change.
    #[arg(long)]
    dry_run: bool,
    /// Delete what the file does not declare, connections with their data.
    #[arg(long)]
    prune: bool,
    /// Print JSON: one line per step, then the summary.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
}

impl Apply {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let shown = self.file.display();
        let text = fs::read_to_string(&self.file)
            .with_context(|| format!("failed to read {shown}; name the file with --file"))?;
        let folder = self.file.parent().unwrap_or(&self.file);
        let file = match file::read(&text, folder) {
            Ok(file) => file,
            Err(problems) => bail!("{}", file::render(&problems, &shown.to_string())),
        };
        let store = self.store.open()?;
        // NATS has to be up before Postgres changes: every change has to reach the directory.
        let js = self.nats.jetstream().await?;
        if !self.dry_run {
            shared::directory::Directory::open(&js).await?;
        }
        let plan = match store.apply_declared(&file.declared, self.prune, self.dry_run).await? {
            Ok(plan) => plan,
            Err(clashes) => bail!("{}", file::render(&file.locate(clashes), &shown.to_string())),
        };
        self.print(&plan)?;
        if self.dry_run {
            return Ok(());
        }
        directory::publish(&store, &js, &plan.connections).await?;
        for &deleted in &plan.deleted {
            directory::publish_deletion(&store, &js, deleted).await?;
        }
        if !self.json {
            output::line("applied on every ingest")?;
        }
        Ok(())
    }

    fn print(&self, plan: &Plan) -> anyhow::Result<()> {
        if self.json {
            plan.steps.iter().try_for_each(output::json)?;
            return output::json(&serde_json::json!({
                "unchanged": plan.unchanged, "undeclared": plan.kept,
                "connections": plan.connections, "dry_run": self.dry_run,
            }));
        }
        for step in &plan.steps {
            let (sign, color) = match step.action {
                Action::Create => ("+", "32"),
                Action::Change => ("~", "33"),
                Action::Delete => ("-", "31"),
            };
            output::line(&output::colored(
                color,
                &format!("{sign} {}", output::sanitize(&step.what)),
            ))?;
            for field in &step.fields {
                output::line(&format!("    {}", output::sanitize(field)))?;
            }
        }
        for kept in &plan.kept {
            output::line(&format!("  {}: not in the file, unchanged", output::sanitize(kept)))?;
        }
        let done = if self.dry_run { "to change" } else { "changed" };
        let (changed, unchanged) = (plan.steps.len(), plan.unchanged);
        Ok(output::line(&format!("{done}: {changed}, unchanged: {unchanged}"))?)
    }
}
