//! `tidegate connections rotation`: a connection's bot token is one that rotates, and workers keep it fresh from now on.
//!
//! In: what Slack gave with the token when the app was installed. Out: a row that workers refresh by. The token itself is
//! the connection's own; once it rotates it is theirs to change.

use crate::{output, settings::StoreSettings};
use anyhow::ensure;
use shared::{config, secrets::Secret, store::NewRotation, types::ConnectionId};
use std::time::Duration;

/// Settings of `tidegate connections rotation`.
#[derive(Debug, clap::Args)]
pub struct Rotation {
    /// The connection's id.
    connection: ConnectionId,
    /// The app's client id, as Slack's page of the app shows it.
    #[arg(long)]
    client_id: String,
    /// The app's client secret, as file:<path>; or the text itself, which other users of this machine may then see.
    #[arg(long, env = "TIDEGATE_CLIENT_SECRET", value_parser = config::secret, hide_env_values = true)]
    client_secret: Secret,
    /// The refresh token that came with the bot token, in the same form.
    #[arg(long, env = "TIDEGATE_REFRESH_TOKEN", value_parser = config::secret, hide_env_values = true)]
    refresh_token: Secret,
    /// How long the bot token is still good.
    #[arg(long, default_value = "12h", value_parser = config::duration)]
    expires_in: Duration,
    #[command(flatten)]
    store: StoreSettings,
}

impl Rotation {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        let (id, store) = (self.connection, self.store.open()?);
        let connection = store.hydrate_connection(id).await?;
        ensure!(
            connection.is_some_and(|connection| connection.bot_token.is_some()),
            "there is no connection {id} with a bot token: declare both in tidegate apply first"
        );
        let rotation = NewRotation {
            connection: id,
            client_id: self.client_id,
            client_secret: self.client_secret,
            refresh_token: self.refresh_token,
            expires_in: self.expires_in,
        };
        store.put_rotation(&rotation).await?;
        Ok(output::line(&format!("{id}: workers refresh its bot token from now on"))?)
    }
}
