//! Rows of a commit of intake, as arrays of its statement.

use super::{DecidedWebhook, NewDelivery, ProcessedAs, ProcessedKey, QuestionEffect};
use crate::domain::ConnectionId;
use crate::store::{outbox::SealedMessages, replace_nul};
use crate::stream::ENVELOPE_SCHEMA;
use sqlx::{Postgres, postgres::PgArguments, query::Query};
use std::collections::BTreeMap;
use time::OffsetDateTime;

/// Arrays of a commit statement.
#[derive(Default)]
pub(super) struct Columns<'a> {
    pub keys: Keys,
    pub deliveries: Vec<(&'a DecidedWebhook, &'a NewDelivery, Vec<u8>)>,
    pub dead: Vec<DeadRow<'a>>,
    pub ignored: Vec<(&'a DecidedWebhook, &'static str)>,
    pub messages: SealedMessages,
    /// Connections and channels in which the bot was not known to be.
    pub known_channels: Vec<(ConnectionId, &'a str)>,
    pub questions: Questions,
}

/// Dead letter with reason, error and sealed payload, if it has one.
pub(super) type DeadRow<'a> = (&'a DecidedWebhook, &'static str, String, Option<Vec<u8>>);

/// Changes of `user_questions`: one per person, for the newest minute of the batch.
#[derive(Default)]
pub(super) struct Questions(BTreeMap<(String, String), (i32, i32, bool)>);

impl Questions {
    pub fn add(&mut self, webhook: &DecidedWebhook, effect: QuestionEffect) {
        let Some(user) = webhook.ids.user.as_deref() else { return };
        let key = (webhook.envelope.connection.to_string(), replace_nul(user).into_owned());
        let minute = webhook.minute();
        let (newest, asked, told) = self.0.entry(key).or_insert((minute, 0, false));
        if minute > *newest {
            (*newest, *asked, *told) = (minute, 0, false);
        }
        if minute == *newest {
            *asked += i32::from(effect == QuestionEffect::Asked);
            *told |= effect == QuestionEffect::Refused;
        }
    }

    fn bind<'q>(&self, query: Statement<'q>) -> Statement<'q> {
        let (keys, counts) = (|| self.0.keys(), || self.0.values());
        query
            .bind(keys().map(|(connection, _)| connection.clone()).collect::<Vec<_>>())
            .bind(keys().map(|(_, user)| user.clone()).collect::<Vec<_>>())
            .bind(counts().map(|(minute, ..)| *minute).collect::<Vec<_>>())
            .bind(counts().map(|(_, asked, _)| *asked).collect::<Vec<_>>())
            .bind(counts().map(|(.., told)| *told).collect::<Vec<_>>())
    }
}

/// Parts of a commit statement after its fence, each with those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Parts {
    None,
    Ignored,
    Deliveries,
    All,
}

impl Columns<'_> {
    /// Returns the parts that these rows need.
    pub fn parts(&self) -> Parts {
        let has_rare = !(self.dead.is_empty() && self.known_channels.is_empty());
        if has_rare || !self.messages.is_empty() {
            Parts::All
        } else if !(self.keys.days.is_empty() && self.deliveries.is_empty()) {
            Parts::Deliveries
        } else if !self.ignored.is_empty() {
            Parts::Ignored
        } else {
            Parts::None
        }
    }

    /// Binds the parameters of the parts.
    pub fn bind<'q>(&'q self, mut query: Statement<'q>, parts: Parts) -> Statement<'q> {
        if parts >= Parts::Ignored {
            query = bind_ignored(query, &self.ignored);
        }
        if parts >= Parts::Deliveries {
            let Keys { days, keys, sequences, outcomes } = &self.keys;
            query = query.bind(days).bind(keys).bind(sequences).bind(outcomes);
            query = bind_deliveries(query, &self.deliveries);
            query = self.questions.bind(query);
        }
        if parts == Parts::All {
            query = bind_dead_letters(query, &self.dead)
                .bind(column(&self.known_channels, |(connection, _)| connection.to_string()))
                .bind(column(&self.known_channels, |(_, channel)| *channel));
            query = self.messages.bind(query);
        }
        query
    }
}

