//! `tidegate api-keys`: creates, lists and revokes keys of the control API.
//!
//! A key is printed only when it is created, because Postgres stores only its hash. The id of a key
//! is a prefix of that hash.

use crate::{output, settings::StoreSettings};
use shared::{
    domain::{ApiKeyRole, OrgId},
    operations::OperationError,
    runtime::config,
    store::{ApiKeyRecord, NewApiKey},
};
use std::time::Duration;

const COLUMNS: [output::Column; 7] = [
    ("id", false),
    ("state", false),
    ("role", false),
    ("organization", false),
    ("expires", false),
    ("last used", false),
    ("name", false),
];

/// Commands of `tidegate api-keys`.
#[derive(Debug, clap::Subcommand)]
pub enum ApiKeys {
    /// Create a key and print it. It cannot be printed again.
    Create(Create),
    /// List keys and their states, newest first.
    List(List),
    /// Revoke a key. Requests with the key fail immediately.
    Revoke(Revoke),
}

/// Arguments of `tidegate api-keys create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Role: viewer, operator or owner.
    #[arg(long)]
    role: ApiKeyRole,
    /// Organization that the key is limited to. Required unless --all-orgs is passed.
    #[arg(long, required_unless_present = "all_orgs", conflicts_with = "all_orgs")]
    org: Option<OrgId>,
    /// Create a key for all organizations.
    #[arg(long)]
    all_orgs: bool,
    /// Display name of the key.
    #[arg(long, default_value = "")]
    name: String,
    /// Lifetime of the key, at most 400d.
    #[arg(long, default_value = "90d", value_parser = config::parse_duration)]
    ttl: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate api-keys list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only list keys of this organization.
    #[arg(long)]
    org: Option<OrgId>,
    /// Maximum number of keys.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, one key per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate api-keys revoke`.
#[derive(Debug, clap::Args)]
pub struct Revoke {
    /// Id of the key, as tidegate api-keys list prints it.
    id: String,
    #[command(flatten)]
    store: StoreSettings,
}

impl ApiKeys {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            ApiKeys::Create(create) => create.run().await,
            ApiKeys::List(list) => list.run().await,
            ApiKeys::Revoke(revoke) => revoke.run().await,
        }
    }
}

impl Create {
    async fn run(self) -> anyhow::Result<()> {
        let new = NewApiKey { name: self.name, role: self.role, org: self.org, ttl: self.ttl };
        let operations = self.store.operations(&self.store.open()?)?;
        let key = operations.create_api_key(&new).await?;
        if self.json {
            let (key, id) = (key.reveal(), key.hash().id());
            return output::print_json(&serde_json::json!({ "key": key, "id": id }));
        }
        Ok(output::print_line(&key.reveal())?)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let keys = self.store.open()?.api_keys(self.org.as_ref(), i64::from(self.limit)).await?;
        if keys.is_empty() {
            return output::not_found("no API keys found");
        }
        output::print_list(&keys, self.json, &COLUMNS, row)
    }
}

fn row(key: &ApiKeyRecord) -> Vec<String> {
    vec![
        key.id.clone(),
        key.state.clone(),
        key.role.clone(),
        key.organization.clone().unwrap_or_else(|| "all".into()),
        output::sanitize(&key.expires_at),
        output::or_dash(key.last_used_at.as_deref()),
        output::or_dash(Some(&key.name)),
    ]
}

impl Revoke {
    async fn run(self) -> anyhow::Result<()> {
        let id = output::sanitize(&self.id);
        let operations = self.store.operations(&self.store.open()?)?;
        match operations.revoke_api_key(&self.id).await {
            Err(OperationError::NotFound(_)) => output::not_found(format!(
                "no valid API key {id} found; list them with tidegate api-keys list"
            )),
            revoked => {
                revoked?;
                Ok(output::print_line(&format!("API key {id} revoked"))?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_api_keys() {
        let key: ApiKeyRecord = serde_json::from_value(serde_json::json!({
            "id": "9f86d081884c7d65", "name": "backend", "role": "operator",
            "organization": null, "state": "valid", "created_by": "operator:alice",
            "created_at": "2026-01-31T12:00:00Z", "expires_at": "2026-04-30T12:00:00Z",
            "last_used_at": null,
        }))
        .expect("a key");
        let of_org = ApiKeyRecord { organization: Some("acme".into()), ..key.clone() };
        insta::assert_snapshot!(output::render_table(&COLUMNS, &[key, of_org], row), @r"
        id                state  role      organization  expires               last used  name
        9f86d081884c7d65  valid  operator  all           2026-04-30T12:00:00Z  -          backend
        9f86d081884c7d65  valid  operator  acme          2026-04-30T12:00:00Z  -          backend
        ");
    }
}
