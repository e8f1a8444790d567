//! `tidegate manifest`: prints the manifest of a Slack app for this deployment. Prints the feature
//! and reason of each event and scope to standard error.

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
    /// Use Socket Mode, for tidegate dev --slack.
    #[arg(long)]
    socket_mode: bool,
}

impl Manifest {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        let AppSettings { slash_command, features, .. } = &self.app;
        let url = if self.socket_mode { None } else { Some(self.app.url()?) };
        let delivery = url.as_deref().map_or(Delivery::SocketMode, Delivery::Http);
        let manifest = app_manifest::build(slash_command, delivery, &self.name, features);
        output::print_note(&app_manifest::explain(features));
        Ok(output::print_line(&serde_json::to_string_pretty(&manifest)?)?)
    }
}
