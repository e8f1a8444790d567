//! `tidegate deliveries retry`, `skip` and `cancel`: change the heads of lanes, or whole lanes.

use super::{Filter, find, no_delivery_message};
use crate::{
    output::{self, not_found},
    settings::StoreSettings,
};
use anyhow::{bail, ensure};
use shared::store::{DeliveryCount, DeliveryFilter, Store};

/// Arguments of `tidegate deliveries retry` and `skip`.
#[derive(Debug, clap::Args)]
pub struct Change {
    /// Conversation as <connection>/<lane>, or dedup key or event id of a webhook.
    target: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// Select all conversations.
    #[arg(long, conflicts_with_all = ["target", "connection", "agent", "lane"])]
    all: bool,
    /// Confirm a change of more than one delivery. Without this flag only print the number.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate deliveries cancel`.
#[derive(Debug, clap::Args)]
pub struct Cancel {
    /// Cancel all deliveries of the conversations, not only the first of each.
    #[arg(long)]
    whole_lane: bool,
    #[command(flatten)]
    change: Change,
}

impl Change {
    /// Prints the size of the selection and returns it. Returns an error if it is empty or not
    /// confirmed.
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
                None => return not_found(no_delivery_message(target)),
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
            output::print_line(&summary(&count))?;
        } else if !is_confirmed {
            output::print_json(&count)?;
        }
        ensure!(is_confirmed, "nothing changed; pass --yes to change more than one delivery");
        Ok(if heads_only { filter } else { of_lane })
    }

    /// Attempts the heads of the selected lanes now.
    pub async fn retry(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.confirm(&store, false, false).await?;
        let lanes = self.store.operations(&store)?.retry_deliveries(&filter).await?;
        self.finish("retried", lanes, 0, "already running")
    }

    /// Skips the heads of the selected lanes that are not running.
    pub async fn skip(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = self.confirm(&store, false, true).await?;
        let done = self.store.operations(&store)?.skip_deliveries(&filter).await?;
        self.finish("skipped", done.ended, 0, "the delivery is running; cancel it instead")
    }

    /// Prints the result. Returns an error if nothing changed.
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
            return output::print_json(&line);
        }
        output::print_line(&format!("{done}: {ended}"))?;
        if requested > 0 {
            output::print_line(&format!("running, cancellation requested: {requested}"))?;
        }
        Ok(())
    }
}

impl Cancel {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let Cancel { change, whole_lane } = self;
        let store = change.store.open()?;
        let filter = change.confirm(&store, whole_lane, !whole_lane).await?;
        let operations = change.store.operations(&store)?;
        let done = operations.cancel_deliveries(&filter, whole_lane).await?;
        change.finish("cancelled", done.ended, done.requested, "the delivery has ended")
    }
}

fn summary(count: &DeliveryCount) -> String {
    let DeliveryCount { lanes, deliveries, running } = count;
    format!(
        "matched: {lanes} conversations with {deliveries} deliveries, {running} of them running"
    )
}
