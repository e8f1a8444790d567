//! `tidegate connections enable-token-rotation`: lets workers refresh an expiring bot token.

use crate::{
    output,
    settings::{self, StoreSettings, TokenKeyring},
};
use anyhow::ensure;
use shared::{domain::ConnectionId, runtime::config, secrets::Secret, store::NewTokenRotation};
use std::time::Duration;

/// Arguments of `tidegate connections enable-token-rotation`.
#[derive(Debug, clap::Args)]
pub struct EnableTokenRotation {
    /// Connection id.
    connection: ConnectionId,
    /// Client id of the Slack app.
    #[arg(long)]
    client_id: String,
    /// Client secret of the Slack app, as file:<path>, env:<name>, or - for standard input.
    #[arg(long, value_parser = settings::secret)]
    client_secret: Secret,
    /// Refresh token that Slack returned with the bot token, in the same form.
    #[arg(long, value_parser = settings::secret)]
    refresh_token: Secret,
    /// Remaining validity of the bot token.
    #[arg(long, default_value = "12h", value_parser = config::parse_duration)]
    expires_in: Duration,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    keyring: TokenKeyring,
}

impl EnableTokenRotation {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let (id, store) = (self.connection, self.store.open_with(self.keyring.rings())?);
        ensure!(
            super::find(&store, id).await?.has_bot_token,
            "connection {id} has no bot token; declare it with tidegate apply"
        );
        let rotation = NewTokenRotation {
            connection: id,
            client_id: self.client_id,
            client_secret: self.client_secret,
            refresh_token: self.refresh_token,
            expires_in: self.expires_in,
        };
        self.store.operations(&store)?.enable_token_rotation(&rotation).await?;
        Ok(output::print_line(&format!("token rotation of connection {id} enabled"))?)
    }
}
