//! Settings of `tidegate doctor`. Unlike in other commands, the keyrings are optional.

use reqwest::Url;
use shared::{runtime::config, secrets::KeyRing, store::KeyRings};

/// URL of Slack's Web API, and the keyrings of tokens and signing secrets.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct SlackSettings {
    /// Keyring of tokens. Without it, connections are not compared with their tokens.
    #[arg(
        long,
        env = "TIDEGATE_TOKEN_KEYRING",
        value_name = "RING",
        value_parser = config::parse_key_ring,
        hide_env_values = true
    )]
    pub(super) token_keyring: Option<KeyRing>,
    /// Keyring of signing secrets. Without it, their decryption is not checked.
    #[arg(
        long,
        env = "TIDEGATE_SIGNING_SECRET_KEYRING",
        value_name = "RING",
        value_parser = config::parse_key_ring,
        hide_env_values = true
    )]
    pub(super) signing_secret_keyring: Option<KeyRing>,
    /// Base URL of Slack's Web API.
    #[arg(
        long,
        env = "TIDEGATE_SLACK_API_URL",
        value_name = "URL",
        default_value = "https://slack.com/api/"
    )]
    pub(super) slack_api_url: Url,
}

impl SlackSettings {
    /// Returns both keyrings. A keyring that is not set is empty.
    pub(super) fn rings(&self) -> KeyRings {
        KeyRings {
            signing: self.signing_secret_keyring.clone().unwrap_or_default(),
            tokens: self.token_keyring.clone().unwrap_or_default(),
        }
    }
}
