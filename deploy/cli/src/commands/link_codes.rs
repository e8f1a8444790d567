//! `tidegate claims`: link claims. A code is printed once, when it is minted; only its hash is stored. From then on a claim
//! goes by its id, the beginning of that hash.

use crate::{output, settings::StoreSettings};
use anyhow::ensure;
use shared::{
    config,
    store::NewClaim,
    types::{AgentId, ConnectionId, OrgId, Platform, Surface},
};
use std::time::Duration;

/// Longest a claim may live.
const TTL_MAX: Duration = Duration::from_secs(3600);

const COLUMNS: [output::Column; 7] = [
    ("id", false),
    ("state", false),
    ("agent", false),
    ("surfaces", false),
    ("connection", false),
    ("expires", false),
    ("used by", false),
];

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Claims {
    /// Mint a code that links a conversation to an agent.
    Mint(Mint),
    /// The newest first, and what became of each.
    List(List),
    /// Take a claim back that nobody used yet.
    Revoke(Revoke),
}

/// Settings of `tidegate claims mint`.
#[derive(Debug, clap::Args)]
pub struct Mint {
    #[command(flatten)]
    store: StoreSettings,
    /// The agent's organization.
    #[arg(long)]
    org: OrgId,
    /// The agent.
    #[arg(long)]
    agent: AgentId,
    /// The platform it is good on.
    #[arg(long, default_value = "slack")]
    platform: Platform,
    /// Where the code may be used: dm, channel, or both, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "dm")]
    surfaces: Vec<Surface>,
    /// The connection it is good on; any preview connection, if unset.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// How long it is good; 1h at most.
    #[arg(long, default_value = "15m", value_parser = config::duration)]
    ttl: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate claims list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    /// How many at most.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate claims revoke`.
#[derive(Debug, clap::Args)]
pub struct Revoke {
    #[command(flatten)]
    store: StoreSettings,
    /// The claim's id, as `tidegate claims list` has it.
    id: String,
}

impl Claims {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Claims::Mint(mint) => mint.run().await,
            Claims::List(list) => list.run().await,
            Claims::Revoke(revoke) => revoke.run().await,
        }
    }
}

impl Mint {
    async fn run(self) -> anyhow::Result<()> {
        ensure!(self.ttl <= TTL_MAX, "--ttl is too long: a claim lives an hour at most");
        let claim = NewClaim {
            org: self.org,
            agent: self.agent,
            platform: self.platform,
            surfaces: self.surfaces,
            connection: self.connection,
            ttl: self.ttl,
            created_by: "tidegate".into(),
        };
        let code = self.store.open()?.mint_claim(&claim).await?.reveal();
        if self.json {
            let ttl = claim.ttl.as_secs();
            return output::json(&serde_json::json!({ "code": code, "ttl_seconds": ttl }));
        }
        Ok(output::line(&code)?)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let claims = self.store.open()?.claims(i64::from(self.limit)).await?;
        if self.json {
            return claims.iter().try_for_each(output::json);
        }
        let rows: Vec<_> = claims
            .iter()
            .map(|claim| {
                let connection = claim.connection.map(|id| id.to_string());
                let used = claim.consumed_user.as_ref().map(|user| {
                    let channel = claim.consumed_channel.as_ref().map(|c| format!(" in {c}"));
                    format!("{user}{}", channel.unwrap_or_default())
                });
                vec![
                    claim.id.clone(),
                    claim.state.clone(),
                    format!("{}/{}", claim.org, claim.agent),
                    claim.surfaces.join(","),
                    connection.unwrap_or_else(|| "any preview".into()),
                    output::or_dash(claim.expires_at.as_deref()),
                    output::or_dash(used.as_deref()),
                ]
            })
            .collect();
        Ok(output::table(&COLUMNS, &rows)?)
    }
}

impl Revoke {
    async fn run(self) -> anyhow::Result<()> {
        ensure!(
            self.store.open()?.revoke_claim(&self.id).await?,
            "there is no open claim {}: tidegate claims list says which there are",
            output::plain(&self.id)
        );
        Ok(output::line(&format!("{} is good no more", output::plain(&self.id)))?)
    }
}
