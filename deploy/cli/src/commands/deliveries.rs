//! `tidegate deliveries`: what waits for agents, by conversation, and what an operator can do about it.
//!
//! A conversation's deliveries are a lane, and only its first one, the head, is tried. `retry`, `skip` and `cancel` act on
//! heads; `cancel --whole-lane` on all that wait. Acting on more than one asks for `--yes`.

use crate::{
    output::{self, nothing_matched},
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

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Deliveries {
    /// List conversations with deliveries, those that are stuck for longest first.
    List(List),
    /// Show a conversation's deliveries.
    Show(Show),
    /// Retry the first delivery of conversations now instead of after its backoff.
    Retry(Act),
    /// Skip the first delivery of conversations without a dead letter, unless it runs. What follows is tried.
    Skip(Act),
    /// Cancel the first delivery of conversations. One that runs is ended by its worker.
    Cancel(Cancel),
}

/// Settings of `tidegate deliveries list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    filter: Filter,
    /// List the newest first.
    #[arg(long)]
    newest: bool,
    /// How many at most.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate deliveries show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    store: StoreSettings,
    /// <connection>/<lane>, or a webhook's dedup key or Slack's event id.
    target: String,
    /// Only webhooks of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// How many deliveries at most.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate deliveries retry` and `skip`.
#[derive(Debug, clap::Args)]
pub struct Act {
    #[command(flatten)]
    store: StoreSettings,
    /// <connection>/<lane>, or a webhook's dedup key or Slack's event id.
    target: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// Act on all conversations.
    #[arg(long, conflicts_with_all = ["target", "connection", "agent", "lane"])]
    all: bool,
    /// Act on more than one; without this they are only counted.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate deliveries cancel`.
#[derive(Debug, clap::Args)]
pub struct Cancel {
    #[command(flatten)]
    act: Act,
    /// Cancel everything that waits in the conversations, not only their first deliveries.
    #[arg(long)]
    whole_lane: bool,
}

/// Selects conversations.
#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Only those of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Only those whose first delivery is for this agent, as <organization>/<agent>.
    #[arg(long)]
    agent: Option<AgentName>,
    /// Only this lane, as `list` prints it.
    #[arg(long, value_parser = lane)]
    lane: Option<Lane>,
}

fn lane(text: &str) -> Result<Lane, String> {
    text.parse().map_err(|()| "a lane is 16 lower-case hex digits".into())
}

impl Filter {
    fn selected(&self) -> DeliveryFilter {
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
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Deliveries::List(list) => list.run().await,
            Deliveries::Show(show) => show.run().await,
            Deliveries::Retry(act) => act.retry().await,
            Deliveries::Skip(act) => act.skip().await,
            Deliveries::Cancel(Cancel { act, whole_lane }) => act.cancel(whole_lane).await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.filter.selected();
        let lanes = store.lane_states(&filter, self.newest, i64::from(self.limit)).await?;
        if lanes.is_empty() {
            return nothing_matched("no deliveries wait or run");
        }
        if self.json {
            return lanes.iter().try_for_each(output::json);
        }
        Ok(output::table(&COLUMNS, &lanes.iter().map(row).collect::<Vec<_>>())?)
    }
}

fn row(state: &LaneState) -> Vec<String> {
    vec![
        state.lane.clone(),
        state.connection.clone(),
        output::plain(&state.agent),
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
        let Some(filter) = found else { return nothing_matched(no_delivery(&self.target)) };
        // Whether or not the delivery that was asked for is its head.
        let of_lane = DeliveryFilter { head: None, ..filter };
        let states = store.lane_states(&of_lane, false, 1).await?;
        let (Some(state), Some(connection), Some(lane)) =
            (states.first(), of_lane.connection, of_lane.lane)
        else {
            return nothing_matched(no_delivery(&self.target));
        };
        let open = store.open_deliveries(connection, lane, i64::from(self.limit)).await?;
        if self.json {
            return output::json(&serde_json::json!({ "lane": state, "deliveries": open }));
        }
        let text = |text: &Option<String>| output::or_dash(text.as_deref());
        output::facts(&[
            ("lane", state.lane.clone()),
            ("connection", state.connection.clone()),
            ("partition", state.partition.to_string()),
            ("agent", output::plain(&state.agent)),
            ("state", state.state.clone()),
            ("waiting", state.waiting.to_string()),
            ("waits since", text(&state.waiting_since)),
            ("attempts", state.attempts.to_string()),
            ("crashes", state.crashes.to_string()),
            ("first attempt", text(&state.first_attempt_at)),
            ("next attempt", text(&state.next_at)),
            ("worker", text(&state.worker)),
            ("last error", output::or_dash(Some(&state.last_error))),
            ("channel", text(&state.channel)),
            ("user", text(&state.user)),
            ("replay", text(&state.replay)),
        ])?;
        output::line("")?;
        Ok(output::table(&OPEN_COLUMNS, &open.iter().map(open_row).collect::<Vec<_>>())?)
    }
}

fn open_row(delivery: &OpenDelivery) -> Vec<String> {
    vec![
        delivery.position.to_string(),
        output::plain(&delivery.kind),
        output::plain(&delivery.agent),
        delivery.inserted_at.clone(),
        delivery.size.to_string(),
        output::plain(&delivery.dedup_key),
    ]
}

/// The lane that a text names, with the position when it names a webhook.
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
        "{} names {} deliveries; add --connection, or name one by its dedup key",
        output::plain(target),
        found.len()
    );
    Ok(found.pop())
}

