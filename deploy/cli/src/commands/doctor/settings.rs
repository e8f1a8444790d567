//! Settings of `tidegate doctor` that other commands do not take in this form: all are optional.

use reqwest::Url;
use shared::{runtime::config, secrets::KeyRing, store::KeyRings};

/// Slack, the keyring of the tokens that it is asked about, and that of signing secrets.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct SlackSettings {
    /// Keyring of tokens. Without it connections are not compared with their tokens.
    #[arg(
        long,
        env = "TIDEGATE_TOKEN_KEYRING",
        value_name = "RING",
        value_parser = config::parse_key_ring,
        hide_env_values = true
    )]
    pub(super) token_keyring: Option<KeyRing>,
    /// Keyring of signing secrets. Without it doctor does not check that it opens them.
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
    /// Returns the rings. Those that are not set are empty.
    pub(super) fn rings(&self) -> KeyRings {
        KeyRings {
            signing: self.signing_secret_keyring.clone().unwrap_or_default(),
            tokens: self.token_keyring.clone().unwrap_or_default(),
        }
    }
}
