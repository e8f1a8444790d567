//! `tidegate apply`: applies the organizations, agents, members, apps and connections of a file.
//!
//! Prints a plan as a diff, and returns when every ingest has applied it. The plan is one
//! transaction: after an error nothing is applied. A second run changes nothing. Without `--prune`,
//! objects that the file does not declare stay. The control API applies files with the same
//! operation.

mod api;
mod database;
mod tokens;

use crate::output;
use anyhow::{Context, bail};
use api::ApiSettings;
use database::Database;
use shared::{
    operations::{FileProblem, read_declarations},
    store::{ApplyMode, PlanAction, PlanSummary},
};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};
use tokens::TokenCheck;

/// Maximum number of undeclared objects that the output lists.
const KEPT_SHOWN: usize = 20;

/// Arguments of `tidegate apply`.
#[derive(Debug, clap::Args)]
pub struct Apply {
    /// File that declares organizations, agents, members, apps and connections.
    #[arg(short, long, value_name = "FILE", default_value = "tidegate.toml")]
    file: PathBuf,
    /// Print the plan without applying it.
    #[arg(long)]
    dry_run: bool,
    /// Delete objects that the file does not declare, connections with their data. Requires --yes
    /// to delete.
    #[arg(long)]
    prune: bool,
    /// Allow --prune to delete.
    #[arg(long)]
    yes: bool,
    /// Print JSON: one line per step, then the summary.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tokens: TokenCheck,
    // Before `api`: parsing `api` consumes the argument whose presence `database` checks.
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    api: ApiSettings,
}

impl Apply {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let shown = self.file.display().to_string();
        let text = fs::read_to_string(&self.file)
            .with_context(|| format!("failed to read {shown}; pass --file"))?;
        let folder = self.file.parent().unwrap_or(&self.file);
        let mut secrets = BTreeMap::new();
        let file = read_declarations(&text, &mut |reference| {
            let secret = secret(reference, folder)?;
            secrets.insert(reference.to_owned(), secret.clone());
            Ok(secret)
        });
        let file = file.or_else(|problems| bail!("{}", render(&problems, &shown)))?;
        let wrong = self.tokens.run(&file.declared.connections).await?;
        if !wrong.is_empty() {
            bail!("{}", render(&file.locate(wrong), &shown));
        }
        let mode = ApplyMode { prune: self.prune, confirmed: self.yes, dry_run: self.dry_run };
        let mut printed = Ok(());
        let applied = match (self.api.target(), &self.database.0) {
            (Some(target), _) => {
                let applied = api::apply(target, &text, &secrets, mode).await?;
                applied.inspect(|plan| printed = self.print(plan))
            }
            (None, Some(database)) => {
                let print = |plan: &PlanSummary| printed = self.print(plan);
                database.apply(&file, mode, print).await?
            }
            (None, None) => bail!("no database is set; set TIDEGATE_POSTGRES_URL, or pass --api"),
        };
        let plan = applied.or_else(|problems| bail!("{}", render(&problems, &shown)))?;
        printed?;
        if !plan.applied && !self.dry_run {
            let deleted = plan.steps.iter().filter(|step| step.action == PlanAction::Delete);
            bail!(
                "would delete objects that the file does not declare: {}; pass --yes to do it",
                deleted.count()
            );
        }
        if !self.json && !self.dry_run {
            output::print_line("applied on every ingest")?;
        }
        Ok(())
    }

    fn print(&self, plan: &PlanSummary) -> anyhow::Result<()> {
        if self.json {
            plan.steps.iter().try_for_each(output::print_json)?;
            return output::print_json(&serde_json::json!({
                "unchanged": plan.unchanged, "undeclared": plan.undeclared,
                "connections": plan.connections, "dry_run": !plan.applied,
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
        for kept in plan.undeclared.iter().take(KEPT_SHOWN) {
            output::print_line(&format!(
                "  {}: not in the file, unchanged",
                output::sanitize(kept)
            ))?;
        }
        if plan.undeclared.len() > KEPT_SHOWN {
            let more = plan.undeclared.len() - KEPT_SHOWN;
            output::print_line(&format!("  and {more} more that are not in the file, unchanged"))?;
        }
        let done = if plan.applied { "changed" } else { "to change" };
        let (changed, unchanged) = (plan.steps.len(), plan.unchanged);
        Ok(output::print_line(&format!("{done}: {changed}, unchanged: {unchanged}"))?)
    }
}

/// Returns one line per problem, then `nothing applied`.
fn render(problems: &[FileProblem], file: &str) -> String {
    let lines = problems.iter().map(|p| format!("{file}:{}: {}", p.line, p.text));
    lines.chain(["nothing applied".to_owned()]).collect::<Vec<_>>().join("\n")
}

/// Returns the secret of a reference. Paths are relative to the folder of the file.
fn secret(reference: &str, folder: &Path) -> Result<String, String> {
    match reference.split_once(':') {
        Some(("env", name)) => env::var(name).map_err(|_| {
            format!("environment variable {name} is not set; set it, or change the reference")
        }),
        Some((_, path)) => {
            fs::read_to_string(folder.join(path)).map(|text| text.trim_end().to_owned()).map_err(
                |error| format!("failed to read {path} ({error}); write the secret to this file"),
            )
        }
        None => Err("expected env:<name> or file:<path>".to_owned()),
    }
}