fn named_lane(target: &str) -> Option<(ConnectionId, Lane)> {
    let (connection, lane) = target.split_once('/')?;
    Some((connection.parse().ok()?, lane.parse().ok()?))
}

fn no_delivery(target: &str) -> String {
    let target = output::plain(target);
    format!("no delivery of {target} waits or runs; tidegate webhook show {target} tells more")
}

impl Act {
    /// The lanes that are meant, counted. More than one is refused without `--yes`.
    async fn chosen(
        &self,
        store: &Store,
        whole_lanes: bool,
        heads_only: bool,
    ) -> anyhow::Result<DeliveryFilter> {
        let Filter { connection, agent, lane } = &self.filter;
        let is_filtered = connection.is_some() || agent.is_some() || lane.is_some();
        ensure!(
            self.target.is_some() || is_filtered || self.all,
            "name a conversation or webhook, or select some with --connection, --agent or --lane, or say --all"
        );
        let filter = match &self.target {
            None => self.filter.selected(),
            Some(target) => match find(store, target, self.filter.connection).await? {
                Some(found) => found,
                None => return nothing_matched(no_delivery(target)),
            },
        };
        let of_lane = DeliveryFilter { head: None, ..filter.clone() };
        let count = store.count_deliveries(&of_lane).await?;
        if count.lanes == 0 {
            return nothing_matched("no deliveries match");
        }
        if heads_only && store.count_deliveries(&filter).await?.lanes == 0 {
            bail!("that delivery waits behind others of its conversation; act on the first one");
        }
        let many = if whole_lanes { count.deliveries } else { count.lanes };
        let is_refused = many > 1 && !self.yes;
        match self.json {
            true if is_refused => output::json(&count)?,
            true => {}
            false => output::line(&described(&count))?,
        }
        ensure!(!is_refused, "nothing was done; pass --yes to act on more than one");
        Ok(if heads_only { filter } else { of_lane })
    }

    async fn retry(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.chosen(&store, false, false).await?;
        let lanes = store.retry_deliveries(&filter).await?;
        self.done("retried", lanes, 0, "it runs already")
    }

    async fn skip(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.chosen(&store, false, true).await?;
        let done = store.skip_deliveries(&filter).await?;
        self.done("skipped", done.ended, 0, "what runs is cancelled, not skipped")
    }

    async fn cancel(self, whole_lanes: bool) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.chosen(&store, whole_lanes, !whole_lanes).await?;
        let done = store.cancel_deliveries(&filter, whole_lanes).await?;
        self.done("cancelled", done.ended, done.requested, "it ended meanwhile")
    }

    fn done(&self, word: &str, ended: u64, requested: u64, why_none: &str) -> anyhow::Result<()> {
        if ended + requested == 0 {
            return nothing_matched(format!("nothing was {word}: {why_none}"));
        }
        if self.json {
            let mut line = serde_json::Map::from_iter([(word.to_owned(), ended.into())]);
            if word == "cancelled" {
                line.insert("requested".into(), requested.into());
            }
            return output::json(&line);
        }
        output::line(&format!("{word}: {ended}"))?;
        if requested > 0 {
            output::line(&format!("running, ended by their workers shortly: {requested}"))?;
        }
        Ok(())
    }
}

fn described(count: &DeliveryCount) -> String {
    let DeliveryCount { lanes, deliveries, running } = count;
    format!(
        "matched: {lanes} conversations with {deliveries} deliveries, {running} of them running"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_is_named_with_its_connection() {
        let id = format!("{:032x}", 7);
        let lane = "00000000000000ff";
        assert!(named_lane(&format!("{id}/{lane}")).is_some());
        for other in [format!("C1/{lane}"), format!("{id}/1.2"), id] {
            assert!(named_lane(&other).is_none(), "{other}");
        }
    }
}
