//! `tidegate deliveries`: lists, shows, retries, skips and cancels deliveries by conversation.
//!
//! The open deliveries of a conversation form a lane, and only its head, the first delivery, is
//! attempted. `retry`, `skip` and `cancel` change heads; `cancel --whole-lane` cancels all
//! deliveries of a lane. Changes of more than one delivery require `--yes`.

mod change;

use crate::{
    output::{self, not_found},
    settings::{AgentName, StoreSettings},
};
use anyhow::ensure;
use change::{Cancel, Change};
use shared::{
    domain::ConnectionId,
    store::{DeliveryFilter, LaneState, OpenDelivery, Store, WebhookQuery},
    stream::Lane,
};

const COLUMNS: [output::Column; 8] = [
    ("lane", false),
    ("connection", false),
    ("agent", false),
    ("state", false),
    ("waiting", true),
    ("attempts", true),
    ("next attempt", false),
    ("last error", false),
];

const OPEN_COLUMNS: [output::Column; 6] = [
    ("position", true),
    ("kind", false),
    ("agent", false),
    ("enqueued at", false),
    ("bytes", true),
    ("dedup key", false),
];

/// Commands of `tidegate deliveries`.
#[derive(Debug, clap::Subcommand)]
pub enum Deliveries {
    /// List conversations with open deliveries, longest delayed first.
    List(List),
    /// Show the open deliveries of a conversation.
    Show(Show),
    /// Attempt the first delivery of each conversation now, without waiting for its backoff.
    Retry(Change),
    /// Skip the first delivery of each conversation, unless it is running. Creates no dead letter.
    Skip(Change),
    /// Cancel the first delivery of each conversation, even if it is running.
    Cancel(Cancel),
}

/// Arguments of `tidegate deliveries list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    filter: Filter,
    /// List the newest conversations first.
    #[arg(long)]
    newest: bool,
    /// Maximum number of conversations.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, one conversation per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate deliveries show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Conversation as <connection>/<lane>, or dedup key or event id of a webhook.
    target: String,
    /// Only search webhooks of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Maximum number of deliveries.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Selection of conversations.
#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Only select conversations of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Only select conversations whose first delivery is for this agent, as
    /// <organization>/<agent>.
    #[arg(long)]
    agent: Option<AgentName>,
    /// Only select this lane, as tidegate deliveries list prints it.
    #[arg(long, value_parser = lane)]
    lane: Option<Lane>,
}

fn lane(text: &str) -> Result<Lane, String> {
    text.parse().map_err(|()| "expected 16 lower-case hex digits".into())
}

impl Filter {
    fn delivery_filter(&self) -> DeliveryFilter {
        DeliveryFilter {
            connection: self.connection,
            org: self.agent.as_ref().map(|name| name.org.clone()),
            agent: self.agent.as_ref().map(|name| name.agent.clone()),
            lane: self.lane,
            head: None,
            owner: None,
        }
    }
}

impl Deliveries {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Deliveries::List(list) => list.run().await,
            Deliveries::Show(show) => show.run().await,
            Deliveries::Retry(change) => change.retry().await,
            Deliveries::Skip(change) => change.skip().await,
            Deliveries::Cancel(cancel) => cancel.run().await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.filter.delivery_filter();
        let lanes = store.lane_states(&filter, self.newest, i64::from(self.limit)).await?;
        if lanes.is_empty() {
            return not_found("no waiting or running deliveries found");
        }
        output::print_list(&lanes, self.json, &COLUMNS, row)
    }
}

fn row(state: &LaneState) -> Vec<String> {
    vec![
        state.lane.clone(),
        state.connection.clone(),
        output::sanitize(&state.agent),
        state.state.clone(),
        state.waiting.to_string(),
        state.attempts.to_string(),
        output::or_dash(state.next_at.as_deref()),
        output::or_dash(Some(&state.last_error)),
    ]
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let found = find(&store, &self.target, self.connection).await?;
        let Some(filter) = found else { return not_found(no_delivery_message(&self.target)) };
        // Finds the lane even if the delivery is not its head.
        let of_lane = DeliveryFilter { head: None, ..filter };
        let states = store.lane_states(&of_lane, false, 1).await?;
        let (Some(state), Some(connection), Some(lane)) =
            (states.first(), of_lane.connection, of_lane.lane)
        else {
            return not_found(no_delivery_message(&self.target));
        };
        let open = store.open_deliveries(connection, lane, i64::from(self.limit)).await?;
        if self.json {
            return output::print_json(&serde_json::json!({ "lane": state, "deliveries": open }));
        }
        output::print_line(&render(state))?;
        Ok(output::print_line(&format!(
            "\n{}",
            output::render_table(&OPEN_COLUMNS, &open, open_row)
        ))?)
    }
}

