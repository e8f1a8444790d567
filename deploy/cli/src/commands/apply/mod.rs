//! `tidegate apply`: applies the organizations, agents, members, apps and connections of a [`file`].
//!
//! Prints a plan as a diff, and returns when every ingest has applied it. The plan is one
//! transaction: after an error nothing is applied. A second run changes nothing. Rows that the file
//! does not declare stay, except with `--prune`.

mod file;
mod schema;

use crate::{
    output,
    settings::{Keyrings, NatsSettings, StoreSettings},
};
use anyhow::{Context, bail};
use shared::store::{Plan, PlanAction, Prune};
use std::{fs, path::PathBuf};

/// Maximum number of undeclared objects that a plan names.
const KEPT_SHOWN: usize = 20;

/// Arguments of `tidegate apply`.
#[derive(Debug, clap::Args)]
pub struct Apply {
    /// File that declares organizations, agents, members, apps and connections.
    #[arg(short, long, value_name = "FILE", default_value = "tidegate.toml")]
    file: PathBuf,
    /// Only print what would change.
    #[arg(long)]
    dry_run: bool,
    /// Delete what the file does not declare, connections with their data. Requires --yes if
    /// something would be deleted.
    #[arg(long)]
    prune: bool,
    /// Allow --prune to delete.
    #[arg(long)]
    yes: bool,
    /// Print JSON: one line per step, then the summary.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    keyrings: Keyrings,
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
        let store = self.store.open_with(self.keyrings.rings())?;
        let (js, operations) = (self.nats.jetstream().await?, self.store.operations(&store)?);
        let prune = match (self.prune, self.yes) {
            (false, _) => Prune::Nothing,
            (true, false) => Prune::Undeclared,
            (true, true) => Prune::UndeclaredApps,
        };
        if self.prune && !self.yes && !self.dry_run {
            let plan =
                operations.apply_declarations(&js, &file.declared, prune, true, |_| ()).await?;
            let plan = plan.unwrap_or_default();
            let deleted = plan.steps.iter().filter(|step| step.action == PlanAction::Delete);
            let deleted = deleted.count();
            if deleted > 0 {
                self.print(&plan, true)?;
                bail!(
                    "would delete what the file does not declare: {deleted}; pass --yes to do it"
                );
            }
        }
        let mut printed = Ok(());
        let print = |plan: &Plan| printed = self.print(plan, self.dry_run);
        let applied =
            operations.apply_declarations(&js, &file.declared, prune, self.dry_run, print);
        if let Err(conflicts) = applied.await? {
            bail!("{}", file::render(&file.locate(conflicts), &shown.to_string()));
        }
        printed?;
        if !self.json && !self.dry_run {
            output::print_line("applied on every ingest")?;
        }
        Ok(())
    }

    fn print(&self, plan: &Plan, dry_run: bool) -> anyhow::Result<()> {
        if self.json {
            plan.steps.iter().try_for_each(output::print_json)?;
            return output::print_json(&serde_json::json!({
                "unchanged": plan.unchanged, "undeclared": plan.kept,
                "connections": plan.connections, "dry_run": dry_run,
            }));
        }
        for step in &plan.steps {
            let (sign, color) = match step.action {
                PlanAction::Create => ("+", "32"),
                PlanAction::Change => ("~", "33"),
                PlanAction::Delete => ("-", "31"),
            };
            output::print_line(&output::colorize(
                color,
                &format!("{sign} {}", output::sanitize(&step.what)),
            ))?;
            for field in &step.fields {
                output::print_line(&format!("    {}", output::sanitize(field)))?;
            }
        }
        for kept in plan.kept.iter().take(KEPT_SHOWN) {
            output::print_line(&format!(
                "  {}: not in the file, unchanged",
                output::sanitize(kept)
            ))?;
        }
        if plan.kept.len() > KEPT_SHOWN {
            let more = plan.kept.len() - KEPT_SHOWN;
            output::print_line(&format!("  and {more} more that are not in the file, unchanged"))?;
        }
        let done = if dry_run { "to change" } else { "changed" };
        let (changed, unchanged) = (plan.steps.len(), plan.unchanged);
        Ok(output::print_line(&format!("{done}: {changed}, unchanged: {unchanged}"))?)
    }
}
