//! `tidegate apply -f tidegate.toml`: what the file declares is brought about, and in force on every ingest when the verb
//! returns.
//!
//! In: the file (see [`file`]). Out: a plan, as a diff, and then its result. The whole plan is one transaction: with any error
//! nothing is applied. Applied again it changes nothing. What is not in the file stays, unless `--prune` is said.

mod file;

use crate::{
    directory::{announce, bury},
    output,
    settings::{NatsSettings, StoreSettings},
};
use anyhow::{Context, bail};
use shared::store::{Action, Plan};
use std::{fs, path::PathBuf};

/// Settings of `tidegate apply`.
#[derive(Debug, clap::Args)]
pub struct Apply {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
    /// The file that declares everything.
    #[arg(short, long, value_name = "FILE", default_value = "tidegate.toml")]
    file: PathBuf,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Delete what the file does not declare, connections with all that is kept for them.
    #[arg(long)]
    prune: bool,
    /// Print JSON, a line each: the steps, then the summary.
    #[arg(long)]
    json: bool,
}

impl Apply {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let shown = self.file.display();
        let text = fs::read_to_string(&self.file)
            .with_context(|| format!("{shown} can't be read: name the file with -f"))?;
        let beside = self.file.parent().unwrap_or(&self.file);
        let read = match file::read(&text, beside) {
            Ok(read) => read,
            Err(problems) => bail!("{}", file::tell(&problems, &shown.to_string())),
        };
        let store = self.store.open()?;
        // Reached before anything is changed: what is changed has to be announced.
        let js = self.nats.jetstream().await?;
        if !self.dry_run {
            shared::directory::Directory::open(&js).await?;
        }
        let plan = match store.apply_declared(&read.declared, self.prune, self.dry_run).await? {
            Ok(plan) => plan,
            Err(clashes) => bail!("{}", file::tell(&read.located(clashes), &shown.to_string())),
        };
        self.print(&plan)?;
        if self.dry_run {
            return Ok(());
        }
        announce(&store, &js, &plan.connections).await?;
        for &gone in &plan.deleted {
            bury(&store, &js, gone).await?;
        }
        if !self.json {
            output::line("in force on every ingest")?;
        }
        Ok(())
    }

    fn print(&self, plan: &Plan) -> anyhow::Result<()> {
        if self.json {
            plan.steps.iter().try_for_each(output::json)?;
            return output::json(&serde_json::json!({
                "unchanged": plan.unchanged, "undeclared": plan.kept, "connections": plan.connections,
                "dry_run": self.dry_run,
            }));
        }
        for step in &plan.steps {
            let (sign, colour) = match step.action {
                Action::Create => ("+", "32"),
                Action::Change => ("~", "33"),
                Action::Delete => ("-", "31"),
            };
            output::line(&output::painted(
                colour,
                &format!("{sign} {}", output::plain(&step.what)),
            ))?;
            for field in &step.fields {
                output::line(&format!("    {}", output::plain(field)))?;
            }
        }
        for kept in &plan.kept {
            output::line(&format!("  {}: not in the file, stays", output::plain(kept)))?;
        }
        let done = if self.dry_run { "to change" } else { "changed" };
        let (changed, unchanged) = (plan.steps.len(), plan.unchanged);
        Ok(output::line(&format!("{done}: {changed}, as declared: {unchanged}"))?)
    }
}
