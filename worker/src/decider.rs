//! Decides webhooks: loads facts from Postgres for a batch, then calls the pure function of
//! `routing`.
//!
//! Called by intake, redrives and replays. Facts never come from a cache. Dedup keys within a batch
//! are compared in memory, in order.

use crate::{
    probe::{Probe, Stage},
    routing::{self, NamedAgentQuery, RoutingOptions, Webhook},
};
use shared::{
    domain::Platform,
    slack::BodyParts,
    store::{
        DecidedWebhook, Decision, Effects, Facts, FactsQuery, NamedAgent, ProcessedKey,
        QuestionEffect, QuestionFacts, Store, StoreError, WebhookIds, minute_of,
    },
    stream::{Envelope, Partition},
};
use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
};
use time::OffsetDateTime;

const SECONDS_PER_DAY: i64 = 86_400;
/// Maximum difference between a webhook's own time and the time at which it was stored, in
/// seconds.
const OWN_TIME_TOLERANCE: i64 = 2 * SECONDS_PER_DAY;

/// Webhook read from the stream.
#[derive(Debug, Clone)]
pub struct ReadWebhook {
    pub sequence: u64,
    /// Time at which the stream stored the webhook, by the NATS server's clock.
    pub stored_at: OffsetDateTime,
    pub envelope: Envelope,
}

/// Decider of webhooks. Cheap to clone.
#[derive(Clone)]
pub struct Decider {
    store: Store,
    options: RoutingOptions,
    probe: Option<Probe>,
}

impl Decider {
    pub fn new(store: Store, options: RoutingOptions, probe: Option<Probe>) -> Self {
        Self { store, options, probe }
    }

    /// Decides webhooks of one partition, in stream order. Returns each with the day of its dedup
    /// key.
    pub async fn decide<'a>(
        &self,
        partition: Partition,
        batch: impl ExactSizeIterator<Item = &'a ReadWebhook> + Clone,
    ) -> Result<Vec<(i32, DecidedWebhook)>, StoreError> {
        self.decide_as(partition, batch, false).await
    }

    /// Decides a webhook even if it was processed before.
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
        let parts: Vec<BodyParts<'_>> = batch
            .clone()
            .map(|read| {
                self.probe(Stage::Parse, read);
                BodyParts::split(read.envelope.media, &read.envelope.body)
            })
            .collect();
        let webhooks: Vec<(&ReadWebhook, Webhook<'_>)> = batch
            .zip(&parts)
            .map(|(read, parts)| {
                (read, Webhook { envelope: &read.envelope, inbound: parts.read() })
            })
            .collect();
        let queries: Vec<FactsQuery> = webhooks.iter().map(|(read, w)| query(read, w)).collect();
        let mut facts = self.store.load_facts(partition, &queries).await?;
        let (mut processed, mut noticed) = (HashSet::new(), HashSet::new());
        let mut questions: HashMap<_, QuestionFacts> = HashMap::new();
        let mut decided = Vec::with_capacity(webhooks.len());
        for (((read, webhook), query), facts) in webhooks.iter().zip(&queries).zip(&mut facts) {
            facts.processed = !again && (facts.processed || processed.contains(&query.key));
            let trigger = query.trigger.as_ref();
            facts.trigger_processed = !again
                && (facts.trigger_processed || trigger.is_some_and(|key| processed.contains(key)));
            facts.is_notice_due &= !noticed.contains(&(query.connection, query.lane));
            let person = query.user.clone().map(|user| (query.connection, user, query.minute));
            if let Some(of_batch) = person.as_ref().and_then(|person| questions.get(person)) {
                facts.questions.asked += of_batch.asked;
                facts.questions.is_told |= of_batch.is_told;
            }
            if let Some((org, agent)) = routing::author_query(webhook, facts, &self.options) {
                facts.author = self.store.agent_ref(&org, &agent).await?;
            }
            let named_agents = self.load_named_agents(webhook, facts).await?;
            let decision = self.decide_one(read, webhook, facts, &named_agents);
            let decision =
                if again { decision } else { routing::limit_backlog(decision, webhook, facts) };
            match &decision {
                Decision::Ignore { .. } => {}
                Decision::DeadLetter { .. } | Decision::Overflow => {
                    processed.insert(query.key.clone());
                }
                Decision::Apply(effects) => {
                    processed.insert(query.key.clone());
                    if let Some((effect, person)) = effects.question.zip(person) {
                        let of_batch = questions.entry(person).or_default();
                        of_batch.asked += i64::from(effect == QuestionEffect::Asked);
                        of_batch.is_told |= effect == QuestionEffect::Refused;
                    }
                    processed.extend(trigger.filter(|_| effects.trigger.is_some()).cloned());
                    if effects.delivery.as_ref().is_some_and(|delivery| delivery.has_waiting_notice)
                    {
                        noticed.insert((query.connection, query.lane));
                    }
                }
            }
            let new_channel = routing::new_channel(webhook, facts);
            let ids = WebhookIds { new_channel, ..routing::ids(webhook) };
            let ReadWebhook { sequence, stored_at, envelope } = (*read).clone();
            let webhook = DecidedWebhook { sequence, stored_at, envelope, ids, decision };
            decided.push((query.key.day, webhook));
        }
        Ok(decided)
    }

    async fn load_named_agents(
        &self,
        webhook: &Webhook<'_>,
        facts: &Facts,
    ) -> Result<Vec<NamedAgent>, StoreError> {
        match routing::named_agent_query(webhook, facts, &self.options) {
            NamedAgentQuery::None => Ok(Vec::new()),
            NamedAgentQuery::OfOrganization(org) => self.store.organization_agents(&org).await,
            NamedAgentQuery::Linkable { team, user, agent } => {
                self.store.linkable_agents(Platform::Slack, &team, &user, &agent).await
            }
        }
    }

    /// Decides one webhook. A panic makes a dead letter of this webhook and does not affect its
    /// batch.
    fn decide_one(
        &self,
        read: &ReadWebhook,
        webhook: &Webhook<'_>,
        facts: &Facts,
        named_agents: &[NamedAgent],
    ) -> Decision {
        let deciding = || {
            self.probe(Stage::Decide, read);
            routing::decide(webhook, facts, named_agents, &self.options)
        };
        catch_unwind(AssertUnwindSafe(deciding)).unwrap_or_else(|_| Decision::DeadLetter {
            reason: "the decision panicked",
            error: String::new(),
        })
    }

    fn probe(&self, stage: Stage, read: &ReadWebhook) {
        if let Some(probe) = self.probe {
            probe(stage, &read.envelope.body);
        }
    }
}