/// Rows of `processed_keys`, by column.
#[derive(Default)]
pub(super) struct Keys {
    days: Vec<i32>,
    keys: Vec<Vec<u8>>,
    sequences: Vec<i64>,
    outcomes: Vec<i16>,
}

impl Keys {
    pub fn push(&mut self, key: ProcessedKey, sequence: u64, processed_as: ProcessedAs) {
        self.days.push(key.day);
        self.keys.push(key.key.to_vec());
        self.sequences.push(sequence as i64);
        self.outcomes.push(processed_as.number());
    }
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Returns a column of the rows as an array.
fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}

fn received_at(webhook: &DecidedWebhook) -> OffsetDateTime {
    let ns = i128::from(webhook.envelope.received_at_ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(ns).unwrap_or(webhook.stored_at)
}

fn bind_deliveries<'q>(
    query: Statement<'q>,
    rows: &'q [(&'q DecidedWebhook, &'q NewDelivery, Vec<u8>)],
) -> Statement<'q> {
    query
        .bind(column(rows, |(w, ..)| w.envelope.connection.to_string()))
        .bind(column(rows, |(w, ..)| w.envelope.lane.to_bits()))
        .bind(column(rows, |(w, ..)| w.sequence as i64))
        .bind(column(rows, |(_, d, _)| d.org.as_str()))
        .bind(column(rows, |(_, d, _)| d.agent.as_str()))
        .bind(column(rows, |(_, d, _)| d.session))
        .bind(column(rows, |(w, ..)| w.envelope.kind.as_str()))
        .bind(column(rows, |(_, d, _)| d.priority.number()))
        .bind(column(rows, |(w, ..)| w.envelope.dedup_key.as_str()))
        .bind(column(rows, |(_, d, _)| d.hops))
        .bind(column(rows, |(w, ..)| w.ids.event_id.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.team.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.channel.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.thread_ts.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.ts.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.user.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.envelope.traceparent.as_ref().map(|token| token.as_str())))
        .bind(column(rows, |(w, ..)| received_at(w)))
        .bind(column(rows, |(w, ..)| w.stored_at))
        .bind(column(rows, |(.., payload)| payload.as_slice()))
        .bind(column(rows, |(.., payload)| payload.len() as i32))
        .bind(column(rows, |(_, d, _)| d.has_waiting_notice))
        .bind(ENVELOPE_SCHEMA as i16)
}

fn bind_dead_letters<'q>(query: Statement<'q>, rows: &'q [DeadRow<'q>]) -> Statement<'q> {
    query
        .bind(column(rows, |(w, ..)| w.sequence as i64))
        .bind(column(rows, |(w, ..)| w.envelope.subject()))
        .bind(column(rows, |(w, ..)| w.envelope.connection.to_string()))
        .bind(column(rows, |(w, ..)| w.envelope.lane.to_bits()))
        .bind(column(rows, |(w, ..)| w.envelope.dedup_key.as_str()))
        .bind(column(rows, |(w, ..)| w.ids.event_id.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.channel.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.ts.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, ..)| w.ids.user.as_deref().map(replace_nul)))
        .bind(column(rows, |(_, reason, ..)| *reason))
        .bind(column(rows, |(_, _, error, _)| error.as_str()))
        .bind(column(rows, |(.., payload)| payload.as_deref()))
}

fn bind_ignored<'q>(
    query: Statement<'q>,
    rows: &'q [(&'q DecidedWebhook, &'static str)],
) -> Statement<'q> {
    query
        .bind(column(rows, |(w, _)| w.envelope.connection.to_string()))
        .bind(column(rows, |(w, _)| w.sequence as i64))
        .bind(column(rows, |(w, _)| w.envelope.dedup_key.as_str()))
        .bind(column(rows, |(w, _)| w.ids.event_id.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, _)| w.ids.channel.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, _)| w.ids.ts.as_deref().map(replace_nul)))
        .bind(column(rows, |(w, _)| w.ids.user.as_deref().map(replace_nul)))
        .bind(column(rows, |(_, reason)| *reason))
}
