//! `tidegate deliveries`: lists, shows, retries, skips and cancels deliveries, by conversation.
//!
//! The deliveries of a conversation are a lane, and only the first one, the head, is attempted.
//! `retry`, `skip` and `cancel` change heads; `cancel --whole-lane` changes all deliveries. Changes
//! of more than one delivery require `--yes`.

use crate::{
    output::{self, not_found},
    settings::{AgentName, StoreSettings},
};
use anyhow::{bail, ensure};
use shared::{
    partition::Lane,
    store::{DeliveryCount, DeliveryFilter, LaneState, OpenDelivery, Store, WebhookQuery},
    types::ConnectionId,
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
    /// List conversations with deliveries, longest delayed first.
    List(List),
    /// Show the deliveries of a conversation.
    Show(Show),
    /// Attempt the first delivery of conversations now, without its backoff.
    Retry(Change),
    /// Skip the first delivery of conversations, unless it runs. Creates no dead letter.
    Skip(Change),
    /// Cancel the first delivery of conversations, even if it runs.
    Cancel(Cancel),
}

/// Arguments of `tidegate deliveries list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    filter: Filter,
    /// List newest conversations first.
    #[arg(long)]
    newest: bool,
    /// Maximum number of conversations.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, one conversation per line.
    #[arg(long)]
    json: bool,
}

/// Arguments of `tidegate deliveries show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    store: StoreSettings,
    /// Conversation as <connection>/<lane>, or dedup key or Slack's event id of a webhook.
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
}

/// Arguments of `tidegate deliveries retry` and `skip`.
#[derive(Debug, clap::Args)]
pub struct Change {
    #[command(flatten)]
    store: StoreSettings,
    /// Conversation as <connection>/<lane>, or dedup key or Slack's event id of a webhook.
    target: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// Select all conversations.
    #[arg(long, conflicts_with_all = ["target", "connection", "agent", "lane"])]
    all: bool,
    /// Change more than one delivery. Without this flag only print the number.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `tidegate deliveries cancel`.
#[derive(Debug, clap::Args)]
pub struct Cancel {
    #[command(flatten)]
    change: Change,
    /// Cancel all deliveries of the conversations, not only the first ones.
    #[arg(long)]
    whole_lane: bool,
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
            Deliveries::Cancel(Cancel { change, whole_lane }) => change.cancel(whole_lane).await,
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
        output::list(&lanes, self.json, &COLUMNS, row)
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
        let Some(filter) = found else { return not_found(no_delivery(&self.target)) };
        // The lane, even if the delivery is not its head.
        let of_lane = DeliveryFilter { head: None, ..filter };
        let states = store.lane_states(&of_lane, false, 1).await?;
        let (Some(state), Some(connection), Some(lane)) =
            (states.first(), of_lane.connection, of_lane.lane)
        else {
            return not_found(no_delivery(&self.target));
        };
        let open = store.open_deliveries(connection, lane, i64::from(self.limit)).await?;
        if self.json {
            return output::json(&serde_json::json!({ "lane": state, "deliveries": open }));
        }
        output::line(&render(state))?;
        Ok(output::line(&format!("\n{}", output::table(&OPEN_COLUMNS, &open, open_row)))?)
    }
}

fn render(state: &LaneState) -> String {
    let text = |text: &Option<String>| output::or_dash(text.as_deref());
    output::facts(&[
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

/// Returns the lane that the target names, with the position if it names a webhook.
async fn find(
    store: &Store,
    target: &str,
    connection: Option<ConnectionId>,
) -> anyhow::Result<Option<DeliveryFilter>> {
    if let Some((connection, lane)) = named_lane(target) {
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

fn named_lane(target: &str) -> Option<(ConnectionId, Lane)> {
    let (connection, lane) = target.split_once('/')?;
    Some((connection.parse().ok()?, lane.parse().ok()?))
}

fn no_delivery(target: &str) -> String {
    let target = output::sanitize(target);
    format!(
        "no waiting or running delivery of {target} found; \
         tidegate webhook show {target} prints what is known of a webhook"
    )
}

impl Change {
    /// Returns the selection and prints its size. Fails if it is empty or not confirmed.
    async fn confirm(
        &self,
        store: &Store,
        whole_lanes: bool,
        heads_only: bool,
    ) -> anyhow::Result<DeliveryFilter> {
        let Filter { connection, agent, lane } = &self.filter;
        let is_filtered = connection.is_some() || agent.is_some() || lane.is_some();
        ensure!(
            self.target.is_some() || is_filtered || self.all,
            "no deliveries selected; \
             pass a conversation, a webhook, --connection, --agent, --lane or --all"
        );
        let filter = match &self.target {
            None => self.filter.delivery_filter(),
            Some(target) => match find(store, target, self.filter.connection).await? {
                Some(found) => found,
                None => return not_found(no_delivery(target)),
            },
        };
        let of_lane = DeliveryFilter { head: None, ..filter.clone() };
        let count = store.count_deliveries(&of_lane).await?;
        if count.lanes == 0 {
            return not_found("no deliveries found");
        }
        if heads_only && store.count_deliveries(&filter).await?.lanes == 0 {
            bail!("the delivery is not the first of its conversation; select the first one");
        }
        let number = if whole_lanes { count.deliveries } else { count.lanes };
        let is_confirmed = number < 2 || self.yes;
        if !self.json {
            output::line(&summary(&count))?;
        } else if !is_confirmed {
            output::json(&count)?;
        }
        ensure!(is_confirmed, "nothing changed; pass --yes to change more than one delivery");
        Ok(if heads_only { filter } else { of_lane })
    }

    async fn retry(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.confirm(&store, false, false).await?;
        let lanes = store.retry_deliveries(&filter).await?;
        self.finish("retried", lanes, 0, "already running")
    }

    async fn skip(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.confirm(&store, false, true).await?;
        let done = store.skip_deliveries(&filter).await?;
        self.finish("skipped", done.ended, 0, "it runs; cancel it instead")
    }

    async fn cancel(self, whole_lanes: bool) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.confirm(&store, whole_lanes, !whole_lanes).await?;
        let done = store.cancel_deliveries(&filter, whole_lanes).await?;
        self.finish("cancelled", done.ended, done.requested, "it has ended")
    }

    fn finish(
        &self,
        done: &str,
        ended: u64,
        requested: u64,
        reason_for_none: &str,
    ) -> anyhow::Result<()> {
        if ended + requested == 0 {
            return not_found(format!("nothing {done}: {reason_for_none}"));
        }
        if self.json {
            let mut line = serde_json::Map::from_iter([(done.to_owned(), ended.into())]);
            if done == "cancelled" {
                line.insert("requested".into(), requested.into());
            }
            return output::json(&line);
        }
        output::line(&format!("{done}: {ended}"))?;
        if requested > 0 {
            output::line(&format!("running, to be ended by their workers: {requested}"))?;
        }
        Ok(())
    }
}

fn summary(count: &DeliveryCount) -> String {
    let DeliveryCount { lanes, deliveries, running } = count;
    format!(
        "matched: {lanes} conversations with {deliveries} deliveries, {running} of them running"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_name_has_connection() {
        let id = format!("{:032x}", 7);
        let lane = "00000000000000ff";
        assert!(named_lane(&format!("{id}/{lane}")).is_some());
        for other in [format!("C1/{lane}"), format!("{id}/1.2"), id] {
            assert!(named_lane(&other).is_none(), "{other}");
        }
    }
}
