//! Races of people for link codes, each person in a separate channel.
//!
//! For the checker a code is a conversation and a person is a position in it: every accepted
//! command must be answered once. In addition each code must have one winner, whose channel is
//! bound; all other people get the answer that the code was used.

use crate::{
    checker::{Acceptance, History, MessageId, Verdict, check},
    eventually::try_eventually,
    slack::webhook::Webhook,
    test_env::{App, TestEnv},
};
use anyhow::ensure;
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::domain::Surface;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Answer to everyone except the winner.
const USED: &str = "This code was already used. Ask for a new one.";

/// A race.
pub struct LinkCodeRace {
    codes: u32,
    people: Vec<(MessageId, Webhook)>,
}

impl LinkCodeRace {
    /// Creates the codes, and commands of `each` people for each code.
    ///
    /// # Errors
    /// If a code can't be created.
    pub async fn new(env: &TestEnv, app: &App, codes: u32, each: u32) -> anyhow::Result<Self> {
        let mut people = Vec::new();
        for code in 0..codes {
            let text = format!("link {}", env.create_link_code(app, &[Surface::Channel]).await?);
            for person in 0..each {
                let id = (code, person);
                let (channel, user) = (channel(id), format!("U{code:04}X{person}"));
                let command = Webhook::command(&env.slack, app, &channel, &user, "/lobu", &text);
                people.push((id, command));
            }
        }
        Ok(Self { codes, people })
    }

    /// Returns all commands. Those for one code follow each other.
    pub fn commands(&self) -> impl Iterator<Item = &(MessageId, Webhook)> {
        self.people.iter()
    }

    /// Sends the commands, `at_once` concurrently. Returns the time of the slowest answer.
    ///
    /// # Errors
    /// If a command is not accepted.
    pub async fn run(&self, env: &TestEnv, app: &App, at_once: usize) -> anyhow::Result<Duration> {
        let taken = stream::iter(&self.people).map(async |(id, webhook)| {
            let answer = env.send(app, webhook).await?;
            ensure!(
                answer.status == 200 && answer.body.is_empty(),
                "the command of person {id:?} was not accepted: {answer:?}"
            );
            Ok(answer.took)
        });
        let slowest = async |slowest: Duration, took| Ok(slowest.max(took));
        taken.buffer_unordered(at_once).try_fold(Duration::ZERO, slowest).await
    }

    /// Waits until every person has an answer.
    ///
    /// # Errors
    /// If one is missing after `within`.
    pub async fn wait_for_answers(&self, env: &TestEnv, within: Duration) -> anyhow::Result<()> {
        let consumed = "select count(*) from link_codes where consumed_at is not null";
        let expected: BTreeSet<&str> = self.paths(env).collect();
        let all_answered = async || {
            // Queried first, because the search through all calls is more expensive.
            let consumed: i64 = sqlx::query_scalar(consumed).fetch_one(&env.pool).await.ok()?;
            (consumed == i64::from(self.codes)).then_some(())?;
            let receipts = env.slack.receipts();
            let answered = receipts.iter().map(|receipt| receipt.to.as_str());
            expected.is_subset(&answered.collect()).then_some(())
        };
        try_eventually("every person has an answer", within, all_answered).await
    }

    /// Waits until the outbox is empty, then checks the race.
    ///
    /// # Errors
    /// If a code has no winner or several, or a person got another answer.
    pub async fn verdict(&self, env: &TestEnv, within: Duration) -> anyhow::Result<Verdict> {
        let open = "select count(*) from outbox";
        let is_empty = async || {
            let open: i64 = sqlx::query_scalar(open).fetch_one(&env.pool).await.ok()?;
            (open == 0).then_some(())
        };
        try_eventually("the outbox is empty", within, is_empty).await?;
        let who: BTreeMap<&str, MessageId> =
            self.paths(env).zip(&self.people).map(|(path, (id, _))| (path, *id)).collect();
        let receipts = env.slack.receipts();
        let mut answers = BTreeMap::<MessageId, BTreeSet<&str>>::new();
        let mut history = History { attempts: self.people.len(), ..History::default() };
        for receipt in &receipts {
            let Some(id) = who.get(receipt.to.as_str()) else { continue };
            history.posted.push(*id);
            answers.entry(*id).or_default().insert(receipt.text());
        }
        history.posted.sort_unstable(); // people of a race have no order
        let mut winners = Vec::new();
        for (id, texts) in &answers {
            match texts.iter().copied().collect::<Vec<_>>()[..] {
                [text] if text.starts_with("Linked.") => winners.push(*id),
                [USED] => {}
                _ => anyhow::bail!("person {id:?} got unexpected answers: {texts:?}"),
            }
        }
        let won = |code: &u32| winners.iter().filter(|winner| winner.0 == *code).count();
        let wrong = (0..self.codes).map(|code| (code, won(&code))).find(|(_, times)| *times != 1);
        ensure!(wrong.is_none(), "a link code does not have one winner (code, winners): {wrong:?}");

        let consumed = "select consumed_channel from link_codes where consumed_at is not null";
        let bound = "select channel_id from channel_bindings";
        let channels: BTreeSet<String> = winners.iter().map(|id| channel(*id)).collect();
        for (what, sql) in [("consumed", consumed), ("bound", bound)] {
            let there: Vec<String> = sqlx::query_scalar(sql).fetch_all(&env.pool).await?;
            ensure!(
                there.len() == winners.len(),
                "{} channels {what} for {} codes",
                there.len(),
                self.codes
            );
            ensure!(
                there.into_iter().collect::<BTreeSet<_>>() == channels,
                "channels {what} for people who did not win"
            );
        }
        let done = "select u.key from unnest($1::text[]) as u (key)
                      join processed_keys p on p.key = substr(sha256(convert_to(u.key, 'UTF8')), 1, 16)";
        let keys: Vec<&str> = self.people.iter().map(|(_, w)| w.dedup_key.as_str()).collect();
        let done: Vec<String> = sqlx::query_scalar(done).bind(keys).fetch_all(&env.pool).await?;
        let done: BTreeSet<&str> = done.iter().map(String::as_str).collect();
        for (id, webhook) in &self.people {
            history.sent.insert(*id, Acceptance::Accepted);
            if done.contains(webhook.dedup_key.as_str()) {
                history.done.push((*id, Duration::ZERO));
            }
        }
        Ok(check(&history))
    }

    /// Returns the paths of the `response_url`s.
    fn paths<'a>(&'a self, env: &TestEnv) -> impl Iterator<Item = &'a str> + use<'a> {
        let origin = env.slack.response_origin().len();
        self.people.iter().map(move |(_, webhook)| &webhook.response_url[origin..])
    }
}

fn channel((code, person): MessageId) -> String {
    format!("C{code:04}X{person}")
}
