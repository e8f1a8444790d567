//! `tidegate manifest`: prints the manifest of a Slack app for this deployment.

use crate::{
    app_manifest::{self, AppSettings, Delivery},
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
    /// Receive webhooks by Socket Mode, for tidegate dev --slack.
    #[arg(long)]
    socket_mode: bool,
}

impl Manifest {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let command = &self.app.slash_command;
        let manifest = match self.socket_mode {
            true => app_manifest::build(command, Delivery::SocketMode, &self.name),
            false => app_manifest::build(command, Delivery::Http(&self.app.url()?), &self.name),
        };
        Ok(output::print_line(&serde_json::to_string_pretty(&manifest)?)?)
    }
}
