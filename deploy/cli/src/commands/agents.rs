//! `tidegate agents`: looked at, paused, resumed. `tidegate apply` makes and changes them.

use crate::{
    output::{self, nothing_matched},
    settings::{AgentName, StoreSettings},
};
use shared::{
    store::{AgentState, StoreError},
    types::OrgId,
};
use std::time::Duration;

const COLUMNS: [output::Column; 7] = [
    ("agent", false),
    ("mode", false),
    ("state", false),
    ("running", true),
    ("of", true),
    ("waiting", true),
    ("url", false),
];

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Agents {
    /// List agents.
    List(List),
    /// Show an agent; never its secret.
    Show(Named),
    /// Pause an agent: no attempt begins, and what waits for it does not age.
    Pause(Named),
    /// Resume an agent.
    Resume(Named),
}

/// Settings of `tidegate agents list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    /// Only those of this organization.
    #[arg(long)]
    org: Option<OrgId>,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Settings of the other verbs.
#[derive(Debug, clap::Args)]
pub struct Named {
    #[command(flatten)]
    store: StoreSettings,
    /// The agent, as <organization>/<agent>.
    agent: AgentName,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Agents {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Agents::List(list) => list.run().await,
            Agents::Show(named) => named.show().await,
            Agents::Pause(named) => named.switch(true).await,
            Agents::Resume(named) => named.switch(false).await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let agents = self.store.open()?.agent_states(self.org.as_ref(), None).await?;
        if agents.is_empty() {
            return nothing_matched("there are no such agents");
        }
        if self.json {
            return agents.iter().try_for_each(output::json);
        }
        let rows: Vec<_> = agents
            .iter()
            .map(|agent| {
                vec![
                    format!("{}/{}", agent.organization, agent.id),
                    agent.mode.clone(),
                    state(agent).into(),
                    agent.running.to_string(),
                    agent.max_concurrent.to_string(),
                    agent.deliveries.to_string(),
                    output::plain(&agent.url),
                ]
            })
            .collect();
        Ok(output::table(&COLUMNS, &rows)?)
    }
}

fn state(agent: &AgentState) -> &'static str {
    match (&agent.paused_at, &agent.circuit_opened_at) {
        (Some(_), _) => "paused",
        (None, Some(_)) => "circuit open",
        (None, None) => "active",
    }
}

impl Named {
    async fn show(self) -> anyhow::Result<()> {
        let AgentName { org, agent } = &self.agent;
        let found = self.store.open()?.agent_states(Some(org), Some(agent)).await?;
        let Some(found) = found.first() else {
            return nothing_matched(format!("there is no agent {org}/{agent}"));
        };
        if self.json {
            return output::json(found);
        }
        let time = |ms: i64| {
            humantime::format_duration(Duration::from_millis(ms.unsigned_abs())).to_string()
        };
        output::facts(&[
            ("agent", format!("{org}/{agent}")),
            ("name", output::or_dash(Some(&found.name))),
            ("mode", found.mode.clone()),
            ("url", output::plain(&found.url)),
            ("state", state(found).into()),
            ("paused at", output::or_dash(found.paused_at.as_deref())),
            ("circuit opened", output::or_dash(found.circuit_opened_at.as_deref())),
            ("circuit error", output::or_dash(found.circuit_error.as_deref())),
            ("timeout", time(found.timeout_ms)),
            ("max concurrent", found.max_concurrent.to_string()),
            ("retry for", found.retry_for_ms.map_or_else(|| "by mode".into(), time)),
            ("keep for", time(found.keep_for_ms)),
            ("running", found.running.to_string()),
            ("waiting", format!("{} in {} conversations", found.deliveries, found.lanes)),
            ("links", found.bindings.to_string()),
        ])
    }

    async fn switch(self, pause: bool) -> anyhow::Result<()> {
        let AgentName { org, agent } = &self.agent;
        let store = self.store.open()?;
        let changed = match pause {
            true => store.pause_agent(org, agent).await,
            false => store.resume_agent(org, agent).await,
        };
        let changed = match changed {
            Err(StoreError::Missing(what)) => {
                return nothing_matched(format!(
                    "there is no {what}; tidegate agents list shows them"
                ));
            }
            changed => changed?,
        };
        if self.json {
            return output::json(&serde_json::json!({ "paused": pause, "changed": changed }));
        }
        let state = if pause { "paused" } else { "resumed" };
        let already = if changed { "" } else { " already" };
        Ok(output::line(&format!("{org}/{agent} is {state}{already}"))?)
    }
}