/// Returns whether other webhooks may share the batch of this decision.
pub fn may_share_batch(decision: &Decision) -> bool {
    match decision {
        Decision::Ignore { .. } | Decision::DeadLetter { .. } | Decision::Overflow => true,
        Decision::Apply(effects) => Effects::may_share_batch(effects),
    }
}

fn query(read: &ReadWebhook, webhook: &Webhook<'_>) -> FactsQuery {
    let lookup = routing::lookup(webhook);
    let ids = routing::ids(webhook);
    let day = dedup_day(read, ids.own_time);
    FactsQuery {
        connection: read.envelope.connection,
        team: lookup.team,
        channel: lookup.channel,
        user: ids.user,
        minute: minute_of(read.stored_at),
        lane: read.envelope.lane,
        key: ProcessedKey::new(day, &read.envelope.dedup_key),
        trigger: lookup.trigger.as_ref().map(|trigger| ProcessedKey::new(day, trigger)),
    }
}

/// Returns the dedup key of a webhook that becomes a dead letter undecided. The body is not parsed,
/// since parsing may have crashed the process. The day is that of the request, which differs only
/// for a retry around midnight.
pub fn processed_key(read: &ReadWebhook) -> ProcessedKey {
    ProcessedKey::new(dedup_day(read, None), &read.envelope.dedup_key)
}

/// Returns the day under which a dedup key is stored: that of the webhook's own time, which is the
/// same in every copy, unless it is far from the time at which the webhook was stored.
fn dedup_day(read: &ReadWebhook, own_time: Option<i64>) -> i32 {
    let stored = read.stored_at.unix_timestamp();
    let signed = || read.envelope.timestamp.as_str().parse().ok();
    let own = own_time.or_else(signed).filter(|own| (own - stored).abs() <= OWN_TIME_TOLERANCE);
    own.unwrap_or(stored).div_euclid(SECONDS_PER_DAY) as i32
}
