//! Decides webhooks: reads what Postgres knows about a batch, then asks the pure function of `routing` for each.
//!
//! Called by intake for what it reads, and by redrives and replays. Facts come from Postgres and never from a cache; dedup
//! keys within the batch are compared in memory, in order.

use crate::{
    dispatch::AnyHandler,
    routing::{self, RosterNeed, RoutingOptions, Webhook},
};
use shared::{
    codec::{envelope::Envelope, slack::Parts},
    partition::Partition,
    store::{
        DecidedWebhook, Decision, Effects, Facts, FactsQuery, NamedAgent, ProcessedKey, Store,
        StoreError,
    },
    types::Platform,
};
use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
};
use time::OffsetDateTime;

const SECONDS_PER_DAY: i64 = 86_400;
/// A webhook's own time counts when it is within this of the stream's.
const OWN_TIME_TOLERANCE: i64 = 2 * SECONDS_PER_DAY;

/// A webhook read from the stream.
#[derive(Debug, Clone)]
pub struct ReadWebhook {
    /// Its sequence.
    pub sequence: u64,
    /// When the stream got it, by the server's clock.
    pub stored_at: OffsetDateTime,
    /// The webhook.
    pub envelope: Envelope,
}

/// Decides webhooks. Cheap to clone.
#[derive(Clone)]
pub struct Decider {
    store: Store,
    options: RoutingOptions,
    handler: Option<AnyHandler>,
}

impl Decider {
    /// Decides for Tidegate's slash command, and for the team's own handler if there is one.
    pub fn new(store: Store, slash_command: String, handler: Option<AnyHandler>) -> Self {
        let options = RoutingOptions { slash_command, own_handler: handler.is_some() };
        Self { store, options, handler }
    }

    /// Decides webhooks of one partition, in stream order, each with the day of its dedup key.
    pub async fn decide<'a>(
        &self,
        partition: Partition,
        batch: impl ExactSizeIterator<Item = &'a ReadWebhook> + Clone,
    ) -> Result<Vec<(i32, DecidedWebhook)>, StoreError> {
        self.decide_as(partition, batch, false).await
    }

    /// Decides a webhook once more: that it was processed before does not count.
    pub async fn decide_again(
        &self,
        webhook: &ReadWebhook,
    ) -> Result<(i32, DecidedWebhook), StoreError> {
        let partition = webhook.envelope.partition;
        let mut decided = self.decide_as(partition, std::iter::once(webhook), true).await?;
        Ok(decided.remove(0))
    }

    async fn decide_as<'a>(
        &self,
        partition: Partition,
        batch: impl ExactSizeIterator<Item = &'a ReadWebhook> + Clone,
        again: bool,
    ) -> Result<Vec<(i32, DecidedWebhook)>, StoreError> {
        let parts: Vec<Parts<'_>> = batch
            .clone()
            .map(|read| Parts::split(read.envelope.media, &read.envelope.body))
            .collect();
        let webhooks: Vec<(&ReadWebhook, Webhook<'_>)> = batch
            .zip(&parts)
            .map(|(read, parts)| {
                (read, Webhook { envelope: &read.envelope, inbound: parts.read() })
            })
            .collect();
        let queries: Vec<FactsQuery> = webhooks.iter().map(|(read, w)| query(read, w)).collect();
        let mut facts = self.store.load_facts(partition, &queries).await?;
        let mut processed = HashSet::new();
        let mut decided = Vec::with_capacity(webhooks.len());
        for (((read, webhook), query), facts) in webhooks.iter().zip(&queries).zip(&mut facts) {
            facts.processed = !again && (facts.processed || processed.contains(&query.key));
            let trigger = query.trigger.as_ref();
            facts.trigger_processed = !again
                && (facts.trigger_processed || trigger.is_some_and(|key| processed.contains(key)));
            let roster = self.roster(webhook, facts).await?;
            let decision = self.decide_one(webhook, facts, &roster);
            match &decision {
                Decision::Ignore { .. } => {}
                Decision::DeadLetter { .. } => drop(processed.insert(query.key.clone())),
                Decision::Apply(effects) => {
                    processed.insert(query.key.clone());
                    processed.extend(trigger.filter(|_| effects.trigger.is_some()).cloned());
                }
            }
            let ids = routing::ids(webhook);
            let ReadWebhook { sequence, stored_at, envelope } = (*read).clone();
            let webhook = DecidedWebhook { sequence, stored_at, envelope, ids, decision };
            decided.push((query.key.day, webhook));
        }
        Ok(decided)
    }

    async fn roster(
        &self,
        webhook: &Webhook<'_>,
        facts: &Facts,
    ) -> Result<Vec<NamedAgent>, StoreError> {
        match routing::roster_need(webhook, facts, &self.options) {
            RosterNeed::None => Ok(Vec::new()),
            RosterNeed::OfOrganization(org) => self.store.agents_of(&org).await,
            RosterNeed::Linkable { team, user, agent } => {
                self.store.linkable_agents(Platform::Slack, &team, &user, &agent).await
            }
        }
    }

    /// A decision that panics concerns its own webhook alone.
    fn decide_one(&self, webhook: &Webhook<'_>, facts: &Facts, roster: &[NamedAgent]) -> Decision {
        let deciding = || {
            if let Some(handler) = &self.handler {
                handler.on_decision(&webhook.inbound);
            }
            routing::decide(webhook, facts, roster, &self.options)
        };
        catch_unwind(AssertUnwindSafe(deciding)).unwrap_or_else(|_| Decision::DeadLetter {
            reason: "deciding it panicked",
            error: String::new(),
        })
    }
}

/// Whether other webhooks may share the batch of this decision.
pub fn may_share_batch(decision: &Decision) -> bool {
    match decision {
        Decision::Ignore { .. } | Decision::DeadLetter { .. } => true,
        Decision::Apply(effects) => Effects::may_share_batch(effects),
    }
}

fn query(read: &ReadWebhook, webhook: &Webhook<'_>) -> FactsQuery {
    let lookup = routing::lookup(webhook);
    let day = dedup_day(read, routing::ids(webhook).own_time);
    FactsQuery {
        connection: read.envelope.connection,
        team: lookup.team,
        channel: lookup.channel,
        key: ProcessedKey::new(day, &read.envelope.dedupe),
        trigger: lookup.trigger.as_ref().map(|trigger| ProcessedKey::new(day, trigger)),
    }
}

/// The dedup key of a webhook that is given up undecided. Its body is not parsed: that may be what ended the process. Its day
/// is that of the request, which is the webhook's own but for retries around midnight.
pub fn processed_key(read: &ReadWebhook) -> ProcessedKey {
    ProcessedKey::new(dedup_day(read, None), &read.envelope.dedupe)
}

/// The day that a webhook's dedup key is kept under: of its own time, so that it is the same in every copy, unless that is
/// far from the time at which the stream got it.
fn dedup_day(read: &ReadWebhook, own_time: Option<i64>) -> i32 {
    let stored = read.stored_at.unix_timestamp();
    let signed = || read.envelope.timestamp.as_str().parse().ok();
    let own = own_time.or_else(signed).filter(|own| (own - stored).abs() <= OWN_TIME_TOLERANCE);
    own.unwrap_or(stored).div_euclid(SECONDS_PER_DAY) as i32
}