fn render(state: &LaneState) -> String {
    let text = |text: &Option<String>| output::or_dash(text.as_deref());
    output::render_facts(&[
        ("lane", state.lane.clone()),
        ("connection", state.connection.clone()),
        ("partition", state.partition.to_string()),
        ("agent", output::sanitize(&state.agent)),
        ("state", state.state.clone()),
        ("waiting", state.waiting.to_string()),
        ("waiting since", text(&state.waiting_since)),
        ("attempts", state.attempts.to_string()),
        ("crashes", state.crashes.to_string()),
        ("first attempt", text(&state.first_attempt_at)),
        ("next attempt", text(&state.next_at)),
        ("worker", text(&state.worker)),
        ("last error", output::or_dash(Some(&state.last_error))),
        ("channel", text(&state.channel)),
        ("user", text(&state.user)),
        ("replay", text(&state.replay)),
    ])
}

fn open_row(delivery: &OpenDelivery) -> Vec<String> {
    vec![
        delivery.position.to_string(),
        output::sanitize(&delivery.kind),
        output::sanitize(&delivery.agent),
        delivery.inserted_at.clone(),
        delivery.size.to_string(),
        output::sanitize(&delivery.dedup_key),
    ]
}

/// Returns the lane of a target, and the position of the delivery if the target is a webhook.
async fn find(
    store: &Store,
    target: &str,
    connection: Option<ConnectionId>,
) -> anyhow::Result<Option<DeliveryFilter>> {
    if let Some((connection, lane)) = parse_lane_target(target) {
        let (connection, lane) = (Some(connection), Some(lane));
        return Ok(Some(DeliveryFilter { connection, lane, ..DeliveryFilter::default() }));
    }
    let mut found = Vec::new();
    for key in store.find_webhooks(&WebhookQuery::from(target), connection).await? {
        found.extend(store.delivery_of(&key).await?);
    }
    ensure!(
        found.len() < 2,
        "{} matches {} deliveries; pass --connection or a dedup key",
        output::sanitize(target),
        found.len()
    );
    Ok(found.pop())
}

fn parse_lane_target(target: &str) -> Option<(ConnectionId, Lane)> {
    let (connection, lane) = target.split_once('/')?;
    Some((connection.parse().ok()?, lane.parse().ok()?))
}

fn no_delivery_message(target: &str) -> String {
    let target = output::sanitize(target);
    format!(
        "no waiting or running delivery of {target} found; \
         if it is a webhook, look it up with tidegate webhook show {target}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_lane_targets() {
        let id = format!("{:032x}", 7);
        let lane = "00000000000000ff";
        assert!(parse_lane_target(&format!("{id}/{lane}")).is_some());
        for other in [format!("C1/{lane}"), format!("{id}/1.2"), id] {
            assert!(parse_lane_target(&other).is_none(), "{other}");
        }
    }

    #[test]
    fn renders_lanes() {
        let waiting: LaneState = serde_json::from_value(serde_json::json!({
            "connection": format!("{:032x}", 7), "lane": "00000000000000ff", "partition": 12,
            "agent": "acme/helper", "state": "waiting", "waiting": 10, "attempts": 3,
            "crashes": 0, "waiting_since": "2026-01-31T12:00:00Z",
            "next_at": "2026-01-31T12:05:00Z", "last_error": "503 Service\nUnavailable",
            "cancel_requested": false,
        }))
        .expect("a lane");
        let due = LaneState {
            state: "due".into(),
            attempts: 0,
            next_at: None,
            last_error: String::new(),
            ..waiting.clone()
        };
        insta::assert_snapshot!(render(&waiting), @r"
        lane            00000000000000ff
        connection      00000000000000000000000000000007
        partition       12
        agent           acme/helper
        state           waiting
        waiting         10
        waiting since   2026-01-31T12:00:00Z
        attempts        3
        crashes         0
        first attempt   -
        next attempt    2026-01-31T12:05:00Z
        worker          -
        last error      503 Service�Unavailable
        channel         -
        user            -
        replay          -
        ");
        insta::assert_snapshot!(output::render_table(&COLUMNS, &[waiting, due], row), @r"
        lane              connection                        agent        state    waiting  attempts  next attempt          last error
        00000000000000ff  00000000000000000000000000000007  acme/helper  waiting       10         3  2026-01-31T12:05:00Z  503 Service�Unavailable
        00000000000000ff  00000000000000000000000000000007  acme/helper  due           10         0  -                     -
        ");
    }
}
