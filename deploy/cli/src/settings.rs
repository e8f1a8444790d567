//! Settings and arguments that several commands take: commands do not import each other.

use async_nats::jetstream;
use shared::{
    config::{self, Nats, Postgres},
    secrets::KeyRing,
    store::{Plans, Rings, Store},
    types::{AgentId, OrgId},
};
use std::str::FromStr;

/// Postgres, and the keyrings that open its encrypted columns.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct StoreSettings {
    #[command(flatten)]
    postgres: Postgres,
    /// Keyring of signing secrets, as k2:<base64>,k1:<base64> or file:<path>.
    #[arg(
        long,
        env = "TIDEGATE_SIGNING_SECRET_KEYRING",
        value_name = "RING",
        value_parser = config::key_ring,
        hide_env_values = true
    )]
    signing_secret_keyring: KeyRing,
    /// Keyring of tokens, payloads and agents' secrets, in the same form.
    #[arg(
        long,
        env = "TIDEGATE_TOKEN_KEYS",
        value_name = "RING",
        value_parser = config::key_ring,
        hide_env_values = true
    )]
    token_keys: KeyRing,
}

impl StoreSettings {
    /// Returns the store. The first statement connects.
    pub fn open(&self) -> anyhow::Result<Store> {
        let rings =
            Rings { signing: self.signing_secret_keyring.clone(), tokens: self.token_keys.clone() };
        Ok(Store::new(&self.postgres, rings, Plans::PerCall)?)
    }
}

/// NATS.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct NatsSettings {
    #[command(flatten)]
    pub nats: Nats,
}

impl NatsSettings {
    /// Returns JetStream. A server that is down is noticed by the first request.
    pub async fn jetstream(&self) -> anyhow::Result<jetstream::Context> {
        Ok(config::jetstream(self.nats.connect("operator").await?))
    }
}

/// Agent on the command line: `<organization>/<agent>`.
#[derive(Debug, Clone)]
pub struct AgentName {
    pub org: OrgId,
    pub agent: AgentId,
}

impl FromStr for AgentName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (org, agent) = text.split_once('/').ok_or("expected <organization>/<agent>")?;
        let org = org.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { org, agent: agent.parse().map_err(|error| format!("{error}"))? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_name_has_organization() {
        let name: AgentName = "acme/helper".parse().expect("a name");
        assert_eq!((name.org.as_str(), name.agent.as_str()), ("acme", "helper"));
        assert!("helper".parse::<AgentName>().is_err());
        assert!("a.b/helper".parse::<AgentName>().is_err());
    }
}
