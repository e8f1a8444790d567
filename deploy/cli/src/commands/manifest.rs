//! `tidegate manifest`: prints the manifest of a Slack app for this deployment, and on stderr the
//! feature and reason of each event and scope.

use crate::{
    app_manifest::{self, AppSettings},
    output,
};

/// Arguments of `tidegate manifest`.
#[derive(Debug, clap::Args)]
pub struct Manifest {
    #[command(flatten)]
    app: AppSettings,
    /// Name of the app.
    #[arg(long, default_value = "Lobu")]
    name: String,
}

impl Manifest {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let AppSettings { slash_command, features, .. } = &self.app;
        let manifest = app_manifest::build(slash_command, &self.app.url()?, &self.name, features);
        eprintln!("{}", app_manifest::explain(features));
        Ok(output::print_line(&serde_json::to_string_pretty(&manifest)?)?)
    }
}
