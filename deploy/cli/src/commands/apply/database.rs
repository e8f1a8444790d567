//! `tidegate apply` without `--api`: applies the file with Postgres, NATS and keyrings.

use crate::settings::{Keyrings, NatsSettings, StoreSettings};
use clap::{ArgMatches, Args, Command, Error, FromArgMatches};
use shared::{
    operations::{DeclarationFile, FileProblem},
    store::{ApplyMode, Plan, PlanSummary},
};

/// Settings of Postgres, NATS and the keyrings. `None` if `--api` is passed.
#[derive(Debug)]
pub struct Database(pub Option<DatabaseSettings>);

/// Settings with which this command applies a file itself.
#[derive(Debug, clap::Args)]
pub struct DatabaseSettings {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    keyrings: Keyrings,
    #[command(flatten)]
    nats: NatsSettings,
}

impl DatabaseSettings {
    /// Applies a file. Calls `review` with the plan after its commit.
    ///
    /// Returns the plan, or the problems in the file.
    pub async fn apply(
        &self,
        file: &DeclarationFile,
        mode: ApplyMode,
        review: impl FnOnce(&PlanSummary),
    ) -> anyhow::Result<Result<PlanSummary, Vec<FileProblem>>> {
        let store = self.store.open_with(self.keyrings.rings())?;
        let (js, operations) = (self.nats.jetstream().await?, self.store.operations(&store)?);
        let review = |plan: &Plan| review(&plan.into());
        let applied = operations.apply_declarations(&js, &file.declared, mode, review).await?;
        let applied = applied.map_err(|conflicts| file.locate(conflicts));
        Ok(applied.map(|plan| PlanSummary::from(&plan)))
    }
}

// Not derived: required settings are required only without `--api`.
impl Args for Database {
    fn augment_args(command: Command) -> Command {
        DatabaseSettings::augment_args(command).mut_args(|arg| match arg.is_required_set() {
            true => arg.required(false).required_unless_present("api"),
            false => arg,
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Database {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        match matches.contains_id("api") {
            true => Ok(Self(None)),
            false => Ok(Self(Some(DatabaseSettings::from_arg_matches(matches)?))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
