//! `tidegate link-codes`: creates, lists and revokes link codes.
//!
//! A code is printed only when it is created, because Postgres stores only its hash. The id of a
//! code is a prefix of that hash.

use crate::{output, settings::StoreSettings};
use shared::{
    domain::{AgentId, ConnectionId, OrgId, Platform, Surface},
    operations::{MAX_LINK_CODE_TTL, OperationError},
    runtime::config,
    store::{ConnectionSummary, LinkCodeRecord, NewLinkCode},
};
use std::time::Duration;

const COLUMNS: [output::Column; 7] = [
    ("id", false),
    ("state", false),
    ("agent", false),
    ("surfaces", false),
    ("connection", false),
    ("expires", false),
    ("used by", false),
];

/// Number of newest codes in which `create` searches its new code.
const NEWEST: i64 = 100;

/// Commands of `tidegate link-codes`.
#[derive(Debug, clap::Subcommand)]
pub enum LinkCodes {
    /// Create a code that links a conversation to an agent, and print it.
    Create(Create),
    /// List link codes and their states, newest first.
    List(List),
    /// Revoke an unused link code.
    Revoke(Revoke),
}

/// Arguments of `tidegate link-codes create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Organization of the agent.
    #[arg(long)]
    org: OrgId,
    /// Agent id.
    #[arg(long)]
    agent: AgentId,
    /// Platform that accepts the code.
    #[arg(long, default_value = "slack")]
    platform: Platform,
    /// Types of conversations that accept the code: dm, channel, or both, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "dm")]
    surfaces: Vec<Surface>,
    /// Connection that accepts the code. Default: any preview connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Lifetime of the code, at most 1h.
    #[arg(long, default_value = "15m", value_parser = config::parse_duration)]
    ttl: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate link-codes list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Maximum number of link codes.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, one link code per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate link-codes revoke`.
#[derive(Debug, clap::Args)]
pub struct Revoke {
    /// Id of the link code, as tidegate link-codes list prints it.
    id: String,
    #[command(flatten)]
    store: StoreSettings,
}

impl LinkCodes {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            LinkCodes::Create(create) => create.run().await,
            LinkCodes::List(list) => list.run().await,
            LinkCodes::Revoke(revoke) => revoke.run().await,
        }
    }
}

impl Create {
    async fn run(self) -> anyhow::Result<()> {
        let is_allowed = self.ttl <= MAX_LINK_CODE_TTL;
        anyhow::ensure!(is_allowed, "--ttl is above the maximum of 1h; pass a shorter time");
        let new = NewLinkCode {
            org: self.org,
            agent: self.agent,
            platform: self.platform,
            surfaces: self.surfaces,
            connection: self.connection,
            ttl: self.ttl,
        };
        let store = self.store.open()?;
        let code = self.store.operations(&store)?.create_link_code(&new).await?;
        let is_preview = |c: &ConnectionSummary| c.preview_mode;
        if new.connection.is_none()
            && !store.connection_summaries(None).await?.iter().any(is_preview)
        {
            output::print_warning(
                "no conversation accepts this code: no connection has preview_mode; \
                 pass --connection with an id that tidegate connections list prints",
            );
        }
        if self.json {
            let (id, ttl) = (code.hash().id(), new.ttl.as_secs());
            let created = store.link_codes(NEWEST).await?;
            let expires_at = created.into_iter().find(|new| new.id == id);
            let expires_at = expires_at.and_then(|new| new.expires_at);
            return output::print_json(&serde_json::json!({
                "id": id, "code": code.reveal(), "ttl_seconds": ttl, "expires_at": expires_at,
            }));
        }
        Ok(output::print_line(&code.reveal())?)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let codes = self.store.open()?.link_codes(i64::from(self.limit)).await?;
        if codes.is_empty() {
            return output::not_found("no link codes found");
        }
        output::print_list(&codes, self.json, &COLUMNS, row)
    }
}

fn row(code: &LinkCodeRecord) -> Vec<String> {
    let connection = code.connection.map(|id| id.to_string());
    let used_by = code.consumed_user.as_ref().map(|user| {
        let channel = code.consumed_channel.as_ref().map(|channel| format!(" in {channel}"));
        format!("{user}{}", channel.unwrap_or_default())
    });
    vec![
        code.id.clone(),
        code.state.clone(),
        format!("{}/{}", code.org, code.agent),
        code.surfaces.join(","),
        connection.unwrap_or_else(|| "any preview".into()),
        output::or_dash(code.expires_at.as_deref()),
        output::or_dash(used_by.as_deref()),
    ]
}

impl Revoke {
    async fn run(self) -> anyhow::Result<()> {
        let id = output::sanitize(&self.id);
        let operations = self.store.operations(&self.store.open()?)?;
        match operations.revoke_link_code(&self.id).await {
            Err(OperationError::NotFound(_)) => {
                return output::not_found(format!(
                    "no open link code {id} found; list them with tidegate link-codes list"
                ));
            }
            revoked => revoked?,
        }
        Ok(output::print_line(&format!("link code {id} revoked"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_link_codes() {
        let open = LinkCodeRecord {
            id: "9f86d081884c7d65".into(),
            org: "acme".parse().expect("an id"),
            agent: "helper".parse().expect("an id"),
            platform: Platform::Slack,
            surfaces: vec!["dm".into(), "channel".into()],
            connection: None,
            created_by: "tidegate".into(),
            state: "open".into(),
            created_at: None,
            expires_at: Some("2026-01-31T12:00:00Z".into()),
            consumed_connection: None,
            consumed_channel: None,
            consumed_user: None,
        };
        insta::assert_snapshot!(output::render_table(&COLUMNS, &[open], row), @r"
        id                state  agent        surfaces    connection   expires               used by
        9f86d081884c7d65  open   acme/helper  dm,channel  any preview  2026-01-31T12:00:00Z  -
        ");
    }
}
