//! `tidegate manifest`: prints the manifest of a Slack app for this deployment.

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
        let manifest = app_manifest::build(&self.app.slash_command, &self.app.url()?, &self.name);
        Ok(output::print_line(&serde_json::to_string_pretty(&manifest)?)?)
    }
}
