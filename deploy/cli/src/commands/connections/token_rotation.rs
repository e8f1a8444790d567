//! `tidegate connections enable-token-rotation`: lets workers refresh a bot token that expires.

use crate::{output, settings::StoreSettings};
use anyhow::ensure;
use shared::{config, secrets::Secret, store::NewRotation, types::ConnectionId};
use std::time::Duration;

/// Arguments of `tidegate connections enable-token-rotation`.
#[derive(Debug, clap::Args)]
pub struct EnableTokenRotation {
    /// Connection id.
    connection: ConnectionId,
    /// Client id of the Slack app.
    #[arg(long)]
    client_id: String,
    /// Client secret of the Slack app, as file:<path>, or as text that other users of this machine
    /// can see.
    #[arg(
        long,
        env = "TIDEGATE_CLIENT_SECRET",
        value_parser = config::secret,
        hide_env_values = true
    )]
    client_secret: Secret,
    /// Refresh token that Slack returned with the bot token, in the same form.
    #[arg(
        long,
        env = "TIDEGATE_REFRESH_TOKEN",
        value_parser = config::secret,
        hide_env_values = true
    )]
    refresh_token: Secret,
    /// Remaining validity of the bot token.
    #[arg(long, default_value = "12h", value_parser = config::duration)]
    expires_in: Duration,
    #[command(flatten)]
    store: StoreSettings,
}

impl EnableTokenRotation {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let (id, store) = (self.connection, self.store.open()?);
        let connection = store.hydrate_connection(id).await?;
        ensure!(
            connection.is_some_and(|connection| connection.bot_token.is_some()),
            "connection {id} has no bot token; declare it with tidegate apply"
        );
        let rotation = NewRotation {
            connection: id,
            client_id: self.client_id,
            client_secret: self.client_secret,
            refresh_token: self.refresh_token,
            expires_in: self.expires_in,
        };
        store.put_rotation(&rotation).await?;
        Ok(output::line(&format!("token rotation of connection {id} enabled"))?)
    }
}
