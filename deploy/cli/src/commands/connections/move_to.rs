//! `tidegate connections move`: moves a connection to another organization.

use super::{Change, LIST};
use crate::output;
use shared::domain::{AgentId, OrgId};

/// Arguments of `tidegate connections move`.
#[derive(Debug, clap::Args)]
pub struct Move {
    /// Organization to move the connection to.
    #[arg(long)]
    org: OrgId,
    /// Agent of that organization for conversations without a binding.
    #[arg(long)]
    agent: Option<AgentId>,
    #[command(flatten)]
    change: Change,
}

impl Move {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let Change { connection: id, store, nats } = self.change;
        let (js, operations) = (nats.jetstream().await?, store.operations(&store.open()?)?);
        let moved = operations.move_connection(&js, id, &self.org, self.agent.as_ref()).await;
        output::require_found(moved, LIST)?;
        Ok(output::print_line(&format!("connection {id} moved to organization {}", self.org))?)
    }
}
