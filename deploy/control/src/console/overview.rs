//! First page: current problems, totals, and charts of the last day.

use super::{
    Console,
    chart::{self, Chart},
    fields::Fields,
    lists::time_text,
    session::Session,
    shell::{Failure, Shell, respond},
};
use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use shared::store::{DeliveryFilter, FailureFilter, UnhealthyAgent, UnhealthyConnection};
use std::sync::Arc;

/// Maximum agents, and maximum connections, that are listed as problems.
const PROBLEMS_MAX: i64 = 20;

/// Problem, as a sentence with a link.
struct OverviewProblem {
    text: String,
    href: String,
    link: &'static str,
    tone: &'static str,
}

/// Total, with the page of its objects.
struct Number {
    name: &'static str,
    value: String,
    href: String,
}

#[derive(Template)]
#[template(path = "console/overview.html")]
struct OverviewPage {
    shell: Shell,
    problems: Vec<OverviewProblem>,
    charts: [Chart; 2],
    numbers: Vec<Number>,
}

/// Returns the first page.
pub async fn show(
    State(console): State<Arc<Console>>,
    session: Session,
) -> Result<Response, Failure> {
    let (store, org) = (&console.store, session.caller.org.clone());
    let failures = FailureFilter { org: org.clone(), ..FailureFilter::default() };
    let lanes = DeliveryFilter { owner: org.clone(), ..DeliveryFilter::default() };
    let dead = store.count_dead_letters_bounded(&failures).await?.0;
    let failed = store.count_outbox_failures_bounded(&failures).await?.0;
    let open = store.count_lanes_bounded(&lanes).await?;
    let number = |name, value: String, path: &str| Number { name, value, href: path.to_owned() };
    let numbers = vec![
        number("Conversations with open deliveries", open.to_string(), "/conversations"),
        number("Dead letters", dead.to_string(), "/dead-letters"),
        number("Outbox failures", failed.to_string(), "/outbox-failures"),
        number("Agents", store.count_agents(org.as_ref()).await?.to_string(), "/agents"),
        number(
            "Connections",
            store.count_connections(org.as_ref()).await?.to_string(),
            "/connections",
        ),
    ];
    let mut problems = Vec::new();
    if !dead.is_zero() {
        let text = format!("Tidegate gave up on {dead} webhooks or deliveries.");
        problems.push(OverviewProblem::new(text, "/dead-letters", "Dead letters", "bad"));
    }
    if !failed.is_zero() {
        let text = format!("Slack rejected {failed} messages permanently.");
        problems.push(OverviewProblem::new(text, "/outbox-failures", "Outbox failures", "bad"));
    }
    let agents = store.troubled_agents(org.as_ref(), PROBLEMS_MAX).await?;
    problems.extend(agents.into_iter().map(OverviewProblem::from));
    let connections = store.troubled_connections(org.as_ref(), PROBLEMS_MAX).await?;
    problems.extend(connections.into_iter().map(OverviewProblem::from));
    let usage = store.usage_by_hour(org.as_ref(), chart::HOURS).await?;
    let now = store.now().await?;
    let webhooks: Vec<_> = usage.iter().map(|(hour, webhooks, _)| (*hour, *webhooks)).collect();
    let failures: Vec<_> = usage.iter().map(|(hour, _, failures)| (*hour, *failures)).collect();
    let charts = [
        Chart::new("Webhooks by hour", now, &webhooks),
        Chart::new("Failures by hour", now, &failures),
    ];
    let shell = Shell::of(&session, "Overview", "/");
    Ok(respond(StatusCode::OK, &OverviewPage { shell, problems, charts, numbers }))
}

impl OverviewProblem {
    fn new(text: String, href: &str, link: &'static str, tone: &'static str) -> Self {
        Self { text, href: href.to_owned(), link, tone }
    }
}

impl From<UnhealthyAgent> for OverviewProblem {
    fn from(agent: UnhealthyAgent) -> Self {
        let id = format!("{}/{}", agent.organization, agent.id);
        let open = agent.deliveries;
        let since = |at: Option<String>| at.map(|at| time_text(&at)).unwrap_or_default();
        let href = Fields::default().with("agent", &id).url("/conversations");
        if agent.paused_at.is_some() {
            let since = since(agent.paused_at);
            let text = format!("Agent {id} has been paused since {since}; {open} deliveries wait.");
            return Self::new(text, &href, "Conversations", "warn");
        }
        let (since, error) = (since(agent.opened_at), agent.last_error.unwrap_or_default());
        let text =
            format!("Agent {id} has been failing since {since}: {error}. {open} deliveries wait.");
        Self::new(text, &href, "Conversations", "bad")
    }
}

impl From<UnhealthyConnection> for OverviewProblem {
    fn from(connection: UnhealthyConnection) -> Self {
        let UnhealthyConnection { organization: org, id, status, reason, .. } = connection;
        let href = Fields::default().with("organization", &org).url("/connections");
        match status.as_str() {
            "error" => {
                let text = format!("Connection {id} of {org} failed: {reason}.");
                Self::new(text, &href, "Connections", "bad")
            }
            "stopped" => {
                let text = format!("Connection {id} of {org} is stopped.");
                Self::new(text, &href, "Connections", "warn")
            }
            _ => {
                let text = format!("Connection {id} of {org}: sending is paused.");
                Self::new(text, &href, "Connections", "warn")
            }
        }
    }
}
