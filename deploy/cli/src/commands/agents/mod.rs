//! `tidegate agents`: lists, shows, tests, pauses and resumes agents.
//!
//! `tidegate apply` creates, changes and deletes them.

mod test;

use crate::{
    output,
    settings::{AgentName, StoreSettings},
};
use shared::{domain::OrgId, store::AgentState};
use std::time::Duration;

const LIST: &str = "tidegate agents list";

const COLUMNS: [output::Column; 7] = [
    ("agent", false),
    ("mode", false),
    ("state", false),
    ("running", true),
    ("max", true),
    ("waiting", true),
    ("url", false),
];

/// Commands of `tidegate agents`.
#[derive(Debug, clap::Subcommand)]
pub enum Agents {
    /// List agents.
    List(List),
    /// Show an agent, without its secret.
    Show(AgentArgs),
    /// Send a signed test question to an agent, and check its answer. Needs no deployment.
    Test(Box<test::Test>),
    /// Pause an agent. No attempt begins; deliveries wait and do not expire.
    Pause(AgentArgs),
    /// Resume an agent.
    Resume(AgentArgs),
}

/// Arguments of `tidegate agents list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only list agents of this organization.
    #[arg(long)]
    org: Option<OrgId>,
    /// Print JSON, one agent per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of commands on one agent.
#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// Agent, as <organization>/<agent>.
    agent: AgentName,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

impl Agents {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Agents::List(list) => list.run().await,
            Agents::Show(named) => named.show().await,
            Agents::Test(test) => test.run().await,
            Agents::Pause(named) => named.set_paused(true).await,
            Agents::Resume(named) => named.set_paused(false).await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let agents = self.store.open()?.agent_states(self.org.as_ref(), None).await?;
        if agents.is_empty() {
            return output::not_found("no agents found");
        }
        output::print_list(&agents, self.json, &COLUMNS, row)
    }
}

fn row(agent: &AgentState) -> Vec<String> {
    vec![
        format!("{}/{}", agent.organization, agent.id),
        agent.mode.clone(),
        state(agent).into(),
        agent.running.to_string(),
        agent.max_concurrent.to_string(),
        agent.deliveries.to_string(),
        output::sanitize(&agent.url),
    ]
}

fn state(agent: &AgentState) -> &'static str {
    match (&agent.paused_at, &agent.circuit_opened_at) {
        (Some(_), _) => "paused",
        (None, Some(_)) => "circuit open",
        (None, None) => "active",
    }
}

impl AgentArgs {
    async fn show(self) -> anyhow::Result<()> {
        let AgentName { org, agent } = &self.agent;
        let found = self.store.open()?.agent_states(Some(org), Some(agent)).await?;
        let Some(found) = found.first() else {
            return output::not_found(format!(
                "agent {org}/{agent} not found; list them with {LIST}"
            ));
        };
        if self.json {
            return output::print_json(found);
        }
        Ok(output::print_line(&render(found))?)
    }

    async fn set_paused(self, pause: bool) -> anyhow::Result<()> {
        let AgentName { org, agent } = &self.agent;
        let operations = self.store.operations(&self.store.open()?)?;
        let changed = operations.set_agent_paused(org, agent, pause).await;
        let changed = output::require_found(changed, LIST)?;
        output::print_paused(&format!("agent {org}/{agent}"), pause, changed, self.json)
    }
}

fn render(agent: &AgentState) -> String {
    let time =
        |ms: i64| humantime::format_duration(Duration::from_millis(ms.unsigned_abs())).to_string();
    output::render_facts(&[
        ("agent", format!("{}/{}", agent.organization, agent.id)),
        ("name", output::or_dash(Some(&agent.name))),
        ("mode", agent.mode.clone()),
        ("url", output::sanitize(&agent.url)),
        ("state", state(agent).into()),
        ("paused at", output::or_dash(agent.paused_at.as_deref())),
        ("circuit opened", output::or_dash(agent.circuit_opened_at.as_deref())),
        ("circuit error", output::or_dash(agent.circuit_error.as_deref())),
        ("timeout", time(agent.timeout_ms)),
        ("max concurrent", agent.max_concurrent.to_string()),
        ("max per user", format!("{} a minute", agent.max_per_user)),
        ("retry for", agent.retry_for_ms.map_or_else(|| "by mode".into(), time)),
        ("keep for", time(agent.keep_for_ms)),
        ("running", agent.running.to_string()),
        ("waiting", format!("{} in {} conversations", agent.deliveries, agent.lanes)),
        ("bindings", agent.bindings.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_agents() {
        let agent: AgentState = serde_json::from_value(serde_json::json!({
            "organization": "acme", "id": "helper", "name": "Helper", "mode": "reply",
            "url": "https://helper.example/", "timeout_ms": 60_000, "max_concurrent": 16,
            "max_per_user": 30,
            "retry_for_ms": null, "keep_for_ms": 259_200_000, "paused_at": null,
            "circuit_opened_at": "2026-01-31T12:00:00Z", "circuit_error": "503",
            "running": 3, "lanes": 2, "deliveries": 120, "bindings": 5,
        }))
        .expect("an agent");
        let paused_at = Some("2026-01-31T12:00:00Z".into());
        let paused = AgentState { id: "second".into(), paused_at, ..agent.clone() };
        let active = AgentState { id: "third".into(), circuit_opened_at: None, ..agent.clone() };
        insta::assert_snapshot!(render(&agent), @r"
        agent           acme/helper
        name            Helper
        mode            reply
        url             https://helper.example/
        state           circuit open
        paused at       -
        circuit opened  2026-01-31T12:00:00Z
        circuit error   503
        timeout         1m
        max concurrent  16
        max per user    30 a minute
        retry for       by mode
        keep for        3days
        running         3
        waiting         120 in 2 conversations
        bindings        5
        ");
        insta::assert_snapshot!(output::render_table(&COLUMNS, &[agent, paused, active], row), @r"
        agent        mode   state         running  max  waiting  url
        acme/helper  reply  circuit open        3   16      120  https://helper.example/
        acme/second  reply  paused              3   16      120  https://helper.example/
        acme/third   reply  active              3   16      120  https://helper.example/
        ");
    }
}
