//! `tidegate manifest`: prints the manifest of a Slack app for this deployment.

use crate::{
    app_manifest::{self, Reached},
    output,
};

/// Settings of `tidegate manifest`.
#[derive(Debug, clap::Args)]
pub struct Manifest {
    #[command(flatten)]
    reached: Reached,
    /// What the app is called.
    #[arg(long, default_value = "Lobu")]
    name: String,
}

impl Manifest {
    /// Runs it.
    pub fn run(self) -> anyhow::Result<()> {
        let manifest = app_manifest::build(&self.reached.command, &self.reached.url()?, &self.name);
        Ok(output::line(&serde_json::to_string_pretty(&manifest)?)?)
    }
}
