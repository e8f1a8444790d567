//! Checks of processes: running ingests, partitions without a worker, failing agents, and dead
//! letters.

use super::Finding;
use shared::{
    directory::Directory,
    runtime::telemetry::ErrorChain,
    store::{AgentState, FailureFilter, Store},
};

const COMPONENT: &str = "processes";
/// Maximum number of agents with a finding.
const NAMED_MAX: usize = 10;

/// Checks that ingests run, that every partition has a worker, that agents respond, and that there
/// are no dead letters.
pub(super) async fn check(directory: &Directory, store: &Store, findings: &mut Vec<Finding>) {
    match directory.ingests().await {
        Ok(live) => findings.push(ingests(live.len())),
        Err(error) => findings.push(failed(&ErrorChain(&error).to_string())),
    }
    match store.partition_states().await {
        Ok(states) => {
            let held = states.iter().filter(|state| state.held).count();
            findings.push(partitions(held, states.len()));
        }
        Err(error) => findings.push(failed(&ErrorChain(&error).to_string())),
    }
    match store.agent_states(None, None).await {
        Ok(states) => findings.extend(states.iter().filter_map(agent).take(NAMED_MAX)),
        Err(error) => findings.push(failed(&ErrorChain(&error).to_string())),
    }
    match store.count_dead_letters(&FailureFilter::default()).await {
        Ok(count) => findings.extend(dead_letters(count)),
        Err(error) => findings.push(failed(&ErrorChain(&error).to_string())),
    }
}

fn failed(reason: &str) -> Finding {
    let remedy = "check the findings about Postgres and NATS";
    Finding::problem(COMPONENT, format!("failed to check processes: {reason}"), remedy)
}

fn ingests(live: usize) -> Finding {
    match live {
        0 => Finding::problem(
            COMPONENT,
            "no ingest runs: Slack's webhooks are not accepted",
            "start ingest, and read the reason from its /readyz",
        ),
        live => Finding::good(COMPONENT, format!("live ingests: {live}")),
    }
}

fn partitions(held: usize, all: usize) -> Finding {
    match all - held {
        0 => Finding::good(COMPONENT, "every partition has a worker"),
        free => Finding::problem(
            COMPONENT,
            format!("partitions without a worker: {free} of {all}; their webhooks wait"),
            "start workers, and read the reason from their /readyz",
        ),
    }
}

fn agent(agent: &AgentState) -> Option<Finding> {
    let name = format!("{}/{}", agent.organization, agent.id);
    if agent.paused_at.is_some() {
        return Some(Finding::warning(
            COMPONENT,
            format!("agent {name} is paused; deliveries wait: {}", agent.deliveries),
            format!("resume it with tidegate agents resume {name}"),
        ));
    }
    agent.circuit_opened_at.as_ref()?;
    let error = agent.circuit_error.as_deref().unwrap_or("unknown error");
    Some(Finding::warning(
        COMPONENT,
        format!("agent {name} does not answer: {error}; deliveries wait: {}", agent.deliveries),
        format!("test it with tidegate agents test {} --secret file:<path>", agent.url),
    ))
}

fn dead_letters(count: i64) -> Option<Finding> {
    (count > 0).then(|| {
        Finding::warning(
            COMPONENT,
            format!("dead letters wait for an operator: {count}"),
            "read their reasons with tidegate dead-letters list",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::render;

    #[test]
    fn renders_findings() {
        let active: AgentState = serde_json::from_value(serde_json::json!({
            "organization": "acme", "id": "helper", "name": "Helper", "mode": "reply",
            "url": "https://helper.example/", "timeout_ms": 60_000, "max_concurrent": 16,
            "max_per_user": 30, "retry_for_ms": null, "keep_for_ms": 259_200_000,
            "paused_at": null, "circuit_opened_at": null, "circuit_error": null,
            "running": 3, "lanes": 2, "deliveries": 120, "bindings": 5,
        }))
        .expect("an agent");
        assert!(agent(&active).is_none() && dead_letters(0).is_none());
        let at = Some("2026-01-31T12:00:00Z".to_owned());
        let open = AgentState {
            circuit_opened_at: at.clone(),
            circuit_error: Some("503".into()),
            ..active.clone()
        };
        let paused = AgentState { paused_at: at, ..active };
        let mut findings = vec![ingests(0), ingests(2), partitions(60, 64), partitions(64, 64)];
        findings.extend([&open, &paused].into_iter().filter_map(agent));
        findings.extend(dead_letters(3));
        insta::assert_snapshot!(render(&findings), @r"
        problem  processes no ingest runs: Slack's webhooks are not accepted
                           → start ingest, and read the reason from its /readyz
        good     processes live ingests: 2
        problem  processes partitions without a worker: 4 of 64; their webhooks wait
                           → start workers, and read the reason from their /readyz
        good     processes every partition has a worker
        warning  processes agent acme/helper does not answer: 503; deliveries wait: 120
                           → test it with tidegate agents test https://helper.example/ --secret file:<path>
        warning  processes agent acme/helper is paused; deliveries wait: 120
                           → resume it with tidegate agents resume acme/helper
        warning  processes dead letters wait for an operator: 3
                           → read their reasons with tidegate dead-letters list
        ");
    }
}
