//! `tidegate claims`: mint a link claim. The code is printed once; only its hash is stored.

use crate::StoreSettings;
use shared::{
    config,
    store::NewClaim,
    types::{AgentId, ConnectionId, OrgId, Surface},
};
use std::time::Duration;

/// Longest a claim may live.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Claims {
    /// Mint a code that links a conversation to an agent.
    Mint(Mint),
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

impl Claims {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        let Claims::Mint(mint) = self;
        anyhow::ensure!(mint.ttl <= TTL_MAX, "--ttl is too long: a claim lives an hour at most");
        let claim = NewClaim {
            org: mint.org,
            agent: mint.agent,
            surfaces: mint.surfaces,
            connection: mint.connection,
            ttl: mint.ttl,
            created_by: "tidegate".into(),
        };
        let code = mint.store.open()?.mint_claim(&claim).await?.reveal();
        if mint.json {
            println!("{}", serde_json::json!({ "code": code, "ttl_seconds": claim.ttl.as_secs() }));
        } else {
            println!("{code}");
        }
        Ok(())
    }
}
